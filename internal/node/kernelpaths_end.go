// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/router/fastpath/kernel"
)

// off is what is left of run where nothing can be or is to be done by the kernel: what is there goes, and who asks is told.
func (k *kernelPaths) off(ctx context.Context) {
	k.mu.Lock()
	k.kinds, k.known = nil, map[uint64]neighbour{}
	k.mu.Unlock()
	k.e.moved.raise() // the record says less
	k.candidates = nil
	k.answers.Store(true)
	for k.remove() != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(repairInterval):
		}
	}
	k.closeBypass()
}

// giveUp is told that the host's network could not be set up. If the rules for kernel paths may be to blame there are to be none; false: they cannot.
func (k *kernelPaths) giveUp(err error) bool {
	if !k.on() {
		return false
	}
	k.log.Warn("the host's network cannot be set up with kernel paths; trying without", zap.Error(err))
	k.mu.Lock()
	k.kinds, k.known = nil, map[uint64]neighbour{}
	k.lacking = append(k.lacking, "no kernel path is possible: "+oneLine(err))
	k.mu.Unlock()
	k.candidates, k.ruled = nil, false
	if err := k.remove(); err != nil {
		k.log.Warn("not all kernel paths of an earlier run could be removed; run weft reset", zap.Error(err))
	}
	k.e.moved.raise()
	return true
}

// end takes all off the host when the daemon ends in order, unless it is to outlive it. What ends the daemon otherwise leaves it, for the next one.
func (k *kernelPaths) end(inOrder bool) {
	k.mu.Lock()
	keep := k.keep || k.n.cfg.Guide != nil // whose next daemon stands by, mostly
	k.mu.Unlock()
	if inOrder && k.trusts() && (!keep || k.n.isLeaving() || !k.on()) {
		if err := k.remove(); err != nil {
			k.log.Warn("not all kernel paths could be removed; the next start does, or weft reset", zap.Error(err))
		}
		if err := k.e.workloads.tighten(); err != nil { // nobody reconciles any more
			k.log.Warn("not every reverse path filter could be set back; the next start does, or weft reset", zap.Error(err))
		}
	}
	k.closeBypass()
	if err := k.kernel.Close(); err != nil {
		k.log.Debug("the connection to the kernel could not be closed", zap.Error(err))
	}
}

// remove takes all of it off the host: the routes first, then what may leave and enter.
func (k *kernelPaths) remove() error {
	k.removeBypass()
	removed, err := k.kernel.Remove()
	if len(removed) > 0 {
		k.log.Info("kernel paths removed", zap.Int("objects", len(removed)))
	}
	rest := k.rest()
	err = errors.Join(err, k.e.workloads.setPlain(rest, nil))
	k.desired, k.rules, k.short = kernel.Desired{}, rest, false
	k.fail(err)
	return err
}

// rest is what the rules are to say once there are no kernel paths any more: nothing may enter or leave, and workloads can still send no tunnels. Other
// nodes may take tunnels from this host for a while, and workloads outlive the daemon.
func (k *kernelPaths) rest() hostnet.Plaintext {
	if !k.ruled {
		return hostnet.Plaintext{}
	}
	return hostnet.Plaintext{VXLANPort: vxlanPort(k.n.cfg.Port)}
}
