// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// step makes what has gathered, and returns after what time there is something to do again; 0: when there is news.
func (e *Enforcer) step() (again time.Duration) {
	e.mu.Lock()
	now := time.Now()
	ready := e.synced && e.begun
	if wait := e.nextAt.Sub(now); wait > 0 && ready && e.committed && len(e.waiting) == 0 && !e.pending.awaited() && e.ill == nil {
		e.mu.Unlock()
		return e.soonest(wait)
	}
	ill := e.ill
	e.ill = nil
	b := e.pending
	e.pending = newBatch()
	e.busy = e.busy || !b.empty()
	e.mu.Unlock()

	if ill != nil {
		e.sicken(ill)
	}
	e.model.Lock()
	e.make(b)
	if !ready {
		e.model.Unlock()
		e.restore()
		e.answer()
		return restoreLook
	}
	first := !e.committed
	if first {
		e.dir.settle()
	}
	delta := e.compiler.Commit()
	e.count(delta)
	e.model.Unlock()
	e.committed = true
	if e.program(delta, first) {
		e.nextAt = time.Now().Add(gap)
	}
	e.saver.follow(delta)
	e.lag(delta)
	e.tally()
	e.answer()
	if e.failure == nil {
		for _, done := range e.settling {
			close(done)
		}
		e.settling = nil
	}
	e.save(false)
	return e.soonest(0)
}

// awaited tells whether somebody waits for a change.
func (b *batch) awaited() bool {
	for _, l := range b.locals {
		if l.waits != nil || l.gone != nil {
			return true
		}
	}
	return len(b.settles) > 0
}

// soonest is the shorter one of wait and the time until something else is due; 0: nothing is.
func (e *Enforcer) soonest(wait time.Duration) time.Duration {
	e.mu.Lock()
	caught := e.caught
	e.mu.Unlock()
	if len(e.waiting) == 0 {
		caught = time.Time{}
	}
	for _, at := range []time.Time{e.retryAt, e.saver.due, caught} {
		if at.IsZero() || at == e.saver.due && e.failure != nil {
			continue
		}
		if until := max(time.Until(at), time.Nanosecond); wait == 0 || until < wait {
			wait = until
		}
	}
	return wait
}

// make makes the changes of a batch to all that knows objects.
func (e *Enforcer) make(b *batch) {
	all := e.compiler
	for k, p := range b.policies {
		before := e.world.Policy(k)
		e.noteProblems(before, p)
		if p == nil {
			all.DeletePolicy(k)
		} else {
			all.SetPolicy(p)
		}
		switch {
		case before == nil && p != nil:
			e.policies++
		case before != nil && p == nil:
			e.policies--
		}
	}
	for name, n := range b.namespaces {
		e.dir.tellNamespace(name, n)
	}
	for name, n := range b.nodes {
		e.dir.tellNode(name, n)
	}
	if b.hosts != nil {
		e.dir.hosts = b.hosts
	}
	if len(b.nodes) > 0 || b.hosts != nil {
		e.dir.flushNodes()
	}
	if b.owners != nil {
		e.dir.setOwners(b.owners)
	}
	for _, name := range b.inOrder() {
		e.dir.tell(name, b.endpoints[name].Endpoint)
	}
	for _, c := range b.locals {
		e.changeLocal(c)
	}
	e.settling = append(e.settling, b.settles...)
}

// noteProblems makes events of what is new about a policy that could not be understood as a whole.
func (e *Enforcer) noteProblems(before, p *policy.Policy) {
	if p == nil {
		return
	}
	for _, text := range p.Problems {
		if before == nil || !slices.Contains(before.Problems, text) {
			e.cfg.Note(keyText(p.PolicyKey)+" is enforced more strictly than it says", text)
		}
	}
}

// keyText names a policy.
func keyText(k policy.PolicyKey) string {
	if k.Namespace == "" {
		return "ClusterNetworkPolicy " + k.Name.Name
	}
	return fmt.Sprintf("NetworkPolicy %s of namespace %s", k.Name.Name, k.Namespace)
}

// program gives the kernel what has changed, or all if that is due, and tells whether there was anything to give.
func (e *Enforcer) program(d compile.Delta, first bool) bool {
	if time.Now().Before(e.retryAt) {
		return false
	}
	begun := time.Now()
	var err error
	switch {
	case len(e.sides) == 0:
		if e.bare {
			return false
		}
		e.saver.touch()
		if err = e.cfg.Kernel.Remove(); err != nil && e.cfg.Kernel.Support() != nil {
			err = nil // nothing can be there
		}
		e.bare = err == nil
	case e.whole:
		e.saver.touch()
		err = e.replace(e.compiler.State())
	case d.Empty():
		return false
	default:
		e.saver.touch()
		if err = e.cfg.Kernel.Update(d); err != nil {
			e.cfg.Log.Warn("the packet filter took no change of network policies, and gets all of it again", zap.Error(err))
			err = e.replace(e.compiler.State())
		}
	}
	e.whole = err != nil || len(e.sides) == 0
	if len(e.sides) > 0 {
		e.bare = false
	}
	e.failed(err, first, len(e.sides) > 0)
	if err == nil {
		e.saver.changed(time.Now())
		e.cfg.Log.Debug("network policies applied", zap.Duration("took", time.Since(begun)), zap.Int("sides", len(e.sides)))
	}
	return true
}

