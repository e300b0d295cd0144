// SPDX-License-Identifier: Apache-2.0

package pathmtu

import (
	"slices"
	"time"
)

// Floor is the smallest packet that is ever probed, in bytes. Paths that are narrower are not served.
const Floor = 512

// Times of a Machine.
const (
	// checkGap is how often a size is confirmed while packets that need it are sent. With three attempts a path that has become narrow
	// is found within 1.4 s. TCP, which repeats after 0.2, 0.6, 1.4, 3 s or up to twice that, then goes on before 3.5 s.
	checkGap = 500 * time.Millisecond
	// leastWait and mostWait bound how long an acknowledgement is awaited before the next attempt; between
	// them it is twice the time that the last one took.
	leastWait = 300 * time.Millisecond
	mostWait  = time.Second
	// retryWait is when to try again what could not even leave.
	retryWait = 20 * time.Millisecond
	// The time between attempts to raise the size begins with firstRaise and doubles up to what New is told.
	firstRaise = 5 * time.Second
	// The time between vain attempts to reach a peer doubles up to mostQuiet, or to muteQuiet if it has never answered.
	mostQuiet = 8 * time.Second
	muteQuiet = time.Minute
)

const (
	// A size is given up after so many attempts: when a packet was lost that is smaller than one that
	// has arrived, the path loses packets of any size, and more are needed to tell.
	verifyAttempts, verifyLossy = 3, 6
	refineAttempts, refineLossy = 2, 4
	// refineWidth is how many sizes are tried at once between one that passes and one that does not, and step their
	// least distance: sessions pad packets to multiples of it.
	refineWidth = 8
	step        = 16
	// remembered is how many probes are kept in mind, and for how long.
	remembered  = 64
	rememberFor = 5 * time.Second
)

// sizes returns what common links leave of a packet, largest first: 9000, 4 and 2 KiB, 1500 and what PPPoE, GRE, VXLAN, clouds and
// VPNs leave of that, 1280, 1100 and 576 bytes, over IPv4 and IPv6.
func sizes() []int {
	return []int{8928, 8912, 4080, 2032, 1440, 1424, 1408, 1392, 1376, 1360, 1328, 1312, 1280, 1216, 1200, 1008, Floor}
}

type phase uint8

const (
	idle   phase = iota
	verify       // does the present size pass, and if not, which one does?
	raise        // does a larger one?
	refine       // what is the largest between lo, which passes, and hi, which does not?
)

// A Request is a probe to be sent: a message of the given size in bytes, header included.
type Request struct {
	ID   uint64
	Size int
}

// Limits are what a Machine knows of the path.
type Limits struct {
	// MTU is the largest packet in bytes that may be sent.
	MTU int
	// Whole is the largest packet that is known to arrive in one datagram; a larger one up to MTU is better sent such that
	// the network may fragment it. 0 if nothing is known.
	Whole int
	// Confirmed tells that MTU passes, as far as is known now.
	Confirmed bool
	// Answers tells that the peer knows the messages of this package.
	Answers bool
}

// Change is that of the largest packet, in bytes.
type Change struct{ From, To int }

// Machine is the search for the largest packet that reaches one peer. It begins with the largest that may be, and goes below only
// when that has been lost several times while smaller ones arrived: a peer that does not answer at all leaves it as it is.
// The zero Machine is not usable; see New.
type Machine struct {
	// Fixed by New.
	raiseGap time.Duration // longest

	max, mtu  int
	answers   bool
	confirmed bool // mtu was, and no attempt to confirm it again has failed since

	phase    phase
	trials   []trial // largest first
	attempt  int     // made
	deadline time.Time
	lo, hi   int
	from     int // the size before what is going on changed it
	change   Change

	again   bool      // verify as soon as possible, then raise
	anew    bool      // what is going on is of no use any more
	raising bool      // raise after having verified
	busy    bool      // there is a reason to verify when it is time
	began   time.Time // the last verification
	checkAt time.Time
	raiseAt time.Time
	gap     time.Duration // to the next raise
	quiet   time.Duration // to the next verification while nothing is answered

	lastID uint64
	sent   []sent
	rtt    time.Duration // of the last acknowledgement
	out    []Request     // memory
}

