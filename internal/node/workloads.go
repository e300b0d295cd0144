// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/internal/fault"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/netns"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/ipam"
)

// hostOwner is the owner of the host's own addresses on the overlay. No
// workload's ID looks like it.
const hostOwner = "host"

// stateRetired is that of the workloads of a node that was declared gone.
const stateRetired = "off the network: this node is retired"

// attachPatience bounds how long an attach waits for other nodes to give
// addresses, when there is none left here.
const attachPatience = 15 * time.Second

// hostNetwork is what the node needs of the host's network stack.
type hostNetwork interface {
	Plan(hostnet.Desired, hostnet.Changes) (hostnet.Changes, error)
	Apply(hostnet.Desired, hostnet.Changes) (hostnet.Result, error)
	Attach(hostnet.Workload) (hostnet.Attached, error)
	Settle(hostnet.Workload) error
	Detach(hostnet.Workload) error
	Missing([]hostnet.Workload) ([]string, error)
	Check(hostnet.Workload) error
	Remove(hostnet.Changes) ([]string, error)
	Close()
	plainHost
}

// workloads keeps the attached namespaces: their addresses together with their
// record in the store, in one commit, and their interfaces, in this order when
// attaching and in the opposite order when detaching. What a crash leaves in
// between, reconcile puts right.
// It is safe for concurrent use.
type workloads struct {
	st      *store.Store
	host    hostNetwork
	alloc   *ipam.Allocator
	space   ipam.Universe
	netnsAt func(path string) (netns.ID, error)
	ownNS   netns.ID
	boot    string
	kept    func(owner string) bool // by others than workloads
	now     func() time.Time
	uptime  func() time.Duration // as cni.Uptime
	log     *zap.Logger
	mending signal // reconcile is due
	known   signal // policies may have to know workloads otherwise: those that are altered
	guided  bool   // policies know workloads by their pods

	policies *enforce.Enforcer // nil: there are none
	podsTold bool              // by the guide, to the policies
	node     string            // name of this node

	// gate lets reconcile, which removes what it does not know, run alone.
	gate sync.RWMutex
	// ruling lets what may enter and leave in plaintext change only while nothing older is being applied.
	ruling sync.Mutex
	lock   keyedMutex

	mu       sync.Mutex
	all      map[string]workload
	state    map[string]string          // ID -> what is wrong, absent: nothing
	altered  map[string]bool            // by ID: those that have come, gone or changed since takeAltered; nil: nobody asks
	coming   map[string]*arrival        // by ID, one attach each, by lock
	finished uint64                     // attaches
	deleted  map[deletion]time.Duration // when what runtimes have deleted last was asked for, see cniorder.go
	tidied   time.Duration              // when deleted was
	desired  hostnet.Desired            // without the workloads
	changes  hostnet.Changes
	notes    []string
	roomy    int      // MTU of workloads where packets leave by the kernel; 0: that of the device
	repaired []string // what others had changed, and nobody has been told yet
	refusal  error    // why nothing new is attached; nil: it is
	disorder error    // why the last apply could not bring the host's network into order
	retired  bool     // nothing is on the network any more, see retire.go
}

// reconcile brings the host into the desired state: whoever changed it, and
// however the last process ended. Workloads whose namespace is gone are
// forgotten, those that lost their interface get it again. undone is what could not be tidied up, on which nothing else
// depends. What the policies say of interfaces that are to be made anew is asked in between, while others attach and detach.
func (ws *workloads) reconcile() (undone, err error) {
	unasked, undone, err := ws.pass(nil)
	if err == nil && len(unasked) > 0 {
		if unasked, undone, err = ws.pass(ws.repermit(unasked)); len(unasked) > 0 {
			ws.mending.raise()
		}
	}
	return undone, err
}