// replace gives the kernel the whole of a state. If it does not take it, lack says whether it ever will.
func (e *Enforcer) replace(s *compile.State) error {
	err := e.cfg.Kernel.Replace(s)
	if e.lack = nil; err != nil {
		e.lack = e.cfg.Kernel.Support()
		return err
	}
	select {
	case <-e.inUse:
	default:
		close(e.inUse)
	}
	return nil
}

// lag takes down which addresses the kernel may know as something else than what they are, as long as it fails: those of changes that it has not taken.
func (e *Enforcer) lag(d compile.Delta) {
	if e.failure == nil {
		e.late, e.took = nil, true
		return
	}
	if e.late == nil {
		e.late = map[netip.Addr]bool{}
	}
	for a := range d.SetIdentities {
		e.late[a] = true
	}
	for _, a := range d.DropIdentities {
		e.late[a] = true
	}
	for s := range d.SetSides {
		e.late[s.Addr] = true
	}
	for _, s := range d.DropSides {
		e.late[s.Addr] = true
	}
}

// failed takes note of how an attempt to tell the kernel something has ended.
func (e *Enforcer) failed(err error, first, needed bool) {
	before := e.failure
	if e.failure = err; err == nil {
		e.retryAt, e.patience = time.Time{}, 0
		if before != nil {
			e.cfg.Log.Info("network policies are in force again")
			e.cfg.Note("network policies are in force again", "")
		}
		if (first || before != nil) && e.cfg.Changed != nil {
			e.cfg.Changed()
		}
		return
	}
	e.patience = min(max(2*e.patience, firstRetry), lastRetry)
	e.retryAt = time.Now().Add(e.patience)
	if before == nil || before.Error() != err.Error() {
		e.cfg.Log.Error("network policies could not be put in force; trying again", zap.Error(err), zap.Bool("needed", needed))
		e.cfg.Note("network policies could not be put in force", oneLine(err))
	}
}

// count keeps in step with a change which sides there are. The caller has e.model.
func (e *Enforcer) count(d compile.Delta) {
	for _, s := range d.DropSides {
		delete(e.sides, s)
	}
	maps.Copy(e.sides, d.SetSides)
	beyond := e.compiler.Problems()
	for _, text := range beyond {
		if !slices.Contains(e.beyond, text) {
			e.cfg.Note("network policies are enforced more strictly than they say", text)
		}
	}
	e.beyond = beyond
}

// tally brings the status up to date.
func (e *Enforcer) tally() {
	subjects := map[string]bool{}
	for s := range e.sides {
		if key, ok := e.dir.taken[s.Addr]; ok {
			subjects[key] = true
		} else {
			subjects[s.Addr.String()] = true
		}
	}
	defer e.tellInForce()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.busy = false
	e.sound = e.committed && e.failure == nil
	e.status = Status{Awaits: e.behind, Subjects: len(subjects), Policies: e.policies, Uncut: e.status.Uncut}
	if e.failure != nil {
		e.status.Failure = oneLine(e.failure)
	}
}

// recall reads what an earlier run has kept.
func (e *Enforcer) recall() {
	s, err := e.saver.load()
	if err != nil {
		e.cfg.Log.Warn("what is kept of network policies in force cannot be used; the packet filter stays as it is until they are known", zap.Error(err))
		return
	}
	e.earlier = s
	for _, l := range s.locals {
		e.dir.remember(l)
	}
	e.dir.spaces.earlier = s.spaces
}

// restore sees to it that the kernel has something as long as nothing newer is known. It is given what an earlier run has kept on disk, so that it is
// guarded from now on, whatever others have made of it. If what is kept is older than what the earlier run has left in the kernel, that stays, unless it is gone.
func (e *Enforcer) restore() {
	if e.earlier.state == nil || len(e.earlier.state.Sides) == 0 {
		return
	}
	present, err := e.cfg.Kernel.Present()
	if err == nil && (!present || !e.restored && !e.earlier.behind) {
		if err = e.replace(e.earlier.state); err == nil {
			e.restored = true
		}
		if err == nil && !present {
			e.cfg.Log.Warn("the packet filter had lost the network policies of the earlier run; it has them again")
			e.cfg.Note("network policies were put back in force", "the packet filter had lost them, and what there is now is not known yet")
		}
	}
	if err != nil && e.restGone == nil {
		e.cfg.Log.Error("the network policies of the earlier run could not be put back in force; trying again", zap.Error(err))
		e.cfg.Note("the network policies of the earlier run could not be put back in force", oneLine(err))
	}
	e.restGone = err
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.status.Failure = ""; err != nil {
		e.status.Failure = oneLine(err)
	}
}

func oneLine(err error) string { return strings.ReplaceAll(errors.Join(err).Error(), "\n", "; ") }
