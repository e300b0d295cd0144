// SPDX-License-Identifier: Apache-2.0

// Package events keeps what has happened to a node and its mesh, for people and
// programs that ask why.
//
// A [Log] holds the last [Most] events in memory and has them written down in
// batches, so that a storm of events costs one transaction a second and not one
// each. Who adds an event never waits. Who reads, reads by sequence number from
// what is held: a reader that is slow keeps nobody up and costs nothing, and is
// told how many events it has missed.
//
// Invariants: sequence numbers grow by one; every text is one printable line of
// bounded length, whoever it came from; one goroutine, that of [Log.Run], calls
// the store. internal/node imports the package, and nothing else.
package events

import (
	"context"
	"sort"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"
)

const (
	// Most is how many events are kept.
	Most = 1000

	maxText = 512 // bytes of a text or a cause
	maxName = 252 // bytes of a name or an identity

	// saveGap is how long events gather before they are written down.
	saveGap = time.Second
	// saveRetry is the time between two tries of a disk that does not take them.
	saveRetry = 10 * time.Second
)

// Kind says what an event is about.
type Kind string

// The kinds.
const (
	Start    Kind = "start"    // this node's daemon
	Join     Kind = "join"     // a node came into the mesh, or back
	Stop     Kind = "stop"     // a node stops for a while, this one perhaps
	Leave    Kind = "leave"    // for good
	Fail     Kind = "fail"     // a node does not answer
	Path     Kind = "path"     // a node is reached by another way
	Grant    Kind = "grant"    // addresses went to a node, or came from it
	Takeover Kind = "takeover" // addresses of a node that is gone were taken over here
	Retire   Kind = "retire"   // a node was declared gone
	Rotate   Kind = "rotate"   // the token changes
	Refuse   Kind = "refuse"   // somebody was turned away
	Policy   Kind = "policy"   // network policies are in force otherwise than they were, or than they say
)

// Event is one. Times are of the local clock.
type Event struct {
	Seq    uint64    `json:"seq"`
	Time   time.Time `json:"time"`
	Kind   Kind      `json:"kind"`
	Node   string    `json:"node,omitempty"`    // name of the node concerned, if it is one
	NodeID string    `json:"node_id,omitempty"` // its identity
	Text   string    `json:"text"`              // what happened
	Cause  string    `json:"cause,omitempty"`   // why, as far as it is known
}

// Save makes events durable and lets go of all before the sequence number first, in one transaction.
type Save func(put []Event, first uint64) error

// Config is what New needs.
type Config struct {
	Kept []Event // by an earlier run, in order
	Save Save
	Now  func() time.Time
	Log  *zap.Logger
}

// Log is the events of one node. Its methods may be called concurrently.
type Log struct {
	save  Save
	now   func() time.Time
	log   *zap.Logger
	dirty chan struct{} // capacity 1: there is something to save

	mu    sync.Mutex
	all   []Event       // ascending, without gaps; Most and some more
	last  uint64        // sequence number, 0: none
	saved uint64        // up to which they are durable
	news  chan struct{} // closed when something is added
}

// New returns a log that goes on after the events that were kept.
func New(c Config) *Log {
	l := &Log{save: c.Save, now: c.Now, log: c.Log, dirty: make(chan struct{}, 1), news: make(chan struct{})}
	for _, e := range c.Kept {
		if l.last != 0 && e.Seq != l.last+1 { // what was before a gap cannot be told apart from what was missed
			l.all = nil
		}
		l.all, l.last = append(l.all, e), e.Seq
	}
	l.saved = l.last
	l.trim()
	return l
}

