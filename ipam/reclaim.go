// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/ipam/ring"
)

// ForgetRequest says which nodes are gone for good.
type ForgetRequest struct {
	Dead  []ring.Owner // nodes, or seed names (NameOwner) that nobody has adopted
	Sure  bool         // although they answer, or somebody may: the caller knows better
	Force bool         // although no majority can be reached: two sides of a partition that do so give the same addresses out twice
}

// Retirement says that a node was declared gone, and who got its addresses. There is one at most of every node.
type Retirement struct {
	Dead   ring.Owner
	Heir   ring.Owner
	By     ring.Owner // who proposed it
	At     time.Time  // by the clock of By, to the second
	Forced bool       // without a majority
}

// Reclaim is a takeover that is not complete.
type Reclaim struct {
	Dead    ring.Owner
	Heir    ring.Owner // 0: not decided yet
	Since   time.Time  // since when it is known here
	Slots   uint64     // that have voted, or have told the heir what they know
	Size    uint64     // of the universe
	Left    uint64     // slots that the dead node still owns
	Missing []ring.Owner
	Short   bool   // what all others own is no majority
	Text    string // one line for people, with names: what is done and what is missing
}

// RetiredError says that this node was declared gone.
type RetiredError struct {
	Retirement
	HeirName, ByName string // filled in where errors are returned
}

func (e *RetiredError) Error() string {
	return fmt.Sprintf("this node was declared gone by %s on %s, and its addresses are others' now (heir named: %s), so it stays out of the mesh; detach its workloads, stop it and run weft reset to start again as a new node",
		e.ByName, e.At.UTC().Format("2006-01-02 15:04:05 UTC"), e.HeirName)
}

// ForgottenError says that the share that was seeded under a node's name was declared nobody's before the node adopted it.
type ForgottenError struct {
	Retirement
	HeirName, ByName string // filled in where errors are returned
}

func (e *ForgottenError) Error() string {
	return fmt.Sprintf("the share of the range that was seeded under this node's name was declared nobody's by %s on %s (heir named: %s); join with --peer instead of --seed",
		e.ByName, e.At.UTC().Format("2006-01-02 15:04:05 UTC"), e.HeirName)
}

// AliveError says that a node that is to be forgotten answers.
type AliveError struct {
	Owner ring.Owner
	Name  string
}

func (e *AliveError) Error() string {
	return fmt.Sprintf("node %s answers, so it is not gone; stop it or have it leave, or repeat with --yes-it-is-gone if another node answers in its place", e.Name)
}

// DoomedError says that nothing can be decided here before a vote has ended by which this node itself is declared gone: it was
// accepted, so it may have been decided, and this node does not vote on it.
type DoomedError struct {
	By     ring.Owner // who proposed it
	ByName string     // filled in where errors are returned
}

func (e *DoomedError) Error() string {
	return fmt.Sprintf("a vote of %s's that this node is gone was never finished, and comes before any other; forget on another node, which finishes it too (this node is out then), or here with --force, if no other can",
		e.ByName)
}

// ForgetError says that a takeover was not complete when the waiting for it ended.
type ForgetError struct {
	Progress []string // of each takeover, with names
	Err      error    // why the waiting ended
}

func (e *ForgetError) Error() string {
	return fmt.Sprintf("not complete: %s (%v); repeat this when the missing nodes answer, or with --force if they never will",
		strings.Join(e.Progress, "; "), e.Err)
}

func (e *ForgetError) Unwrap() error { return e.Err }

// Forget has the addresses of nodes that are gone taken over, and returns nil when that is complete as far as is known
// here. Errors are AliveError, RetiredError, DoomedError, and a ForgetError when ctx ends, with which this node's part in it ends, too.
func (a *Allocator) Forget(ctx context.Context, r ForgetRequest) error {
	wants, err := a.want(r)
	if err != nil {
		return a.named(err)
	}
	defer a.unwant(wants)
	tick := time.NewTicker(patience)
	defer tick.Stop()
	for {
		a.finish()
		a.Wake()
		if done, err := a.forgotten(r); done || err != nil {
			return a.named(err)
		}
		select {
		case <-ctx.Done():
			e := &ForgetError{Err: context.Cause(ctx)}
			for _, c := range a.Reclaims() {
				e.Progress = append(e.Progress, c.Text)
			}
			return e
		case <-tick.C:
		}
	}
}

// want takes in what is asked for.
func (a *Allocator) want(r ForgetRequest) ([]*want, error) {
	v := a.look()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.expelled(); err != nil {
		return nil, err
	}
	if len(r.Dead) == 0 {
		return nil, errors.New("no node to forget is named; name one")
	}
	var wants []*want
	for _, o := range r.Dead {
		switch {
		case o == 0 || o == a.cfg.Self:
			return nil, errors.New("a node cannot forget itself; have it leave (weft leave), or forget it on another node")
		case v.has(o) && !r.Sure:
			return nil, &AliveError{Owner: o}
		}
		wants = append(wants, &want{dead: o, sure: r.Sure, force: r.Force, since: a.cfg.Now()})
	}
	a.wants = append(a.wants, wants...)
	return wants, nil
}

