// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/fault"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/netns"
	"github.com/weftnet/weft/ipam"
)

// errTakenBack ends an attach that waits for an address when the same is detached.
var errTakenBack = errors.New("it was detached meanwhile")

// attachNetns gives the namespace of r an interface and addresses, or repairs those that it has, and returns what it has then.
func (ws *workloads) attachNetns(ctx context.Context, r api.AttachRequest) (api.Workload, error) {
	if err := checkIfName(r.IfName); err != nil {
		return api.Workload{}, err
	}
	ns, err := ws.namespace(r.Netns)
	if err != nil {
		return api.Workload{}, err
	}
	want := workload{ID: workloadID(ns, r.IfName), Netns: r.Netns, NetnsID: string(ns), IfName: r.IfName}
	if r.IP.IsValid() {
		want.IPs = []netip.Addr{r.IP}
	}
	if want.Policy, err = identified(r.Policy); err != nil {
		return api.Workload{}, err
	}
	if want.Policy != nil && ws.guided {
		return api.Workload{}, errors.New("under Kubernetes network policies know workloads by their pods; leave out --label, --namespace, --name and --port")
	}
	if err := ws.nameTaken(want); err != nil {
		return api.Workload{}, err
	}
	defer ws.lock.lock(want.ID)()
	w, made, err := ws.attach(ctx, want)
	if err != nil {
		return api.Workload{}, err
	}
	a := ws.describe(w)
	a.Warnings = made.Warnings
	return a, nil
}

// namespace tells which namespace of a workload a path leads to.
func (ws *workloads) namespace(path string) (netns.ID, error) {
	ns, err := ws.netnsAt(path)
	if err == nil && ns == ws.ownNS {
		err = fmt.Errorf("%s is the host's own network namespace, which needs no attaching; give that of a workload", path)
	}
	return ns, err
}

// attach gives a workload, which says by its fields what it is to be, addresses and an interface, or repairs those that it has;
// one that has another namespace than before gets a new interface there, and keeps its addresses. On error nothing is left that was not
// there before. The caller has the workload's lock.
func (ws *workloads) attach(ctx context.Context, want workload) (workload, hostnet.Attached, error) {
	// The address may have to come from another node: reconcile does not wait for
	// that, and leaves the address alone when it is there.
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	coming := arrival{record: want, giveUp: func() { giveUp(errTakenBack) }}
	coming.record.Boot, coming.record.Attached = ws.boot, ws.now()
	if want.MTU == 0 {
		coming.record.MTU = ws.mtu()
	}
	defer ws.expect(&coming)()
	lease, err := ws.lease(ctx, want)
	if err != nil {
		ws.relabelAsKept(want.ID)
		return workload{}, hostnet.Attached{}, err
	}
	leave := sync.OnceFunc(ws.gate.RUnlock)
	defer leave()
	fault.Point("attach-leased")
	w, known := ws.get(want.ID)
	before := w
	if !known {
		w = coming.record
		if !ws.hasKept(&coming) { // it had the addresses already
			err = saveWorkload(ws.st, w)
		}
	}
	w.Netns, w.NetnsID = want.Netns, want.NetnsID
	if w.Boot != ws.boot { // it could not be forgotten at the start, and is as good as new
		w.Boot, w.Attached = ws.boot, coming.record.Attached
	}
	w.Policy = w.Policy.updated(want.Policy)
	if want.Asked != 0 {
		w.Asked = max(w.Asked, want.Asked) // the same may be asked for twice at once
	}
	var made hostnet.Attached
	if err == nil {
		made, err = ws.host.Attach(onHost(w, lease))
	}
	fault.Point("attach-connected")
	if err == nil && known && (w.Netns != before.Netns || w.NetnsID != before.NetnsID || w.Boot != before.Boot || w.Asked != before.Asked ||
		!reflect.DeepEqual(w.Policy, before.Policy)) {
		err = saveWorkload(ws.st, w)
	}
	if err != nil {
		fault.Point("attach-undoing")
		switch {
		case !known:
			err = errors.Join(err, ws.alloc.Release(w.ID))
			ws.unpermit(w.ID)
		case ws.abortive(before):
			err = errors.Join(err, ws.forgetAll([]workload{before})[w.ID])
		}
		ws.relabelAsKept(w.ID)
		return workload{}, hostnet.Attached{}, err
	}
	ws.put(w)
	fault.Point("attach-kept")
	if made.Unsettled {
		leave()
		if err := ws.settle(w, onHost(w, lease), made, known); err != nil {
			return workload{}, hostnet.Attached{}, err
		}
	}
	if !known {
		ws.log.Info("workload attached", zap.String("workload", w.ID), zap.String("netns", w.Netns), zap.Stringers("addresses", addresses(lease)))
	}
	return w, made, nil
}

// abortive tells whether a workload is of an earlier run and could not be connected since. The run may have ended when it had a record and
// addresses only: then it was never more than an attach that failed.
func (ws *workloads) abortive(w workload) bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return w.finished == 0 && ws.state[w.ID] != ""
}

