// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"

	"github.com/weftnet/weft/internal/hostnet"
)

// settle waits until packets flow to and from what was attached just now. If they do not in time, what was not known before is taken away again.
// The caller has the workload's lock, and expects the workload, but has not locked the gate: nobody else waits.
func (ws *workloads) settle(w workload, on hostnet.Workload, made hostnet.Attached, known bool) error {
	on.Addrs = made.Addrs
	err := ws.host.Settle(on)
	if err == nil {
		return nil
	}
	if known {
		ws.setState(w.ID, err)
		return err
	}
	ws.gate.RLock()
	defer ws.gate.RUnlock()
	return errors.Join(err, ws.forgetAll([]workload{w})[w.ID])
}