func (a *Allocator) unwant(wants []*want) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wants = slices.DeleteFunc(a.wants, func(w *want) bool { return slices.Contains(wants, w) })
}

// forgotten reports whether all that was asked for is done.
func (a *Allocator) forgotten(r ForgetRequest) (bool, error) {
	v := a.look()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.expelled(); err != nil {
		return false, err
	}
	done, votes := true, a.ledger.ring.Votes()
	doomed := votes.Accepted != (ring.Ballot{}) && votes.Value.Dead == a.cfg.Self &&
		!r.Force && votes == a.stalledAt && a.cfg.Now().Sub(a.stalled) >= 2*silence
	for _, o := range r.Dead {
		if doomed && !a.ledger.retired(o) {
			return false, &DoomedError{By: votes.Value.By}
		}
		if !a.ledger.retired(o) && v.has(o) && !r.Sure {
			return false, &AliveError{Owner: o}
		}
		done = done && a.ledger.retired(o) && a.leftBy(o) == 0
	}
	return done && a.settled(v), nil
}

// settled reports whether this node has heard of all that there is to take over, which it may not have when that was
// decided: as the heir from a majority, or else from the heir, which it asks if need be. An heir that does not answer is not
// waited for. a.mu must be held.
func (a *Allocator) settled(v view) bool {
	l := a.ledger
	log := l.ring.Log()
	heir := log[len(log)-1].Heir
	switch {
	case heir == a.cfg.Self:
		return a.surveyed == len(log) || log[len(log)-1].Forced
	case !v.has(heir), a.heirSaid.heir == heir && a.heirSaid.length == len(log):
		return true
	}
	if now := a.cfg.Now(); now.Sub(a.heirSaid.asked) >= retry {
		a.heirSaid.asked = now
		a.send(heir, &message{kind: kindSurvey, ring: l.ring})
	}
	return false
}

// expelled returns a RetiredError, without names, if this node is retired. a.mu must be held.
func (a *Allocator) expelled() error {
	if r := a.ledger.ring.Retired(a.cfg.Self); r != nil {
		return &RetiredError{Retirement: retirement(*r)}
	}
	return nil
}

func retirement(r ring.Retirement) Retirement {
	return Retirement{Dead: r.Dead, Heir: r.Heir, By: r.By, At: time.Unix(r.At, 0), Forced: r.Forced}
}

// mourn takes note of new retirements. a.mu must be held.
func (a *Allocator) mourn(news []ring.Retirement) {
	a.obituaries = append(a.obituaries, news...)
	for _, r := range news {
		a.news = append(a.news, News{Kind: WasRetired, Node: r.Dead, Retirement: retirement(r)})
	}
	a.changed = true
	if err := a.expelled(); err != nil {
		a.end(func(*waiter) error { return err })
	}
}

// announce logs a retirement. No lock must be held.
func (a *Allocator) announce(r ring.Retirement) {
	fields := []zap.Field{
		zap.String("node", a.name(r.Dead)), zap.String("heir", a.name(r.Heir)), zap.String("by", a.name(r.By)),
		zap.Time("at", time.Unix(r.At, 0).UTC()), zap.Bool("forced", r.Forced),
	}
	if r.Dead == a.cfg.Self {
		a.log.Error("this node was declared gone: its addresses are another's, and it hands out no more", fields...)
		return
	}
	a.log.Warn("a node was declared gone, and its addresses go to another", fields...)
}

// Retired returns why this node is not one of the mesh any more, if that is so. It then hands out nothing, and what is
// allocated here may be in use elsewhere.
func (a *Allocator) Retired() (*RetiredError, bool) {
	a.mu.Lock()
	err := a.expelled()
	a.mu.Unlock()
	var e *RetiredError
	if !errors.As(a.named(err), &e) {
		return nil, false
	}
	return e, true
}

// Retirements returns everybody who was declared gone, in the order of the decisions.
func (a *Allocator) Retirements() []Retirement {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Retirement
	for _, r := range a.ledger.ring.Log() {
		out = append(out, retirement(r))
	}
	return out
}

// Reclaims returns the takeovers that are not complete.
func (a *Allocator) Reclaims() []Reclaim {
	v := a.look()
	now := a.cfg.Now()
	a.mu.Lock()
	out := append(a.undecided(now, v), a.unfinished(v)...)
	a.mu.Unlock()
	for i := range out {
		out[i].Text = a.describe(out[i])
	}
	return out
}