// trial is a size under test.
type trial struct {
	size    int
	sent    int
	acked   bool
	refused bool // by this host
}

type sent struct {
	id   uint64
	size int
	at   time.Time
}

// New makes a Machine for packets of at most maximum bytes. raise is the longest time between attempts to raise a size that is below.
func New(maximum int, raise time.Duration) *Machine {
	return &Machine{max: maximum, mtu: maximum, raiseGap: raise, gap: min(firstRaise, raise)}
}

// SetMax changes the largest packet that may be.
func (m *Machine) SetMax(maximum int) {
	if maximum == m.max {
		return
	}
	if m.mtu == m.max || m.mtu > maximum {
		m.confirmed = m.confirmed && m.mtu >= maximum
		m.mtu = maximum
	}
	m.max = maximum
	m.Restart()
}

// Restart makes the Machine begin anew with the next Tick, with what it knows: there is another key, or a reason to believe that the
// size is too small. A verification that goes on is continued.
func (m *Machine) Restart() { m.again, m.gap = true, min(firstRaise, m.raiseGap) }

// Forget is Restart when there is another path, or the present one has become narrower: no size is known to pass, and what is still acknowledged of
// what was sent before says nothing.
func (m *Machine) Forget() {
	m.Restart()
	m.anew, m.confirmed = true, false
	m.sent, m.trials = m.sent[:0], m.trials[:0]
}

// Move is Forget for another path, the largest packet on which is maximum. Where that is more than before, the size stays as it
// is until larger ones have been acknowledged, if the peer does acknowledge: packets of a size that was good so far do not vanish for a size that the path does not carry.
func (m *Machine) Move(maximum int) {
	if m.mtu > maximum || m.mtu == m.max && !m.answers {
		m.mtu = maximum
	}
	m.max = maximum
	m.Forget()
}

// Acked tells that a probe was acknowledged. It reports whether there was one, lately and not acknowledged before, and whether to
// Tick at once; what is merely as it was can wait.
func (m *Machine) Acked(id uint64, now time.Time) (ok, urgent bool) {
	at := slices.IndexFunc(m.sent, func(s sent) bool { return s.id == id })
	if at < 0 {
		return false, false
	}
	s := m.sent[at]
	m.sent = slices.Delete(m.sent, at, at+1)
	m.answers, m.quiet = true, 0
	m.rtt = now.Sub(s.at)
	if t := m.trial(s.size); t != nil {
		t.acked = true
		return true, m.phase != verify || m.attempt > 1 || m.raising && m.mtu < m.max || !m.confirmed
	}
	switch { // late
	case s.size > m.mtu:
		m.Restart()
	case s.size == m.mtu && m.phase == idle:
		m.confirmed = true
	}
	return true, true
}

// trial returns the one of that size, nil if there is none.
func (m *Machine) trial(size int) *trial {
	for i := range m.trials {
		if m.phase != idle && m.trials[i].size == size {
			return &m.trials[i]
		}
	}
	return nil
}

// Refused tells that this host does not send a probe of the size, because its link is too narrow. Tick at once.
func (m *Machine) Refused(size int) {
	for i := range m.trials {
		if t := &m.trials[i]; t.size >= size {
			t.refused = true
		}
	}
	m.deadline = time.Time{}
}

// Postponed tells that the probes of the last Tick could not leave just now, which says nothing of the path.
func (m *Machine) Postponed(now time.Time) {
	if m.phase != idle && m.attempt > 0 {
		m.attempt--
		m.deadline = now.Add(retryWait)
	}
}

