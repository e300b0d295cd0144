// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"go.uber.org/zap"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/internal/fault"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/ipam"
)

const (
	// readyPatience is how long a runtime's request waits for a node that has just started.
	readyPatience = 5 * time.Second
	readyLook     = 20 * time.Millisecond

	// ownerCNI begins the IDs of what runtimes have attached; container and interface follow.
	ownerCNI = "cni/"
	// maxContainerID bounds the container's part of it, in bytes: with the other two it is an ID of a workload.
	maxContainerID = 128
	// maxShown bounds what is only shown, in bytes.
	maxShown = 253
)

// cniOrigin tells for what a runtime has attached a workload.
type cniOrigin struct {
	Network     string  `json:"network"`
	ContainerID string  `json:"containerID"`
	Pod         cni.Pod `json:"pod,omitzero"`
}

// describe is what the user sees of it.
func (o *cniOrigin) describe() *api.CNIOrigin {
	if o == nil {
		return nil
	}
	return &api.CNIOrigin{Network: o.Network, ContainerID: o.ContainerID, PodNamespace: o.Pod.Namespace, PodName: o.Pod.Name, PodUID: o.Pod.UID}
}

func keyID(k cni.Key) string { return ownerCNI + k.ContainerID + "/" + k.IfName }

// CNIAttach implements [api.Service]. Once it has begun it goes on until it is done, or nothing of it is left, also if the client is killed
// meanwhile; as long as the address has to come from another node it ends with the client.
func (n *Node) CNIAttach(ctx context.Context, r cni.Request) (cni.Attachment, error) {
	want, err := order(r)
	if err != nil {
		return cni.Attachment{}, err
	}
	if want.Policy != nil && n.cfg.Guide != nil {
		return cni.Attachment{}, cniError(cni.CodeConfig,
			errors.New("the network configuration has labels or a namespace, but under Kubernetes those are the pod's; take them out of it"))
	}
	e, err := n.forCNI(ctx)
	if err != nil {
		return cni.Attachment{}, err
	}
	fault.Point("cni-attach")
	failed, err := n.workOff(e, want.ID)
	if err != nil { // what it would take away again later is not known
		return cni.Attachment{}, cniError(cni.CodeTryLater, fmt.Errorf("what was deleted before cannot be read: %w; see whether %s is a directory that the daemon can read",
			err, filepath.Join(n.cfg.RunDir, "cni")))
	}
	if err = failed[want.ID]; err != nil { // it would be taken away again later
		return cni.Attachment{}, cniError(cni.CodeTryLater, fmt.Errorf("what was deleted before could not be detached yet: %w; try again", err))
	}
	a, err := e.workloads.attachCNI(ctx, want)
	if n.cfg.Guide != nil && r.Pod.Name != "" && forPolicies(err) {
		n.cfg.Guide.Refused(Pod(r.Pod), err.Error())
	}
	if err != nil {
		return cni.Attachment{}, cniError(attachCode(err), err)
	}
	return a, nil
}

// CNIDetach implements [api.Service]. As long as this node has yet to start, what is to be detached is kept for later.
func (n *Node) CNIDetach(ctx context.Context, r cni.Release) error {
	if r.Key == (cni.Key{}) {
		return n.cniGC(ctx, r)
	}
	if err := checkKey(r.Key); err != nil {
		return err
	}
	fault.Point("cni-detach")
	e := n.engines()
	if e == nil {
		if err := n.backlog.Put(r); err != nil {
			return cniError(cni.CodeIO, fmt.Errorf("what is to be deleted cannot be kept for when this node has started: %w; make room in %s", err, n.cfg.RunDir))
		}
		if e = n.engines(); e == nil {
			return nil
		}
	}
	_, _ = n.workOff(e, keyID(r.Key)) // has told
	return cniError(cni.CodeFailed, e.workloads.detachCNI(ctx, r))
}

// cniGC releases what a runtime does not know any more. What was attached since it asked stays: it could not know. It does so also where nothing
// can be attached, as on a node that was declared gone.
func (n *Node) cniGC(ctx context.Context, r cni.Release) error {
	var known uint64 // nothing of this run
	if e := n.engines(); e != nil {
		known = e.workloads.count()
	}
	e := n.engines()
	if e == nil {
		var err error
		if e, err = n.forCNI(ctx); err != nil {
			return err
		}
	}
	_, _ = n.workOff(e, "") // has told
	return cniError(cni.CodeFailed, e.workloads.keepOnly(ctx, r, known))
}

// forCNI returns the engines once traffic can flow, and waits a little for that.
func (n *Node) forCNI(ctx context.Context) (*engines, error) {
	for end := time.Now().Add(readyPatience); ; {
		e, err := n.ready()
		if err == nil {
			return e, nil
		}
		if n.whyRetired() != nil {
			return nil, cniError(cni.CodeFailed, err)
		}
		if n.isStopping() || !time.Now().Before(end) {
			return nil, cniError(cni.CodeTryLater, err)
		}
		select {
		case <-ctx.Done():
			return nil, cniError(cni.CodeTryLater, err)
		case <-time.After(readyLook):
		}
	}
}

