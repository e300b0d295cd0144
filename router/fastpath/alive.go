// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"fmt"
	"time"
)

// Who does not answer by a kernel path may not be there at all: the daemon of a peer has ended, and its kernel still passes packets on. So the path
// in use is left only if the peer answers somehow: by another path, by another size, or when it is asked by the router's path.

// aliveFor is how long a peer has to have answered otherwise before its path is left: one that begins to answer again has that time to do so by
// its path.
const aliveFor = 600 * time.Millisecond

// life is what is known of whether anybody answers at a peer, while the path in use is silent.
type life struct {
	track           // of asks by the router's path
	asked time.Time // last
	since time.Time // when it was asked first what it has answered; zero: nothing
	mute  string    // why the path is in use though it is silent; "": it is not
}

// wonder appends an ask to what is to be done, if the path in use is silent and it is time.
func (m *Machine) wonder(do []Action, p *peer, now time.Time) []Action {
	used := p.trials[p.path]
	if !m.asks || !used.usable() || !used.doubtful(now) {
		m.calm(p)
		return do
	}
	if now.Sub(p.life.asked) < doubtGap || !m.small.take(1, 0, now) {
		return do
	}
	echo := m.echo()
	if echo == 0 {
		return do
	}
	p.life.asked = now
	if old, over := p.life.ask(echo, now); over {
		delete(m.echoes, old)
	}
	m.echoes[echo] = sent{peer: p}
	return append(do, Action{Kind: Send, ID: p.id, Way: UDP, Echo: echo})
}

// calm forgets what was asked: the path answers, or there is none.
func (m *Machine) calm(p *peer) {
	for _, q := range p.life.pending {
		delete(m.echoes, q.echo)
	}
	p.life = life{asked: p.life.asked}
}

// answered takes the answer to an ask.
func (m *Machine) answered(p *peer, echo uint64, now time.Time) {
	overtaken, ok := p.life.answer(echo)
	if !ok {
		return
	}
	for _, e := range append(overtaken, echo) {
		delete(m.echoes, e)
	}
	m.wake(p, now)
}

// alive tells whether a peer whose path is silent since some time has answered otherwise for long enough.
func (p *peer) alive(since, now time.Time) bool {
	first := func(heard time.Time) {
		if heard.After(since) && (p.life.since.IsZero() || heard.Before(p.life.since)) {
			p.life.since = heard
		}
	}
	first(p.life.heard)
	for _, t := range p.trials {
		if t == nil {
			continue
		}
		for i := range t.families {
			first(t.families[i].full.heard)
			first(t.families[i].small.heard)
		}
	}
	if !p.life.since.IsZero() {
		p.life.mute = ""
		return now.Sub(p.life.since) >= aliveFor
	}
	p.life.mute = fmt.Sprintf("kept, though nothing answers since %s, by udp neither: the daemon there, or its host, is down", clock(since))
	return false
}
