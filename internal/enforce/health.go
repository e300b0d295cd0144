// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"

	"go.uber.org/zap"

	"github.com/weftnet/weft/policy/filter"
)

// heed hears how the kernel is kept as it was told to be.
func (e *Enforcer) heed(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-e.cfg.Kernel.Health():
			e.hear(h)
		}
	}
}

func (e *Enforcer) hear(h filter.Health) {
	uncut := ""
	if h.Cutting != nil {
		uncut = oneLine(h.Cutting)
	}
	e.mu.Lock()
	before := e.status.Uncut
	e.status.Uncut = uncut
	if h.Judging != nil {
		e.ill = h.Judging
	}
	e.mu.Unlock()
	e.tellInForce()
	if h.Judging != nil {
		e.raise()
	}
	switch {
	case uncut != "" && before == "":
		e.cfg.Note("connections that network policies do not allow any more go on", uncut)
	case uncut == "" && before != "":
		e.cfg.Note("connections that network policies do not allow any more are cut again", "")
	}
}

// sicken takes what was heard of the kernel as if it had taken a change not or in part: it gets the whole again, and nothing is admitted until it has it.
func (e *Enforcer) sicken(err error) {
	if !e.committed {
		e.cfg.Log.Error("the network policies of the earlier run are not in force as they should be; trying again", zap.Error(err))
		e.restored, e.earlier.behind = false, false // it was given what is kept on disk, or it would not know what it should have
		return
	}
	e.whole, e.bare = true, false
	if e.failure == nil {
		e.failed(err, false, len(e.sides) > 0)
	}
}

// tellInForce tells whether all that should be in force is, if that is another answer than the last one.
func (e *Enforcer) tellInForce() {
	e.telling.Lock()
	defer e.telling.Unlock()
	e.mu.Lock()
	is := e.sound && e.ill == nil && e.status.Uncut == ""
	e.mu.Unlock()
	if is != e.inForce && e.cfg.InForce != nil {
		e.cfg.InForce(is)
	}
	e.inForce = is
}