// order is the record of what is asked for, as far as it can be known before it is attached.
func order(r cni.Request) (workload, error) {
	if err := checkKey(r.Key); err != nil {
		return workload{}, err
	}
	if r.Network == "" {
		return workload{}, cniError(cni.CodeConfig, errors.New("the network has no name; give the configuration one"))
	}
	for _, x := range []struct {
		text, what string
		code       uint
	}{
		{r.Network, "name of the network", cni.CodeConfig},
		{r.Pod.Namespace, "pod's namespace", cni.CodeEnvironment},
		{r.Pod.Name, "pod's name", cni.CodeEnvironment},
		{r.Pod.UID, "pod's UID", cni.CodeEnvironment},
	} {
		if len(x.text) > maxShown || strings.ContainsFunc(x.text, func(c rune) bool { return !unicode.IsPrint(c) }) {
			return workload{}, cniError(x.code, fmt.Errorf("%.40q is no %s; it has at most %d bytes, all printable", x.text, x.what, maxShown))
		}
	}
	w := workload{
		ID: keyID(r.Key), Netns: r.Netns, IfName: r.IfName, MTU: r.MTU, AddressesOnly: r.AddressesOnly, Asked: r.Begun,
		CNI: &cniOrigin{Network: r.Network, ContainerID: r.ContainerID, Pod: r.Pod},
	}
	for _, a := range r.IPs {
		w.IPs = append(w.IPs, a.Unmap())
	}
	if r.MAC != "" {
		mac, err := net.ParseMAC(r.MAC)
		if err != nil {
			return workload{}, cniError(cni.CodeEnvironment, fmt.Errorf("%q is no hardware address; give one as 0a:58:0a:20:00:05", r.MAC))
		}
		w.MAC = mac.String()
	}
	return w, w.identify(r)
}

// checkKey sees to it that the IDs of different keys differ. The plugin has looked closer.
func checkKey(k cni.Key) error {
	if k.ContainerID == "" || len(k.ContainerID) > maxContainerID || strings.Contains(k.ContainerID, "/") {
		return cniError(cni.CodeEnvironment, fmt.Errorf("%q is no ID of a container; it has 1 to %d bytes, and none of them is a slash", k.ContainerID, maxContainerID))
	}
	if checkIfName(k.IfName) != nil {
		return cniError(cni.CodeEnvironment, fmt.Errorf("%q is no name for an interface; use 1 to 15 letters, digits, '-', '.' and '_'", k.IfName))
	}
	return nil
}

// attachCNI attaches what a runtime asks for.
func (ws *workloads) attachCNI(ctx context.Context, want workload) (cni.Attachment, error) {
	if !want.AddressesOnly {
		ns, err := ws.namespace(want.Netns)
		if err != nil {
			return cni.Attachment{}, cniError(cni.CodeEnvironment, advised(err))
		}
		want.NetnsID = string(ns)
	}
	if err := ws.checkWanted(want.IPs); err != nil {
		return cni.Attachment{}, err
	}
	if err := ws.checkPod(want.CNI.Pod); err != nil {
		return cni.Attachment{}, cniError(cni.CodeEnvironment, err)
	}
	defer ws.lock.lock(want.ID)()
	if err := ws.late(ctx, want); err != nil {
		return cni.Attachment{}, cniError(cni.CodeTryLater, err)
	}
	if w, ok := ws.get(want.ID); ok {
		if err := w.other(want); err != nil {
			return cni.Attachment{}, err
		}
	}
	w, made, err := ws.attach(ctx, want)
	if err != nil {
		return cni.Attachment{}, err
	}
	return ws.attachment(w, made), nil
}

// other says what is asked for otherwise than it was attached, if anything is. Where it is has no part in that.
func (w workload) other(want workload) error {
	var differs string
	switch {
	case w.CNI == nil: // the record is damaged
		differs = "by whom is not known"
	case w.CNI.Network != want.CNI.Network:
		differs = fmt.Sprintf("for network %s", w.CNI.Network)
	case w.AddressesOnly && !want.AddressesOnly:
		differs = "with addresses only"
	case want.AddressesOnly && !w.AddressesOnly:
		differs = "with an interface"
	case !sameAddrs(w.IPs, want.IPs):
		differs = "with other addresses wanted"
	case w.MAC != want.MAC:
		differs = "with another hardware address wanted"
	case want.MTU != 0 && w.MTU != want.MTU:
		differs = fmt.Sprintf("with an MTU of %d", w.MTU)
	default:
		return nil
	}
	return fmt.Errorf("%s of container %s is attached already, %s; delete that first", want.IfName, want.CNI.ContainerID, differs)
}