// lease gets a workload its addresses and has the policies that concern it in force; and, when it returns no error, has read-locked the gate.
func (ws *workloads) lease(ctx context.Context, want workload) (ipam.Lease, error) {
	for {
		if err := ws.admits(want.ID); err != nil {
			return ipam.Lease{}, err
		}
		lease, err := ws.allocate(ctx, want)
		if err != nil {
			return ipam.Lease{}, err
		}
		err = ws.permit(ctx, want, lease)
		fault.Point("attach-permitted")
		ws.gate.RLock()
		_, known := ws.get(want.ID)
		if err == nil {
			err = ws.admits(want.ID) // by now
		}
		if err != nil {
			if !known {
				err = errors.Join(err, ws.alloc.Release(want.ID))
				ws.unpermit(want.ID)
			}
			ws.gate.RUnlock()
			return ipam.Lease{}, err
		}
		if now, ok := ws.alloc.Lookup(want.ID); ok && now == lease {
			return lease, nil
		}
		ws.gate.RUnlock() // whoever had the gate has released it, as that of a namespace that is gone
	}
}

// arrival is an attach under way.
type arrival struct {
	record workload // as it is to be kept, if it is not known yet
	kept   bool     // it is, together with the addresses
	giveUp func()   // has the attach wait for addresses no longer
}

// expect announces an attach, until the function that it returns is called.
func (ws *workloads) expect(a *arrival) (done func()) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.coming == nil {
		ws.coming = map[string]*arrival{}
	}
	ws.coming[a.record.ID] = a
	return func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		delete(ws.coming, a.record.ID)
	}
}

func (ws *workloads) hasKept(a *arrival) bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return a.kept
}

func (ws *workloads) expected(id string) bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	_, ok := ws.coming[id]
	return ok
}

// hurry has an attach that waits for addresses, and that r means, wait no longer.
func (ws *workloads) hurry(r cni.Release) {
	ws.mu.Lock()
	a := ws.coming[keyID(r.Key)]
	ws.mu.Unlock()
	if a != nil && ws.means(r, a.record) {
		a.giveUp()
	}
}

// allocate gets addresses, those that are wanted if there are any: they are of one slot.
func (ws *workloads) allocate(ctx context.Context, want workload) (ipam.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, attachPatience)
	defer cancel()
	if len(want.IPs) > 0 {
		return ws.alloc.AllocateExact(ctx, want.ID, want.IPs[0])
	}
	return ws.alloc.Allocate(ctx, want.ID)
}

// detachNetns takes away what attach gave, and returns the addresses that were
// released; none if nothing was attached.
func (ws *workloads) detachNetns(r api.DetachRequest) (api.DetachResult, error) {
	w, ok := ws.find(r)
	if !ok {
		return api.DetachResult{Released: []netip.Addr{}}, nil
	}
	defer ws.lock.lock(w.ID)()
	released, err := ws.detach(w.ID)
	return api.DetachResult{Released: released}, err
}

// detach takes a workload away, if there is one of this ID, and returns the addresses that were released. The caller has the
// workload's lock.
func (ws *workloads) detach(id string) (released []netip.Addr, err error) {
	ws.gate.RLock()
	defer ws.gate.RUnlock()
	w, ok := ws.get(id)
	if !ok {
		return []netip.Addr{}, nil
	}
	lease, _ := ws.alloc.Lookup(id)
	if err := ws.forgetAll([]workload{w})[id]; err != nil {
		return nil, err
	}
	fault.Point("detach-done")
	ws.log.Info("workload detached", zap.String("workload", id), zap.Stringers("addresses", addresses(lease)))
	return addresses(lease), nil
}

// find looks for the workload by namespace and, as the namespace may be gone,
// by the path under which it was attached.
func (ws *workloads) find(r api.DetachRequest) (workload, bool) {
	ns, err := ws.netnsAt(r.Netns)
	ws.mu.Lock()
	defer ws.mu.Unlock()
	var byPath *workload
	for _, w := range ws.all {
		switch {
		case w.IfName != r.IfName:
		case err == nil && w.NetnsID == string(ns):
			return w, true
		case w.Netns == r.Netns:
			byPath = &w
		}
	}
	if byPath != nil {
		return *byPath, true
	}
	return workload{}, false
}

func workloadID(ns netns.ID, ifname string) string { return string(ns) + "/" + ifname }

func onHost(w workload, l ipam.Lease) hostnet.Workload {
	mac, _ := net.ParseMAC(w.MAC) // which was checked before it came into the record
	return hostnet.Workload{ID: w.ID, Netns: w.Netns, IfName: w.IfName, Addrs: addresses(l), MTU: w.MTU, MAC: mac, AddressesOnly: w.AddressesOnly}
}

// checkIfName holds to what the kernel allows (dev_valid_name, net/core/dev.c).
func checkIfName(s string) error {
	if s == "" || len(s) > 15 || s == "." || s == ".." || s == "lo" || strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r == '/' || r == ':' || r == '%' || r > '~'
	}) {
		return fmt.Errorf("--ifname %q is no name for an interface; use 1 to 15 letters, digits, '-', '.' and '_'", s)
	}
	return nil
}

// sameAddrs says whether two lists have the same addresses, in whatever order.
func sameAddrs(a, b []netip.Addr) bool {
	sorted := func(l []netip.Addr) []netip.Addr { return slices.SortedFunc(slices.Values(l), netip.Addr.Compare) }
	return slices.Equal(sorted(a), sorted(b))
}
