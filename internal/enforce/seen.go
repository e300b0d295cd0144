// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"sync"

	"go.uber.org/zap"

	"github.com/weftnet/weft/policy"
)

// mostSeen is how many denials are kept.
const mostSeen = 1000

// Denied is a connection that was denied, and why.
type Denied struct {
	Seq uint64
	Denial
	judged   bool
	Src, Dst policy.Name // whose addresses they are, if they are of endpoints
	// Decision is what the policies say of it, as they are when it is asked for first: a change may have made it be allowed since. Verdict is that of the end at which it was
	// denied.
	Decision policy.Decision
	Verdict  policy.Verdict
}

// seen keeps the last denials, for whoever follows them. Who adds never waits.
type seen struct {
	mu   sync.Mutex
	all  []Denied
	last uint64
	news chan struct{} // closed when something is added
}

func newSeen() *seen { return &seen{news: make(chan struct{})} }

func (s *seen) add(d Denied) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	d.Seq = s.last
	if s.all = append(s.all, d); len(s.all) > mostSeen+mostSeen/4 {
		s.all = append(make([]Denied, 0, mostSeen+mostSeen/4+1), s.all[len(s.all)-mostSeen:]...)
	}
	close(s.news)
	s.news = make(chan struct{})
}

// after returns what is kept of the denials after the sequence number seq, at most n of them, and how many before those were missed.
func (s *seen) after(seq uint64, n int) (next []Denied, skipped uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.all[max(0, len(s.all)-mostSeen):]
	if len(held) == 0 || seq >= s.last {
		return nil, 0
	}
	if first := held[0].Seq; seq+1 < first {
		skipped, seq = first-seq-1, first-1
	}
	held = held[seq+1-held[0].Seq:]
	return append([]Denied{}, held[:min(n, len(held))]...), skipped
}

func (s *seen) state() (last uint64, news <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.news
}

// keep keeps what has been found out of a denial, if that is still there.
func (s *seen) keep(d Denied) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == 0 || d.Seq < s.all[0].Seq {
		return
	}
	s.all[d.Seq-s.all[0].Seq] = d
}

// watch takes down what is denied, until ctx ends. Why it was is found out when somebody asks: it takes long where there are many policies, and a
// workload can have as much denied as it likes.
func (e *Enforcer) watch(ctx context.Context) {
	for d := range e.cfg.Kernel.Denials(ctx) {
		e.seen.add(Denied{Denial: d})
	}
	if ctx.Err() == nil {
		e.cfg.Log.Warn("denied connections are not told any more: weft policy log shows none until the daemon starts again", zap.Uint64("told", e.lastDenied()))
	}
}

// explain judges a connection that was denied, unless that was done before.
func (e *Enforcer) explain(out Denied) Denied {
	if out.judged {
		return out
	}
	d := out.Denial
	defer func() { e.seen.keep(out) }()
	e.model.RLock()
	defer e.model.RUnlock()
	out.judged, out.Decision = true, e.world.Judge(d.Connection)
	if out.Verdict = out.Decision.Ingress; d.Direction == policy.Egress {
		out.Verdict = out.Decision.Egress
	}
	if at, ok := e.world.EndpointAt(d.Src); ok {
		out.Src = at.Name
	}
	if at, ok := e.world.EndpointAt(d.Dst); ok {
		out.Dst = at.Name
	}
	return out
}

func (e *Enforcer) lastDenied() uint64 {
	last, _ := e.seen.state()
	return last
}

// Denials returns the last n denials, all that are kept if n is negative or there are no more, and the sequence number of the last one, for Follow.
func (e *Enforcer) Denials(n int) (list []Denied, last uint64) {
	last = e.lastDenied()
	first := uint64(0)
	if n >= 0 && uint64(n) < last {
		first = last - uint64(n)
	}
	list, _ = e.seen.after(first, mostSeen)
	for i, d := range list {
		list[i] = e.explain(d)
	}
	return list, last
}

// Follow gives tell what is denied after the sequence number seq, in order, until ctx ends or Run does. It waits for tell; what is let go of
// meanwhile is told as a number of denials that were skipped, before the one that follows them.
func (e *Enforcer) Follow(ctx context.Context, seq uint64, tell func(d Denied, skipped uint64)) {
	const some = 64
	for {
		_, news := e.seen.state()
		for {
			next, skipped := e.seen.after(seq, some)
			for _, d := range next {
				if ctx.Err() != nil {
					return
				}
				tell(e.explain(d), skipped)
				seq, skipped = d.Seq, 0
			}
			if len(next) == 0 {
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-e.ended:
			return
		case <-news:
		}
	}
}

// Why says what the policies say of a connection.
func (e *Enforcer) Why(c policy.Connection) policy.Decision {
	e.model.RLock()
	defer e.model.RUnlock()
	return e.world.Judge(c)
}

// Look lets f look at all objects. While it does, nothing changes, and it keeps nothing of them but what never does.
func (e *Enforcer) Look(f func(w *policy.World)) {
	e.model.RLock()
	defer e.model.RUnlock()
	f(e.world)
}

// Problems are what could not be understood of policies, and how it is enforced instead: a line each, that names the policy.
func (e *Enforcer) Problems() (lines []string) {
	e.Look(func(w *policy.World) {
		for p := range w.Policies() {
			for _, text := range p.Problems {
				lines = append(lines, keyText(p.PolicyKey)+": "+text)
			}
		}
		lines = append(lines, e.beyond...)
	})
	return lines
}

// Counters are how many connections policies have allowed and denied on this node, those that there are.
func (e *Enforcer) Counters() (map[policy.PolicyKey]Count, error) {
	counts, err := e.cfg.Kernel.Counters()
	if err != nil {
		return nil, err
	}
	e.Look(func(w *policy.World) {
		for k := range counts {
			if w.Policy(k) == nil {
				delete(counts, k)
			}
		}
	})
	return counts, nil
}

// Status says how it is.
func (e *Enforcer) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.status
	s.Pending = e.busy || !e.pending.empty()
	return s
}