// pass is one attempt to do so, with what policies say of workloads that were found to lack their interfaces before. unasked are those of which that is not known.
func (ws *workloads) pass(given permits) (unasked []string, undone, err error) {
	ws.gate.Lock()
	defer ws.gate.Unlock()
	undone = ws.forgetLastBoot()
	var strays []string
	for _, l := range ws.strays() {
		ws.log.Info("address without workload released", zap.String("owner", l.Owner))
		strays = append(strays, l.Owner)
	}
	undone = errors.Join(undone, failures("releasing addresses without workload", ws.release(strays)))
	fault.Point("reconcile-released")
	res, err := ws.apply()
	if err != nil {
		return nil, undone, err
	}
	fault.Point("reconcile-applied")
	if ws.isRetired() {
		ws.unpermit(ws.ids()...)
	}
	var gone []workload
	for _, id := range res.Missing {
		w, ok := ws.get(id)
		if !ok || w.Boot != ws.boot || ws.expected(id) { // that was tried above, or is being attached
			continue
		}
		lease, ok := ws.alloc.Lookup(id)
		orphan, oerr := ws.orphan(w)
		if ok && oerr != nil {
			ws.setState(id, oerr)
			undone = errors.Join(undone, oerr)
			continue
		}
		if !ok || orphan {
			ws.log.Info("workload whose namespace is gone forgotten", zap.String("workload", id), zap.String("netns", w.Netns))
			gone = append(gone, w)
			continue
		}
		asked, aerr := ws.allow(given, id, lease)
		if !asked {
			unasked = append(unasked, id)
			continue
		}
		if aerr == nil {
			_, aerr = ws.host.Attach(onHost(w, lease))
		}
		ws.setState(id, aerr)
		if aerr != nil {
			ws.log.Warn("workload could not be attached again", zap.String("workload", id), zap.Error(aerr))
			continue
		}
		ws.log.Info("workload attached again: its interface was gone", zap.String("workload", id))
	}
	return unasked, errors.Join(undone, failures("forgetting workloads whose namespaces are gone", ws.forgetAll(gone))), nil
}

// apply hands the whole desired state to the host. What that changes on it is
// saved first, so that reset can restore it after a crash as well. The caller
// has the gate.
func (ws *workloads) apply() (res hostnet.Result, err error) {
	ws.ruling.Lock()
	defer ws.ruling.Unlock()
	defer func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		ws.disorder = err
	}()
	ws.mu.Lock()
	d, before, retired := ws.desired, ws.changes, ws.retired
	ws.mu.Unlock()
	if retired {
		d.Addrs = nil
	}
	for _, w := range ws.list() {
		if lease, ok := ws.alloc.Lookup(w.ID); ok && !retired {
			d.Workloads = append(d.Workloads, onHost(w, lease))
		}
	}
	planned, err := ws.host.Plan(d, before)
	if err == nil {
		err = saveChanges(ws.st, planned)
	}
	if err != nil {
		return hostnet.Result{}, err
	}
	if res, err = ws.host.Apply(d, before); err != nil {
		return res, err
	}
	if err := saveChanges(ws.st, res.Changes); err != nil {
		return res, err
	}
	ws.mu.Lock()
	ws.changes, ws.notes = res.Changes, res.Warnings
	ws.repaired = append(ws.repaired, res.Repaired...)
	ws.mu.Unlock()
	return res, nil
}

// setDesired sets what reconcile aims at, workloads aside.
func (ws *workloads) setDesired(d hostnet.Desired, roomy int) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	d.Plain, d.Loose = ws.desired.Plain, ws.desired.Loose
	ws.roomy = roomy
	ws.desired = d
}

// setPlain sets what may enter and leave in plaintext, by kernel paths, and by which devices packets come in that the kernel would route
// another way. The latter takes effect at the next reconcile.
func (ws *workloads) setPlain(p hostnet.Plaintext, loose []string) error {
	ws.ruling.Lock()
	defer ws.ruling.Unlock()
	ws.mu.Lock()
	begun := ws.desired.Device != ""
	news := !slices.Equal(ws.desired.Loose, loose)
	ws.desired.Plain, ws.desired.Loose = p, loose
	ws.mu.Unlock()
	if !begun {
		return nil
	}
	if news {
		ws.mending.raise()
	}
	return ws.host.SetPlain(p)
}

