// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy/compile"
)

const (
	// Table is the nftables table of family inet that holds all that this package makes, but for [CutTable].
	Table = "weft-policy"
	// DefaultGroup is the group of nflog to which denied packets go.
	DefaultGroup = 6783
)

// Config is what a Filter needs to know.
type Config struct {
	Log *zap.Logger // nil: nothing is logged
	// NetNS is a descriptor of the network namespace to enforce in, which stays open as long as the Filter is used; 0 is that of the process.
	NetNS int
	// Group is that of nflog by which the kernel tells of denied packets, 0 is DefaultGroup. Nobody else may listen to it.
	Group uint16
	// Repaired is called with a line for each thing that somebody else had changed and that was put right. It may be nil, and must not call the Filter.
	Repaired func(lines []string)
	// Calm is for how long after New no connection is cut: whoever has just started may still have to hear what allows them. What is denied is denied.
	Calm time.Duration
	// Changed is called after every transaction by which packets are judged another way, whatever it is for and even if it has failed, and after connections
	// were cut: for who takes packets around the rules by what these have let pass. It may be nil, does not block, and must not call the Filter.
	Changed func()
}

// A Filter makes the kernel enforce states. See the package's comment.
type Filter struct {
	config Config
	calm   time.Time // when connections may be cut
	log    *zap.Logger

	mu       sync.Mutex
	conn     *conn
	model    *model // nil before the first Replace
	phase    string // copy that judges, "" if there is no table
	layout   layout
	digest   digest
	dirty    bool          // the kernel has something else than the model
	graced   chan struct{} // closed when no packet is judged any more by what was before the last transaction; nil before the first one
	distrust bool          // somebody has changed what is not read
	sent     uint64        // transactions
	quiet    bool          // the kernel cannot tell of denied packets
	stood    bool          // there may be a standby, of an earlier run perhaps
	tallies

	generation uint32 // of nftables, when it was last looked at
	denials    denials
	tampered   atomic.Bool   // somebody has changed elements of the bulk
	inherited  chan struct{} // the bulk was taken over unread
	changed    chan struct{} // a state is in force: connections may have to be cut
	health     condition
}

// New returns a Filter that has changed nothing yet. [Filter.Close] ends it.
func New(c Config) (*Filter, error) {
	if c.Group == 0 {
		c.Group = DefaultGroup
	}
	f := &Filter{config: c, calm: time.Now().Add(c.Calm), log: c.Log, changed: make(chan struct{}, 1), health: condition{news: make(chan Health, 1)}, inherited: make(chan struct{}, 1), stood: true}
	if f.log == nil {
		f.log = zap.NewNop()
	}
	var err error
	if f.conn, err = dial(c.NetNS, unix.NETLINK_NETFILTER, 0); err != nil {
		return nil, fmt.Errorf("network policy: %w; use a kernel with CONFIG_NETFILTER_NETLINK", err)
	}
	f.conn.committed = f.judgedAnew
	return f, nil
}

// Close frees what the Filter holds in the process. The kernel goes on to enforce.
func (f *Filter) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wait()
	f.conn.close()
}

// Replace makes the kernel enforce a state, of which it keeps nothing, instead of whatever it has: at once, for all packets. If the kernel has
// it already, even from an earlier run of the program, nothing is touched. A state without sides is no table at all. On error the kernel
// has what it had.
func (f *Filter) Replace(s *compile.State) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	for range 3 { // somebody may change the table between the look and the transaction
		var have *contents
		if have, err = f.conn.look(Table, small); err != nil {
			return failed(err)
		}
		var m *model
		if m, err = build(s, adopt(s, have)); err != nil {
			return err
		}
		if err = f.put(m, have); err == nil || !passing(err) {
			return err
		}
	}
	return err
}

// Update makes the kernel enforce the state that the change makes of the last one, touching the elements alone that differ. On error the kernel
// has what it had, and the caller gives the whole by Replace.
func (f *Filter) Update(d compile.Delta) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.model == nil {
		return errors.New("network policy: there is nothing to change yet; give the whole state first")
	}
	if err := f.model.check(d); err != nil {
		return err
	}
	e := newEdit()
	f.model.apply(d, e)
	if err := f.model.fits(); err != nil {
		f.keep()
		f.model, f.seen = nil, nil // it makes no sense any more
		return err
	}
	l := f.model.layout(f.config.Group, f.quiet)
	if f.dirty || f.model.empty() || f.phase == "" || l != f.layout {
		return f.sync()
	}
	if e.empty() {
		return nil
	}
	if err := f.commit(e); err != nil {
		if errors.Is(err, unix.ENFILE) {
			f.distrust = true // the table is made anew, with more room
			return f.sync()
		}
		return err
	}
	return f.sweep()
}

// Remove removes the table: everything is open.
func (f *Filter) Remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	have, err := f.conn.look(Table, skeleton)
	if err != nil {
		return failed(err)
	}
	return errors.Join(f.put(newModel(newNumbers()), have), f.unbar())
}

// sync makes the kernel have the model, whatever it has.
func (f *Filter) sync() error {
	var err error
	for range 3 {
		var have *contents
		if have, err = f.conn.look(Table, small); err != nil {
			f.dirty = true
			return failed(err)
		}
		if err = f.put(f.model, have); err == nil || !passing(err) {
			break
		}
		f.distrust = f.distrust || errors.Is(err, unix.ENFILE) // a set is full: the table is made anew
	}
	f.dirty = err != nil
	return err
}