// Tick returns the probes to be sent now, valid until the next call, and the time of the next Tick; zero if there is nothing to do
// before something else happens. busy tells that packets larger than Floor have been sent since the last Tick.
func (m *Machine) Tick(now time.Time, busy bool) ([]Request, time.Time) {
	m.busy = m.busy || busy
	if next := m.began.Add(leastWait); m.anew && now.Before(next) {
		return nil, next // that is often enough
	}
	for {
		if (m.phase == idle || m.again) && !m.begin(now) {
			if m.busy {
				return nil, m.checkAt
			}
			return nil, time.Time{}
		}
		m.widen()
		switch {
		case m.resolved():
			m.finish(now)
		case now.Before(m.deadline):
			return nil, m.deadline
		case m.attempt >= m.patience():
			m.finish(now)
		default:
			return m.fire(now), m.deadline
		}
	}
}

// begin starts a verification if there is a reason to.
func (m *Machine) begin(now time.Time) bool {
	if !m.again && (!m.busy || now.Before(m.checkAt)) {
		return false
	}
	if m.phase == verify && !m.anew && m.trials[0].size == m.mtu { // Restart, and nothing else is to be verified
		m.again, m.raising = false, true
		if !now.Before(m.began.Add(leastWait)) {
			m.began, m.attempt, m.deadline = now, 0, time.Time{}
		}
		return true
	}
	if m.phase != idle && m.phase != verify {
		m.settle(now)
	}
	m.raising = m.again || !now.Before(m.raiseAt)
	m.again, m.anew, m.busy = false, false, false
	m.began = now
	m.from = m.mtu
	m.start(verify, m.mtu)
	return true
}

func (m *Machine) start(p phase, all ...int) {
	m.phase, m.attempt, m.deadline = p, 0, time.Time{}
	m.trials = m.trials[:0]
	for _, s := range all {
		m.trials = append(m.trials, trial{size: s})
	}
}

// widen adds smaller sizes to a verification of which the first attempt was in vain.
func (m *Machine) widen() {
	if m.phase != verify || len(m.trials) > 1 || m.trials[0].acked || m.attempt == 0 && !m.trials[0].refused {
		return
	}
	for _, s := range sizes() {
		if s < m.mtu {
			m.trials = append(m.trials, trial{size: s})
		}
	}
}

// passed returns the largest size that was acknowledged, 0 if none was.
func (m *Machine) passed() int {
	for _, t := range m.trials {
		if t.acked {
			return t.size
		}
	}
	return 0
}

// failed returns the smallest trial that is larger than size, 0 if there is none.
func (m *Machine) failed(size int) (least int) {
	for _, t := range m.trials {
		if t.size > size {
			least = t.size
		}
	}
	return least
}

// resolved tells that no answer could tell more: all sizes above the largest that passes have been refused.
func (m *Machine) resolved() bool {
	for _, t := range m.trials {
		if t.acked {
			return true
		}
		if !t.refused {
			return false
		}
	}
	return true
}

// patience returns how many attempts are to be made.
func (m *Machine) patience() int {
	few, many := refineAttempts, refineLossy
	if m.phase == verify {
		few, many = verifyAttempts, verifyLossy
	}
	best := m.passed()
	for _, t := range m.trials {
		if best > 0 && t.size < best && t.sent > 0 && !t.acked {
			return many
		}
	}
	return few
}

// fire makes an attempt for every size of which more could be learned.
func (m *Machine) fire(now time.Time) []Request {
	m.sent = slices.DeleteFunc(m.sent, func(s sent) bool { return now.Sub(s.at) > rememberFor })
	m.out = m.out[:0]
	best := m.passed()
	for i := range m.trials {
		t := &m.trials[i]
		if t.refused || t.size <= best {
			continue
		}
		t.sent++
		m.lastID++
		m.out = append(m.out, Request{ID: m.lastID, Size: t.size})
		m.sent = append(m.sent, sent{id: m.lastID, size: t.size, at: now})
	}
	if over := len(m.sent) - remembered; over > 0 {
		m.sent = slices.Delete(m.sent, 0, over)
	}
	m.attempt++
	m.deadline = now.Add(min(max(2*m.rtt, leastWait), mostWait))
	return m.out
}

