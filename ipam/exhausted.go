// SPDX-License-Identifier: Apache-2.0

package ipam

import "time"

// Exhausted returns, as far as is known, why Allocate would fail at once: no free address is left here, and no node that answers can give one. It
// asks nobody, as Run does that now and then while few are left; nil if somebody may have one.
func (a *Allocator) Exhausted() error {
	v := a.look()
	a.mu.Lock()
	full := a.barren(a.cfg.Now(), v)
	a.mu.Unlock()
	if full == nil {
		return nil
	}
	return a.named(full)
}

// barren is Exhausted, by what others have said not long ago. a.mu must be held.
func (a *Allocator) barren(now time.Time, v view) *ExhaustedError {
	const known = 2 * abstain // who has nothing is asked again after abstain
	a.expire()
	if a.hold || a.space.left() > 0 || len(a.ledger.announced()) > 0 || len(v.alive) == 0 && len(a.share()[a.cfg.Self]) == 0 {
		return nil
	}
	if !a.majority(v) {
		if now.Sub(a.started) < grace {
			return nil
		}
		return a.exhausted(now, v, known)
	}
	for _, o := range a.richest(v) {
		if d, ok := a.denials[o]; !ok || now.Sub(d.at) >= known {
			return nil
		}
	}
	return a.exhausted(now, v, known)
}