// tighten gives back now what setPlain has let be loosened, and the next reconcile would.
func (ws *workloads) tighten() error {
	ws.ruling.Lock()
	defer ws.ruling.Unlock()
	before := ws.changed()
	after, err := ws.host.Tighten(before)
	if len(after.Sysctls) == len(before.Sysctls) {
		return err
	}
	ws.mu.Lock()
	ws.changes = after
	ws.mu.Unlock()
	return errors.Join(err, saveChanges(ws.st, after))
}

// mtu is that of new workloads.
func (ws *workloads) mtu() int {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return cmp.Or(ws.roomy, ws.desired.MTU)
}

// takeRepaired returns what others had changed and reconcile has put right, once.
func (ws *workloads) takeRepaired() []string {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	list := ws.repaired
	ws.repaired = nil
	return list
}

// changed is what was changed on the host that does not bear Weft's mark.
func (ws *workloads) changed() hostnet.Changes {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.changes
}

// disordered is why the host's network could not be brought into order.
func (ws *workloads) disordered() error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.disorder
}

func (ws *workloads) warnings() []string {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return slices.Clone(ws.notes)
}

func (ws *workloads) get(id string) (workload, bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w, ok := ws.all[id]
	return w, ok
}

func (ws *workloads) put(w workload) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.finished++
	w.finished, w.done = ws.finished, ws.uptime()
	ws.all[w.ID] = w
	delete(ws.state, w.ID)
	ws.alter(w.ID)
}

// alter takes down that something may have to be told of a workload. The caller has mu.
func (ws *workloads) alter(id string) {
	if ws.altered != nil {
		ws.altered[id] = true
	}
	ws.known.raise()
}

// takeAltered returns the IDs of the workloads that have come, gone or changed since it was called last.
func (ws *workloads) takeAltered() []string {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ids := slices.Collect(maps.Keys(ws.altered))
	ws.altered = map[string]bool{}
	return ids
}

func (ws *workloads) setState(id string, err error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if err != nil {
		ws.state[id] = err.Error()
	} else {
		delete(ws.state, id)
	}
}

func (ws *workloads) list() []workload {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return slices.SortedFunc(maps.Values(ws.all), func(a, b workload) int {
		return cmp.Or(a.Attached.Compare(b.Attached), strings.Compare(a.ID, b.ID))
	})
}

// unsorted returns all, in any order.
func (ws *workloads) unsorted() []workload {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return slices.Collect(maps.Values(ws.all))
}

// describe is what the user sees of w.
func (ws *workloads) describe(w workload) api.Workload {
	lease, _ := ws.alloc.Lookup(w.ID)
	a := api.Workload{
		ID: w.ID, Netns: w.Netns, IfName: w.IfName, HostIf: hostnet.HostIf(w.ID),
		Addresses: addresses(lease), MTU: w.MTU, Attached: w.Attached, State: "up", CNI: w.CNI.describe(),
	}
	if w.AddressesOnly {
		a.HostIf, a.AddressesOnly = "", true
	}
	if !ws.guided {
		a.Policy = w.identity()
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if s, ok := ws.state[w.ID]; ok {
		a.State = s
	}
	if ws.retired {
		a.State = stateRetired
	}
	return a
}

// addresses lists the lease's addresses, v4 first.
func addresses(l ipam.Lease) []netip.Addr {
	a := []netip.Addr{}
	if l.V4.IsValid() {
		a = append(a, l.V4)
	}
	if l.V6.IsValid() {
		a = append(a, l.V6)
	}
	return a
}

// keyedMutex is a mutex for each key that is in use. The zero value is ready.
type keyedMutex struct {
	mu   sync.Mutex
	keys map[string]*keyLock
}

type keyLock struct {
	mu    sync.Mutex
	users int
}

// lock locks key and returns the function that unlocks it.
func (k *keyedMutex) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.keys == nil {
		k.keys = map[string]*keyLock{}
	}
	l := k.keys[key]
	if l == nil {
		l = &keyLock{}
		k.keys[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.mu.Lock()
	return func() {
		l.mu.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.keys, key)
		}
	}
}