// finish draws the conclusion from the trials and goes on to what follows.
func (m *Machine) finish(now time.Time) {
	best := m.passed()
	switch {
	case m.phase == verify && best == 0:
		m.silent(now)
	case m.phase == verify:
		m.verified(now, best)
	case m.phase == raise && best == 0:
		m.gap = min(2*m.gap, m.raiseGap)
		m.settle(now)
	default:
		if hi := m.failed(max(best, m.lo)); hi > 0 {
			m.hi = hi
		} else if m.phase == raise {
			m.hi = best + 1 // all passed
		}
		m.lo = max(best, m.lo)
		m.mtu = m.lo
		m.narrow(now)
	}
}

// silent ends a verification without any answer: the peer may be gone, or never have known what a probe is. The size is not the reason.
func (m *Machine) silent(now time.Time) {
	most := mostQuiet
	if !m.answers {
		most = muteQuiet
	}
	m.quiet = min(max(2*m.quiet, checkGap), most)
	m.phase, m.checkAt = idle, now.Add(m.quiet)
}

// verified ends a verification in which best was the largest size that passed.
func (m *Machine) verified(now time.Time, best int) {
	m.confirmed = true
	m.lo = best
	if best == m.mtu {
		m.hi = best + 1
		if m.raising && m.mtu < m.max {
			m.raise()
			return
		}
		m.settle(now)
		return
	}
	m.hi = m.failed(best)
	m.mtu = best
	m.gap = min(firstRaise, m.raiseGap)
	m.narrow(now)
}

// raise tries larger sizes.
func (m *Machine) raise() {
	all := []int{m.max}
	for _, s := range sizes() {
		if s < m.max && s > m.mtu {
			all = append(all, s)
		}
	}
	if least := m.mtu&^(step-1) + step; least < all[len(all)-1] {
		all = append(all, least)
	}
	m.start(raise, all...)
}

// narrow tries the sizes between lo and hi, or ends the search if there is none.
func (m *Machine) narrow(now time.Time) {
	first := m.lo&^(step-1) + step
	n := (m.hi - first + step - 1) / step // how many there are
	if n <= 0 {
		m.settle(now)
		return
	}
	width := min(n, refineWidth)
	var all []int
	for i := width - 1; i >= 0; i-- {
		all = append(all, first+i*n/width*step)
	}
	m.start(refine, all...)
}

// settle ends whatever goes on.
func (m *Machine) settle(now time.Time) {
	if m.phase != verify || m.from != m.mtu {
		m.raiseAt = now.Add(m.gap)
	}
	m.phase = idle
	m.checkAt = m.began.Add(checkGap)
	if m.from != m.mtu {
		m.change = Change{From: m.from, To: m.mtu}
		m.from = m.mtu
	}
}

// Changed returns the change that the last search has led to, once; ok is false if there is none.
func (m *Machine) Changed() (c Change, ok bool) {
	c, m.change = m.change, Change{}
	return c, c != Change{}
}

// Limits returns what is known now.
func (m *Machine) Limits() Limits {
	l := Limits{MTU: m.mtu, Answers: m.answers, Confirmed: m.confirmed && !m.doubtful()}
	switch {
	case l.Confirmed:
		l.Whole = m.mtu
	case m.phase == verify:
		l.Whole = m.passed()
	}
	return l
}

// doubtful tells that attempts to confirm the size have failed.
func (m *Machine) doubtful() bool {
	if m.phase == verify {
		return len(m.trials) > 1 && !m.trials[0].acked
	}
	return m.phase == idle && m.quiet > 0
}