// put makes the kernel have a model instead of what it has.
func (f *Filter) put(m *model, have *contents) error {
	if have != nil && f.model != nil {
		f.seen = have.counts
	}
	l, d := m.layout(f.config.Group, f.quiet), m.digest()
	alike, read := false, false
	var rules []string
	if !m.empty() {
		rules = l.describe()
		d.rules = fingerprint(rules)
		alike, read = f.alike(have, rules, d)
	}
	var b buffer
	now := ""
	switch {
	case m.empty() && have == nil:
		f.take(m, nil)
		f.phase, f.dirty = "", false
		return f.stepDown()
	case m.empty():
		b.composeRemoval(Table, have)
		have = nil
	case alike:
		if !read && (f.model == nil || f.phase == "") { // what this run has made, others do not change unheard
			f.adopted()
		}
		e := m.difference(have, read)
		same := slices.Equal(have.skeleton, rules)
		if same && e.empty() && have.digest == d.String() && have.judged == d.judged() {
			f.take(m, have)
			f.phase, f.layout, f.digest, f.dirty = have.phase, l, d, false
			return f.stepDown()
		}
		if !same {
			b.composeNewRules(Table, have, l)
		}
		e.compose(&b, Table)
		now = other(have.phase)
		b.composePhase(Table, have.phase, now, d)
	default:
		if err := f.renew(m, l, d, have); err != nil {
			return err
		}
		now, have = copies()[0], nil
	}
	if len(b) > 0 {
		if err := f.send(b); err != nil {
			return err
		}
	}
	f.take(m, have)
	f.phase, f.layout, f.digest, f.dirty = now, l, d, false
	return f.stepDown()
}

// take makes m the model. Have is what the kernel had before, nil if its counters begin anew.
func (f *Filter) take(m *model, have *contents) {
	f.keep()
	f.model, f.seen, f.base, f.distrust = m, nil, map[uint32]uint64{}, false
	f.news()
	if have != nil {
		f.seen = have.counts
		maps.Copy(f.base, have.counts)
	}
}

// alike says whether what the kernel has becomes the model by changes of rules and elements, and whether the bulk of the elements has been read for
// that. If it has not, it is as it should be.
func (f *Filter) alike(have *contents, rules []string, d digest) (alike, read bool) {
	switch {
	case have == nil || have.phase == "" || f.distrust || len(have.broken) > 0 || !sameBut(have.skeleton, rules):
		return false, false
	case d.count > readable:
		return have.digest == d.String(), false
	}
	for _, k := range have.sets {
		if bulk(k.name) && f.conn.readElements(Table, k, have) != nil {
			return false, false
		}
	}
	return len(have.broken) == 0, true
}

// commit makes a change, which the other copy of the rules judges by.
func (f *Filter) commit(e *edit) error {
	now, d := other(f.phase), f.digest.after(e)
	var b buffer
	e.compose(&b, Table)
	b.composePhase(Table, f.phase, now, d)
	if err := f.send(b); err != nil {
		f.dirty = true
		return err
	}
	f.phase, f.digest = now, d
	return nil
}

// send carries out a transaction on the table, which stays as it was if that fails.
func (f *Filter) send(b buffer) error {
	if err := f.transact(b); err != nil {
		return failed(err)
	}
	return nil
}

// transact carries out a transaction. A packet that is being judged must not see two of them; the wait for that is before the next one.
func (f *Filter) transact(b buffer) error {
	f.wait()
	f.sent++
	before, known := f.current()
	err := f.conn.commit(b)
	graced := make(chan struct{})
	f.graced = graced
	go func() { // ends soon, at the latest with Close
		defer close(graced)
		grace()
	}()
	if err != nil {
		return err
	}
	// If it is the only transaction since nftables were last looked at, nobody else has changed anything. Otherwise the next look is not spared.
	if after, ok := f.current(); known && ok && before == f.generation && after == before+1 {
		f.generation = after
	}
	f.news()
	return nil
}

// judgedAnew tells that packets may be judged another way than before.
func (f *Filter) judgedAnew() {
	if f.config.Changed != nil {
		f.config.Changed()
	}
}

// wait waits until no packet is judged any more by what was before the last transaction.
func (f *Filter) wait() {
	if f.graced != nil {
		<-f.graced
	}
}

// news has connections looked through.
func (f *Filter) news() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// failed says that the table could not be changed, which is as it was, and what to do.
func failed(err error) error { return unmade(Table, "which stays as it was", err) }

// unmade says which table could not be made or changed, what there is now, and what to do.
func unmade(table, now string, err error) error {
	hint := "is it changed by somebody else all the time? the next attempt follows"
	switch {
	case errors.Is(err, unix.EPERM):
		hint = "CAP_NET_ADMIN is needed"
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOBUFS):
		hint = "the host is short of memory"
	case lacks(err):
		hint = "the kernel may lack what network policies need: weft status tells"
	}
	return fmt.Errorf("network policy: programming nftables table inet %s, %s: %w; %s", table, now, err, hint)
}

// passing says whether an error is of a race with somebody else.
func passing(err error) bool {
	return errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY)
}

// lacks says whether an error is how the kernel says that it does not have something.
func lacks(err error) bool {
	return slices.ContainsFunc([]error{unix.EOPNOTSUPP, unix.EINVAL, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ENOSYS},
		func(e error) bool { return errors.Is(err, e) })
}
