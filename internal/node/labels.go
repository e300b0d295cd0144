// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/replica"
)

// defaultNamespace is that of workloads and policies that name none.
const defaultNamespace = "default"

// policyIdentity is what network policies know a workload by, as it was asked for; what is empty has a default. Under Kubernetes they know it by its pod.
type policyIdentity struct {
	Namespace string            `json:"namespace,omitempty"`
	Name      string            `json:"name,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Ports     []replica.Port    `json:"ports,omitempty"`
}

// protocolNames are the protocols that have ports, as users write them.
func protocolNames() map[string]policy.Protocol {
	return map[string]policy.Protocol{"tcp": policy.TCP, "udp": policy.UDP, "sctp": policy.SCTP}
}

func protocolName(p policy.Protocol) string {
	for name, q := range protocolNames() {
		if p == q {
			return name
		}
	}
	return fmt.Sprint(uint8(p))
}

// identified reads what a request says; nil if it says nothing.
func identified(i *api.Identity) (*policyIdentity, error) {
	if i == nil {
		return nil, nil
	}
	p := policyIdentity{Namespace: i.Namespace, Name: i.Name, Labels: maps.Clone(i.Labels)}
	for _, port := range i.Ports {
		proto, ok := protocolNames()[port.Protocol]
		if !ok {
			return nil, fmt.Errorf("%.20q is no protocol of a port; give tcp, udp or sctp", port.Protocol)
		}
		p.Ports = append(p.Ports, replica.Port{Name: port.Name, Protocol: proto, Port: port.Port})
	}
	return &p, p.check()
}

// check refuses what the other nodes would.
func (p *policyIdentity) check() error {
	switch {
	case p.Namespace != "" && !replica.DNSLabel(p.Namespace):
		return fmt.Errorf("%.80q is no namespace; use 1 to 63 lower-case letters, digits and hyphens, the first and the last no hyphen", p.Namespace)
	case p.Name != "" && !replica.ObjectName(p.Name):
		return fmt.Errorf("%.80q is no name of a workload; use 1 to 253 lower-case letters, digits, hyphens and dots, the first and the last a letter or digit", p.Name)
	}
	_, err := replica.Endpoint{Namespace: defaultNamespace, Name: "x", Labels: p.Labels, Ports: p.Ports}.Encode()
	return err
}

// updated is what a workload that has p is to have where other things are asked for: what is not asked for stays.
func (p *policyIdentity) updated(want *policyIdentity) *policyIdentity {
	if want == nil {
		return p
	}
	if p == nil {
		return want
	}
	next := policyIdentity{Namespace: cmp.Or(want.Namespace, p.Namespace), Name: cmp.Or(want.Name, p.Name), Labels: want.Labels, Ports: want.Ports}
	if next.Labels == nil {
		next.Labels = p.Labels
	}
	if next.Ports == nil {
		next.Ports = p.Ports
	}
	return &next
}

// endpoint is what policies know of a workload, where there is no Kubernetes. Its name is unique on this node among those that were asked
// for; others are made from it.
func (w workload) endpoint(l ipam.Lease) replica.Endpoint {
	e := replica.Endpoint{ID: w.ID, Addrs: addresses(l)}
	if p := w.Policy; p != nil {
		e.Namespace, e.Name, e.Labels, e.Ports = p.Namespace, p.Name, p.Labels, p.Ports
	}
	if o := w.CNI; o != nil {
		if e.Namespace == "" && replica.DNSLabel(o.Pod.Namespace) {
			e.Namespace = o.Pod.Namespace
		}
		if e.Name == "" && replica.ObjectName(o.Pod.Name) {
			e.Name = o.Pod.Name
		}
	}
	e.Namespace = cmp.Or(e.Namespace, defaultNamespace)
	if e.Name == "" {
		e.Name = w.defaultName()
	}
	return e
}

// defaultName is made of the path of the namespace, or the container's ID, or else of a hash.
func (w workload) defaultName() string {
	name := path.Base(w.Netns)
	switch {
	case w.CNI != nil:
		name = w.CNI.ContainerID
		if _, err := hex.DecodeString(name); err == nil && len(name) == 2*sha256.Size {
			name = name[:12] // as runtimes show those that they have made; any other may begin as a thousand others do
		}
	case strings.HasPrefix(w.Netns, "/proc/"):
		name = ""
	}
	if replica.ObjectName(name) {
		return name
	}
	h := sha256.Sum256([]byte(w.ID))
	return "workload-" + hex.EncodeToString(h[:4])
}

// fullName is the name of an endpoint in the whole mesh, where there is no Kubernetes.
func fullName(namespace, name, node string) policy.Name {
	return policy.Name{Namespace: namespace, Name: name + "@" + node}
}

// identity is what the user sees of it.
func (w workload) identity() *api.Identity {
	e := w.endpoint(ipam.Lease{})
	i := api.Identity{Namespace: e.Namespace, Name: e.Name, Labels: e.Labels}
	for _, p := range e.Ports {
		i.Ports = append(i.Ports, api.NamedPort{Name: p.Name, Protocol: protocolName(p.Protocol), Port: p.Port})
	}
	return &i
}

// nameTaken refuses a name that was asked for and that another workload has.
func (ws *workloads) nameTaken(want workload) error {
	if want.Policy == nil || want.Policy.Name == "" {
		return nil
	}
	e := want.endpoint(ipam.Lease{})
	for _, w := range ws.list() {
		if o := w.endpoint(ipam.Lease{}); w.ID != want.ID && o.Name == e.Name && o.Namespace == e.Namespace {
			return fmt.Errorf("the workload %s of this host is called %s/%s already; choose another --name", w.ID, e.Namespace, e.Name)
		}
	}
	return nil
}

// called returns the workloads that a text may mean: the whole ID, the name for policies with or without the namespace, the pod, an address.
func (ws *workloads) called(what string) (found []workload) {
	addr, _ := netip.ParseAddr(what)
	for _, w := range ws.list() {
		lease, _ := ws.alloc.Lookup(w.ID)
		e := w.endpoint(lease)
		full := fullName(e.Namespace, e.Name, ws.node)
		names := []string{w.ID, e.Name, e.Namespace + "/" + e.Name, full.Name, full.String()}
		if w.CNI != nil {
			names = append(names, w.CNI.ContainerID)
		} else {
			names = append(names, w.Netns)
		}
		if slices.Contains(names, what) || addr.IsValid() && slices.Contains(e.Addrs, addr.Unmap()) {
			found = append(found, w)
		}
	}
	return found
}

// Label implements [api.Service].
func (n *Node) Label(ctx context.Context, r api.LabelRequest) (api.Workload, error) {
	e, err := n.ready()
	if err != nil {
		return api.Workload{}, err
	}
	if n.cfg.Guide != nil {
		return api.Workload{}, errors.New("under Kubernetes the labels of a workload are those of its pod; change them there, as by kubectl label pod")
	}
	found := e.workloads.called(r.Workload)
	_, elsewhere, there := strings.Cut(r.Workload, "@")
	switch {
	case len(found) == 0 && elsewhere != n.cfg.Name && there:
		return api.Workload{}, fmt.Errorf("%.300s is a workload of the host %.100s; change its labels there", r.Workload, elsewhere)
	case len(found) == 0:
		return api.Workload{}, fmt.Errorf("no workload of this host is called %.300q; see: weft ps", r.Workload)
	case len(found) > 1:
		var ids []string
		for _, w := range found {
			ids = append(ids, w.ID)
		}
		return api.Workload{}, fmt.Errorf("%.300q may be each of %d workloads of this host; give the ID of one: %s", r.Workload, len(found), strings.Join(ids, ", "))
	}
	return e.workloads.label(ctx, found[0].ID, r)
}

// label changes the labels of a workload that is there.
func (ws *workloads) label(ctx context.Context, id string, r api.LabelRequest) (api.Workload, error) {
	defer ws.lock.lock(id)()
	ws.gate.RLock()
	defer ws.gate.RUnlock()
	w, ok := ws.get(id)
	if !ok {
		return api.Workload{}, fmt.Errorf("the workload %s was detached meanwhile; see: weft ps", id)
	}
	next := &policyIdentity{Labels: map[string]string{}}
	if w.Policy != nil {
		maps.Copy(next.Labels, w.Policy.Labels)
	}
	for _, k := range r.Remove {
		if _, ok := next.Labels[k]; !ok {
			return api.Workload{}, fmt.Errorf("the workload %s has no label %.330s to remove; see: weft policy show %s", id, k, id)
		}
		delete(next.Labels, k)
	}
	maps.Copy(next.Labels, r.Set)
	if err := next.check(); err != nil {
		return api.Workload{}, err
	}
	before := w
	w.Policy = w.Policy.updated(next)
	if !reflect.DeepEqual(w.Policy, before.Policy) {
		if err := saveWorkload(ws.st, w); err != nil {
			return api.Workload{}, err
		}
		ws.mu.Lock()
		if now, ok := ws.all[id]; ok {
			now.Policy = w.Policy
			ws.all[id] = now
		}
		ws.alter(id)
		ws.mu.Unlock()
		ws.log.Info("labels changed", zap.String("workload", id), zap.Any("labels", w.Policy.Labels))
		ws.relabel(w)
	}
	return ws.describe(w), ctx.Err()
}

// identify takes what the request of a runtime says for policies into the record.
func (w *workload) identify(r cni.Request) error {
	if r.Labels == nil && r.Namespace == "" {
		return nil
	}
	p := &policyIdentity{Namespace: r.Namespace, Labels: r.Labels}
	if err := p.check(); err != nil {
		return cniError(cni.CodeConfig, fmt.Errorf("the network configuration: %w", err))
	}
	w.Policy = p
	return nil
}