// checkPod refuses a pod that policies could take for an earlier one of the same name, as those of a StatefulSet have one after the other.
func (ws *workloads) checkPod(p cni.Pod) error {
	if !ws.guided || !ws.podsTold || p.Name == "" || p.UID != "" {
		return nil
	}
	return fmt.Errorf("the container runtime does not say which pod of the name %s/%s this is, so that its network policies cannot be known; use a version of it that gives K8S_POD_UID in CNI_ARGS",
		p.Namespace, p.Name)
}

// checkWanted refuses addresses that no workload can have at once.
func (ws *workloads) checkWanted(ips []netip.Addr) error {
	for i, a := range ips {
		slot, ok := ws.space.Slot(a)
		if !ok {
			return &ipam.OutsideError{Addr: a, Universe: ws.space}
		}
		if i == 0 {
			continue
		}
		if first, _ := ws.space.Slot(ips[0]); first != slot || ips[0].Is4() == a.Is4() {
			v4, v6 := ws.space.Addrs(first)
			return fmt.Errorf("%v and %v cannot be had together: whoever has %v has %v; ask for these two, or for one", ips[0], a, v4, v6)
		}
	}
	return nil
}

// attachment is what the runtime gets to know of w.
func (ws *workloads) attachment(w workload, made hostnet.Attached) cni.Attachment {
	a := cni.Attachment{MTU: made.MTU, Addresses: made.Addrs, Warnings: made.Warnings}
	for _, r := range made.Routes {
		a.Routes = append(a.Routes, cni.Route{Dst: r.Dst, GW: r.Gateway})
	}
	if w.AddressesOnly {
		a.Universe = ws.space.Prefixes()
		return a
	}
	a.HostIf, a.HostMAC, a.MAC = hostnet.HostIf(w.ID), made.HostMAC.String(), made.MAC.String()
	return a
}

// detachCNI takes away what a runtime has attached. What belongs to another network is not meant: the runtime deletes what it was refused.
func (ws *workloads) detachCNI(ctx context.Context, r cni.Release) error {
	if ctx.Err() == nil {
		ws.note(r)
		ws.hurry(r)
	}
	id := keyID(r.Key)
	defer ws.lock.lock(id)()
	if ctx.Err() != nil {
		return cniError(cni.CodeTryLater, errGone)
	}
	if w, ok := ws.get(id); !ok || !ws.means(r, w) {
		return nil
	}
	_, err := ws.detach(id)
	return err
}

// count is how many attaches have succeeded in this run.
func (ws *workloads) count() uint64 {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.finished
}

// keepOnly takes away what runtimes have attached to a network and do not name, as far as it is of the first known attaches, and
// was attached before the request was begun. What is being attached again stays as well.
func (ws *workloads) keepOnly(ctx context.Context, r cni.Release, known uint64) error {
	keep := make(map[string]bool, len(r.Valid))
	for _, k := range r.Valid {
		keep[keyID(k)] = true
	}
	ws.gate.Lock()
	defer ws.gate.Unlock()
	if ctx.Err() != nil {
		return cniError(cni.CodeTryLater, errGone)
	}
	var gone []workload
	for _, w := range ws.list() {
		if w.CNI != nil && w.CNI.Network == r.Network && !keep[w.ID] && w.finished <= known && !ws.since(w, r.Begun) && !ws.expected(w.ID) {
			gone = append(gone, w)
		}
	}
	failed := ws.forgetAll(gone)
	fault.Point("gc-done")
	for _, w := range gone {
		if failed[w.ID] == nil {
			ws.log.Info("workload detached, as the runtime knows it no longer", zap.String("workload", w.ID))
		}
	}
	return failures("releasing what the runtime knows no longer", failed)
}

// advised is why a namespace cannot be used, and what to do.
func advised(err error) error {
	if strings.Contains(err.Error(), "; ") {
		return err
	}
	return fmt.Errorf("%w; give the path of a network namespace that the daemon can open", err)
}

// attachCode tells whether the runtime may succeed if it tries again.
func attachCode(err error) uint {
	var full *ipam.ExhaustedError
	var late *ipam.WaitError
	var slow *hostnet.SlowError
	var wait *enforce.WaitError
	if errors.As(err, &wait) || errors.As(err, &full) || errors.As(err, &late) || errors.As(err, &slow) {
		return cni.CodeTryLater
	}
	return cni.CodeFailed
}

// cniError is err as the runtime gets it: what is to be done, behind the last semicolon, by itself. Nil stays nil.
func cniError(code uint, err error) error {
	if err == nil {
		return nil
	}
	var ce *cni.Error
	if errors.As(err, &ce) {
		return err
	}
	ce = &cni.Error{Code: code, Msg: strings.ReplaceAll(err.Error(), "\n", "; ")}
	if i := strings.LastIndex(ce.Msg, "; "); i >= 0 {
		ce.Msg, ce.Details = ce.Msg[:i], ce.Msg[i+2:]
	}
	return ce
}
