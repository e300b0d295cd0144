// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
	"github.com/weftnet/weft/policy/filter"
)

const (
	// gap is the shortest time between two commits for which nobody waits.
	gap = 20 * time.Millisecond
	// firstRetry and lastRetry bound the time after which something is tried again with the kernel.
	firstRetry, lastRetry = 100 * time.Millisecond, 5 * time.Second
	// restoreLook is how often it is looked whether the kernel still has what an earlier run gave it, as long as it has nothing newer.
	restoreLook = time.Second
	// catchUp is how long a source that follows again may take to tell what it has missed.
	catchUp = time.Second
)

// Kernel is what judges connections, *filter.Filter or one made up by a test. Run may be called beside the other methods, which are called by one
// goroutine, but for Counters.
type Kernel interface {
	// Present tells whether it judges connections, by what it has from an earlier run perhaps.
	Present() (bool, error)
	// Replace gives it the whole state. What it has of it stays as it is, and in no moment is anything open that is closed before and afterwards. It
	// does not keep s.
	Replace(s *compile.State) error
	// Update changes what it has. After an error it may have a part of that, and Replace has to follow. It does not change d.
	Update(d compile.Delta) error
	// Remove takes away all that it has.
	Remove() error
	// Support is why it cannot judge connections at all, and what to do about it; nil if it can.
	Support() error
	// Run keeps it as it was told to be, whoever changes it, until ctx ends.
	Run(ctx context.Context) error
	// Health returns a channel of how Run fares, when that changes, and whenever it fails again to keep what it was told to be. Only the Enforcer reads it.
	Health() <-chan filter.Health
	// Counters are how many connections policies have allowed and denied. Those are its own maps.
	Counters() (map[policy.PolicyKey]Count, error)
	// Denials returns what is denied, until ctx ends and the channel is closed.
	Denials(ctx context.Context) <-chan Denial
}

// Count is a number of connections.
type Count = filter.Count

// Denial is a connection that was denied.
type Denial = filter.Denial

// Compiler is what makes states of objects, and keeps these: *compile.Compiler.
type Compiler interface {
	Changes
	World() *policy.World
	Commit() compile.Delta
	// State returns what was committed, which is the caller's. It costs as much as there is.
	State() *compile.State
	// Problems are what it denies, as it is too much, a line each.
	Problems() []string
}

// Config is what New needs.
type Config struct {
	Node     string // name of this node, as endpoints and nodes have it
	Kernel   Kernel
	Compiler Compiler
	// File is where the state in force is kept, below a directory that is there, and Boot what tells one boot of the host from another.
	File, Boot string
	// Namespaces says that the source tells every namespace that there is: what is in one that it has not told yet is not admitted.
	Namespaces bool
	// Note makes an event. It does not block.
	Note func(text, cause string)
	// Changed is called, if it is set, when what could not be put in force is. It does not block.
	Changed func()
	// InForce is called, if it is set, with true when the kernel has all that it should have in this run, and cuts what it should, and with false when that is not known any more. It
	// does not block.
	InForce func(is bool)
	Log     *zap.Logger
}

// Enforcer is the network policies of one node, at work. Its methods may be called concurrently; Run is called once.
type Enforcer struct {
	cfg   Config
	wake  chan struct{} // capacity 1: there is something to do
	inUse chan struct{} // closed when the kernel has got something
	ended chan struct{} // closed when Run has
	seen  *seen

	mu      sync.Mutex // held for moments only
	pending *batch
	synced  bool
	begun   bool
	awaits  string
	busy    bool      // changes were taken that the kernel has not got yet
	behind  string    // what the source cannot follow; empty: it follows all
	caught  time.Time // when it has told what there was meanwhile; zero: it has
	status  Status
	ill     error // what was heard of the kernel: it has not what it should have; nil: nothing new
	sound   bool  // the kernel has taken what it should have, in this run

	telling sync.Mutex // held while InForce is called, before mu
	inForce bool       // what was told last

	model    sync.RWMutex // the one goroutine of Run changes what follows
	compiler Compiler
	world    *policy.World // its objects
	beyond   []string      // its problems

	// Of Run's goroutine.
	dir       *directory
	sides     map[compile.Side]compile.TableID // in force, or to be
	waiting   []*waiter
	settling  []chan<- struct{}   // closed when all that was told so far is in force
	committed bool                // the kernel's state is of this run, or was tried to be
	whole     bool                // Replace has to follow
	bare      bool                // the kernel has nothing
	failure   error               // why it has not what it should have
	took      bool                // it has had all that it should have, in this run
	restored  bool                // it was given what an earlier run has kept
	late      map[netip.Addr]bool // of what it may have something else since it fails
	lack      error               // why it cannot, and what to do about it; nil: another try may succeed
	patience  time.Duration
	retryAt   time.Time
	restGone  error     // why what an earlier run has left could not be put back
	nextAt    time.Time // of the next commit for which nobody waits
	policies  int
	saver     *saver
	earlier   saved
}

// Status says how it is with the policies.
type Status struct {
	Awaits   string // what is awaited before anything is put in force; empty: nothing
	Failure  string // why what should be in force is not; empty: it is
	Uncut    string // why connections that are not allowed any more go on; empty: they are cut
	Policies int    // that there are
	Subjects int    // workloads of this node, or addresses of them, of which they say something
	Pending  bool   // there are changes that are not in force yet
}