// leftBy returns how many slots a retired node still owns, or has granted without their having arrived. a.mu must be held.
func (a *Allocator) leftBy(o ring.Owner) uint64 {
	return a.ledger.ring.Where(func(x ring.Register) bool { return x.Owner == o || x.From == o }).Len()
}

// undecided returns the retirements that are wanted here, or were proposed. a.mu must be held.
func (a *Allocator) undecided(now time.Time, v view) (out []Reclaim) {
	l := a.ledger
	votes := l.ring.Votes()
	wants := slices.Clone(a.wants)
	if w := a.wanted(l, now, v); w != nil && !slices.Contains(wants, w) {
		wants = append(wants, w)
	}
	if d := votes.Value.Dead; d != 0 && !slices.ContainsFunc(wants, func(w *want) bool { return w.dead == d }) {
		wants = append(wants, &want{dead: d, since: a.stalled})
	}
	for _, w := range wants {
		if l.retired(w.dead) {
			continue
		}
		r := Reclaim{Dead: w.dead, Since: w.since, Size: uint64(a.size), Left: a.share()[w.dead].Len()}
		slots := l.spoken()
		if p := a.proposal; p != nil {
			slots = counted(slots, p.answers(votes), l, w.dead)
		}
		r.Slots, r.Missing = slots.Len(), a.missing(slots, v, w.dead)
		r.Short = 2*r.Left >= r.Size
		out = append(out, r)
	}
	return out
}

// unfinished returns the takeovers that are decided. a.mu must be held.
func (a *Allocator) unfinished(v view) (out []Reclaim) {
	l := a.ledger
	log := l.ring.Log()
	for _, e := range log {
		left := a.leftBy(e.Dead)
		if left == 0 {
			continue
		}
		r := Reclaim{Dead: e.Dead, Heir: log[len(log)-1].Heir, Since: time.Unix(e.At, 0), Size: uint64(a.size), Left: left}
		if s := a.survey; s != nil {
			known := s.known(l)
			_, ask := l.due(s.answers)
			r.Slots, r.Missing = known.Len(), slices.Concat(a.missing(known, v, e.Dead), ask, a.ghosts(l, v))
			slices.Sort(r.Missing)
			r.Missing = slices.Compact(r.Missing)
		} else if r.Heir != l.self && !v.has(r.Heir) {
			r.Missing = []ring.Owner{r.Heir}
		}
		out = append(out, r)
	}
	return out
}

// missing returns whose slots are missing for a majority: those who do not answer, or have not yet, the richest first, as
// many as it takes. a.mu must be held.
func (a *Allocator) missing(have ring.Set, v view, dead ring.Owner) []ring.Owner {
	type part struct {
		o     ring.Owner
		slots ring.Set
	}
	var parts []part
	for o, s := range a.share() {
		if rest := s.Subtract(have); o != dead && o != a.cfg.Self && len(rest) > 0 && !contains(v.retired, o) && !v.lacks(o) {
			parts = append(parts, part{o, rest})
		}
	}
	slices.SortFunc(parts, func(x, y part) int { return cmp.Or(cmp.Compare(y.slots.Len(), x.slots.Len()), cmp.Compare(x.o, y.o)) })
	var out []ring.Owner
	for _, p := range parts {
		if a.ledger.majority(have) {
			break
		}
		out, have = append(out, p.o), have.Union(p.slots)
	}
	return out
}

// describe puts a takeover into words. No lock must be held.
func (a *Allocator) describe(r Reclaim) string {
	percent := func(n uint64) string { return fmt.Sprintf("%d%%", n*100/r.Size) }
	waiting := ""
	if len(r.Missing) > 0 {
		waiting = ", " + a.text(waitReason{"waiting for", r.Missing})
	}
	if r.Short {
		waiting += fmt.Sprintf("; all that the others own is no majority: bring %s back, or forget it with --force", a.name(r.Dead))
	}
	needed := fmt.Sprintf("%d%%", ((r.Size/2+1)*100+r.Size-1)/r.Size)
	switch {
	case r.Heir == 0:
		return fmt.Sprintf("takeover of %s: %s of the range has voted, %s needed%s", a.name(r.Dead), percent(r.Slots), needed, waiting)
	case r.Heir != a.cfg.Self:
		if len(r.Missing) > 0 {
			waiting += fmt.Sprintf("; forget %s too (weft forget) if it is gone", a.name(r.Heir))
		}
		return fmt.Sprintf("takeover of %s: decided, %s takes over %d addresses%s", a.name(r.Dead), a.name(r.Heir), r.Left, waiting)
	default:
		if len(r.Missing) > 0 {
			waiting += "; forget these too (weft forget) if they are gone"
		}
		return fmt.Sprintf("takeover of %s: decided, this node takes over %d addresses once %s of the range has told it what it knows, %s has%s",
			a.name(r.Dead), r.Left, needed, percent(r.Slots), waiting)
	}
}