// Add takes note of events; their Seq and, if it is zero, Time are filled in.
func (l *Log) Add(events ...Event) {
	if len(events) == 0 {
		return
	}
	now := l.now().Round(0)
	l.mu.Lock()
	for _, e := range events {
		l.last++
		e.Seq = l.last
		if e.Time.IsZero() {
			e.Time = now
		}
		e.Node, e.NodeID = line(e.Node, maxName), line(e.NodeID, maxName)
		e.Text, e.Cause = line(e.Text, maxText), line(e.Cause, maxText)
		l.all = append(l.all, e)
		l.trim()
	}
	close(l.news)
	l.news = make(chan struct{})
	l.mu.Unlock()
	select {
	case l.dirty <- struct{}{}:
	default:
	}
}

// trim lets go of what is too old, now and then. The caller has l.mu, or the log for itself.
func (l *Log) trim() {
	if len(l.all) > Most+Most/4 {
		l.all = append(make([]Event, 0, Most+Most/4+1), l.all[len(l.all)-Most:]...)
	}
}

// line makes s one printable line of at most most bytes.
func line(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
	if len(s) <= most {
		return s
	}
	const more = "..."
	cut := most - len(more)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + more
}

// Last returns the sequence number of the newest event, 0 if there is none.
func (l *Log) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Recent returns the last n events, all if n is negative or there are no more.
func (l *Log) Recent(n int) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.held()
	if n < 0 || n > len(held) {
		n = len(held)
	}
	return append([]Event{}, held[len(held)-n:]...)
}

// held are the events that are kept. The caller has l.mu and does not give them away.
func (l *Log) held() []Event { return l.all[max(0, len(l.all)-Most):] }

// After returns the events after the sequence number seq, at most n of them, and how many before those were missed because
// they are not held any more.
func (l *Log) After(seq uint64, n int) (next []Event, skipped uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.held()
	if len(held) == 0 {
		return nil, 0
	}
	if first := held[0].Seq; seq+1 < first {
		skipped = first - seq - 1
	}
	held = held[sort.Search(len(held), func(i int) bool { return held[i].Seq > seq }):]
	return append([]Event{}, held[:min(n, len(held))]...), skipped
}

// Follow gives tell what comes after the sequence number seq, in order, until ctx ends. It waits for tell; what is let go of
// meanwhile is told as a number of events that were skipped, before the event that follows them.
func (l *Log) Follow(ctx context.Context, seq uint64, tell func(e Event, skipped uint64)) {
	const batch = 64
	for {
		l.mu.Lock()
		news := l.news
		l.mu.Unlock()
		for {
			next, skipped := l.After(seq, batch)
			for _, e := range next {
				if ctx.Err() != nil {
					return
				}
				tell(e, skipped)
				seq, skipped = e.Seq, 0
			}
			if len(next) == 0 {
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-news:
		}
	}
}

// Run writes down what is added, until ctx ends, and then the rest.
func (l *Log) Run(ctx context.Context) {
	failing := false
	for wait := saveGap; ; {
		select {
		case <-ctx.Done():
		case <-l.dirty:
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		ended := ctx.Err() != nil
		err := l.flush()
		switch {
		case err != nil && !failing:
			l.log.Warn("events cannot be saved; those that come are lost with the daemon's end until they can", zap.Error(err))
		case err == nil && failing:
			l.log.Info("events can be saved again")
		}
		if failing = err != nil; failing {
			wait = saveRetry
			select {
			case l.dirty <- struct{}{}:
			default:
			}
		} else {
			wait = saveGap
		}
		if ended {
			return
		}
	}
}

// flush saves what is not saved yet.
func (l *Log) flush() error {
	l.mu.Lock()
	held := l.held()
	from := sort.Search(len(held), func(i int) bool { return held[i].Seq > l.saved })
	put := append([]Event{}, held[from:]...)
	first, last := uint64(0), l.last
	if len(held) > 0 {
		first = held[0].Seq
	}
	l.mu.Unlock()
	if len(put) == 0 {
		return nil
	}
	if err := l.save(put, first); err != nil {
		return err
	}
	l.mu.Lock()
	l.saved = last
	l.mu.Unlock()
	return nil
}