// New makes an Enforcer, which does nothing before Run.
func New(c Config) *Enforcer {
	e := &Enforcer{
		cfg: c, wake: make(chan struct{}, 1), inUse: make(chan struct{}), ended: make(chan struct{}), seen: newSeen(), pending: newBatch(), awaits: "the network policies",
		compiler: c.Compiler, world: c.Compiler.World(), dir: newDirectory(c.Node, c.Compiler.World(), c.Compiler), sides: map[compile.Side]compile.TableID{}, whole: true,
	}
	e.status.Awaits = e.awaits
	e.dir.spaces.all = c.Namespaces
	e.saver = newSaver(c.File, c.Boot, c.Log)
	return e
}

// Change has f put changes into a batch, which is made as a whole, and soon. It does not wait for that.
func (e *Enforcer) Change(f func(c Changes)) {
	b := newBatch()
	f(b)
	e.submit(b)
}

// ChangeOwned is Change and SetOwners as one: what f tells of other nodes' endpoints is judged by these owners, who know the nodes by the names that f tells.
// Nil owners are those of before.
func (e *Enforcer) ChangeOwned(o Owners, f func(c Changes)) {
	b := newBatch()
	b.owners = o
	f(b)
	e.submit(b)
}

// SetHosts says which addresses nodes have besides those that a source tells of them, by name: all nodes at once.
func (e *Enforcer) SetHosts(hosts map[string][]netip.Addr) {
	b := newBatch()
	b.hosts = hosts
	e.submit(b)
}

// Owners tells whether a workload of a node may have an address, as far as is known. It is called by one goroutine, and does not block.
type Owners func(node string, a netip.Addr) bool

// SetOwners says whose the addresses are. What a source tells of another node's endpoint counts only as far as its node may have the address: whoever can tell of
// endpoints of one node cannot give the addresses of another one's their labels. An address that is told before it is known to be its node's is held back until then;
// what was told before anything was known of owners is looked at again.
// Whoever has taken over an address has it by telling so.
func (e *Enforcer) SetOwners(o Owners) {
	b := newBatch()
	b.owners = o
	e.submit(b)
}

// Settled waits until all that was told so far is in force on this node, or ctx ends; then it says why it is not.
func (e *Enforcer) Settled(ctx context.Context) error {
	done := make(chan struct{})
	b := newBatch()
	b.settles = append(b.settles, done)
	e.submit(b)
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	case <-e.ended:
		return errEnded
	}
	switch s := e.Status(); {
	case s.Awaits != "":
		return errors.New("waiting for " + s.Awaits)
	case s.Failure != "":
		return errors.New(s.Failure)
	}
	return errors.New("the packet filter takes its time")
}

// Synced says that the source has told all that there was.
func (e *Enforcer) Synced() {
	e.mu.Lock()
	e.synced = true
	e.mu.Unlock()
	e.raise()
}

// Awaits says what the source waits for, to whoever is held up by that. It follows "waiting for ".
func (e *Enforcer) Awaits(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.awaits = what
	if !e.synced {
		e.status.Awaits = what
	}
}

// Behind says what the source cannot follow since it has told all that there was, to whoever is held up by that; empty: it follows all again. It
// follows "waiting for ". What is in force stays, and changes with what is followed, but nothing new is admitted.
func (e *Enforcer) Behind(what string) {
	e.mu.Lock()
	if what == "" && e.behind != "" {
		e.caught = time.Now().Add(catchUp)
	}
	e.behind = what
	if e.synced {
		e.status.Awaits = what
	}
	e.mu.Unlock()
	e.raise()
}

// lags says what is awaited of the source before anything new is admitted; empty: nothing.
func (e *Enforcer) lags() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.behind != "":
		return e.behind
	case time.Now().Before(e.caught):
		return "what has changed while not all could be followed"
	}
	e.caught = time.Time{}
	return ""
}

// Begin says what this node had attached before: all that was not dismissed in earlier runs. It is called once.
func (e *Enforcer) Begin(locals []Local) {
	b := newBatch()
	for _, l := range locals {
		b.locals = append(b.locals, localChange{bind: &l, old: true})
	}
	e.mu.Lock()
	e.pending.add(b)
	e.begun = true
	e.mu.Unlock()
	e.raise()
}

func (e *Enforcer) submit(b *batch) {
	if b.empty() {
		return
	}
	e.mu.Lock()
	e.pending.add(b)
	e.mu.Unlock()
	e.raise()
}

func (e *Enforcer) raise() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Run puts policies in force until ctx ends, and leaves the kernel as it is then.
func (e *Enforcer) Run(ctx context.Context) {
	defer close(e.ended)
	var beside sync.WaitGroup
	defer beside.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	beside.Go(func() { e.guard(ctx) })
	beside.Go(func() { e.watch(ctx) })
	beside.Go(func() { e.heed(ctx) })
	saving := make(chan struct{})
	go func() {
		defer close(saving)
		e.saver.run()
	}()
	defer func() {
		e.save(true)
		e.saver.close()
		<-saving
	}()

	e.recall()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		again := e.step()
		if again > 0 {
			timer.Reset(again)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		case <-timer.C:
		}
	}
}

// guard has the kernel kept as it was told to be, from when it is told anything.
func (e *Enforcer) guard(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-e.inUse:
	}
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		begun := time.Now()
		err := e.cfg.Kernel.Run(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > lastRetry {
			wait = firstRetry
		}
		e.cfg.Log.Warn("the packet filter of network policies is not watched; trying again", zap.Error(err), zap.Duration("after", wait))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
