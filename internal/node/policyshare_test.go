// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/manifest"
	"github.com/weftnet/weft/policy/replica"
)

// shareSink is a sink that keeps what it is told.
type shareSink struct {
	policies   map[policy.PolicyKey]*policy.Policy
	endpoints  map[policy.Name]policy.Endpoint
	namespaces map[string]policy.Namespace
	nodes      map[string]policy.Node
	changes    int
	awaits     string
}

func newShareSink() *shareSink {
	return &shareSink{map[policy.PolicyKey]*policy.Policy{}, map[policy.Name]policy.Endpoint{}, map[string]policy.Namespace{}, map[string]policy.Node{}, 0, ""}
}

func (s *shareSink) SetPolicy(p *policy.Policy) { s.policies[p.PolicyKey] = p; s.changes++ }

func (s *shareSink) DeletePolicy(k policy.PolicyKey) { delete(s.policies, k); s.changes++ }

func (s *shareSink) SetEndpoint(e policy.Endpoint) { s.endpoints[e.Name] = e; s.changes++ }

func (s *shareSink) DeleteEndpoint(n policy.Name) { delete(s.endpoints, n); s.changes++ }

func (s *shareSink) SetNamespace(n policy.Namespace) { s.namespaces[n.Name] = n; s.changes++ }

func (s *shareSink) DeleteNamespace(name string) { delete(s.namespaces, name); s.changes++ }

func (s *shareSink) SetNode(n policy.Node) { s.nodes[n.Name] = n; s.changes++ }

func (s *shareSink) DeleteNode(name string)                                { delete(s.nodes, name); s.changes++ }
func (s *shareSink) ChangeOwned(_ enforce.Owners, f func(enforce.Changes)) { f(s) }
func (s *shareSink) Synced()                                               {}
func (s *shareSink) Awaits(what string)                                    { s.awaits = what }

// newsOf are some keys of two sets.
func newsOf(manifests, endpoints *replica.Set, manifestKeys, endpointKeys []string) shareNews {
	h := &policyHosts{manifests: manifests, endpoints: endpoints}
	h.note(0, manifestKeys)
	h.note(1, endpointKeys)
	return h.takeNews()
}

// TestShareIsUpdated has hosts change what they share at random: what the sink was told of that, change by change, is what it is told of all at once; and who is called
// otherwise, or as another one, and what two have written apart, makes no difference.
func TestShareIsUpdated(t *testing.T) {
	for seed := range uint64(300) {
		s := rand.New(rand.NewPCG(seed, 1))
		const self = 1
		manifests, endpoints := replica.New(self, 1, manifestLimits()), replica.New(self, 1, endpointLimits())
		var others []*replica.Set
		for w := range uint64(4) {
			others = append(others, replica.New(w+1, 1, endpointLimits()))
		}
		share, sink, names := newHostShare(self), newShareSink(), map[uint64]string{}
		for range 40 {
			var changedEndpoints, changedManifests []string
			switch s.IntN(5) {
			case 0:
				names = maps.Clone(names)
				if w := s.Uint64N(4) + 1; s.IntN(3) == 0 {
					delete(names, w)
				} else {
					names[w] = []string{"", fmt.Sprint("node-", w), fmt.Sprint("host-", w)}[s.IntN(3)]
				}
			case 1:
				name := []string{"a", "b"}[s.IntN(2)]
				value := []byte([]string{
					`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"` + name + `","namespace":"ns"},"spec":{"podSelector":{}}}`, `{}`,
				}[s.IntN(2)])
				if s.IntN(3) == 0 {
					value = nil
				}
				key := "networkpolicy/ns/" + name
				if s.IntN(3) == 0 {
					key, value = "namespace//"+name, []byte(`{"metadata":{"name":"`+name+`","labels":{"n":"`+fmt.Sprint(s.IntN(3))+`"}}}`)
				}
				var err error
				if _, changedManifests, err = manifests.Write([]replica.Change{{Key: key, Value: value}}); err != nil {
					t.Fatal(err)
				}
			default:
				o := others[s.IntN(len(others))]
				values := map[string][]byte{}
				for i := range s.IntN(4) {
					e := replica.Endpoint{Namespace: "ns", Name: []string{"web", "db"}[s.IntN(2)], ID: fmt.Sprint(i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(s.IntN(9))})}}
					values[replica.EndpointKey(fmt.Sprint(i))], _ = e.Encode()
				}
				if s.IntN(2) == 0 {
					values[replica.HostKey], _ = replica.Endpoint{Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(s.IntN(9))})}}.Encode()
				}
				if s.IntN(8) == 0 {
					values["odd"] = []byte("odd")
				}
				delta, _, err := o.Own(values)
				if err != nil {
					t.Fatal(err)
				}
				if _, changedEndpoints, err = endpoints.Merge(delta, nil); err != nil {
					t.Fatal(err)
				}
			}
			share.update(newsOf(manifests, endpoints, changedManifests, changedEndpoints), names, sink)
			whole, all := newHostShare(self), newShareSink()
			whole.update(newsOf(manifests, endpoints, manifests.Keys(), endpoints.Keys()), names, all)
			if sink.changes, all.changes = 0, 0; !reflect.DeepEqual(sink, all) || share.warning() != whole.warning() || !reflect.DeepEqual(share.claims, whole.claims) {
				t.Fatalf("seed %d: %+v\nwant %+v", seed, sink, all)
			}
		}
	}
}

// TestWhatIsUnderstoodIsNotReadAgain has a policy applied that was understood when it was read, and one that somebody else has changed since.
func TestWhatIsUnderstoodIsNotReadAgain(t *testing.T) {
	file := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: ns}\nspec: {podSelector: {matchLabels: {app: %s}}}\n---\n"
	read := func(app string) (changes []replica.Change, known map[string]understood) {
		o, err := manifest.Read(fmt.Appendf(nil, file+file, "a", app, "b", app), "ns")
		if err != nil {
			t.Fatal(err)
		}
		known = map[string]understood{}
		for _, s := range o.Sources {
			key := manifestKey(api.PolicyObject{Kind: s.Kind, Namespace: s.Namespace, Name: s.Name.Name})
			changes, known[key] = append(changes, replica.Change{Key: key, Value: s.JSON}), understood{s.JSON, s.Policy}
		}
		return changes, known
	}
	mine, known := read("mine")
	theirs, _ := read("theirs")
	set := replica.New(1, 1, manifestLimits())
	for _, changes := range [][]replica.Change{mine, theirs[1:]} {
		if _, _, err := set.Write(changes); err != nil {
			t.Fatal(err)
		}
	}
	h := &policyHosts{manifests: set, endpoints: replica.New(1, 1, endpointLimits()), known: known}
	h.note(0, set.Keys())
	share, sink := newHostShare(1), newShareSink()
	share.update(h.takeNews(), nil, sink)
	for name, app := range map[string]string{"a": "mine", "b": "theirs"} {
		k := policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "ns", Name: name}}
		got, was := sink.policies[k], known["networkpolicy/ns/"+name].policy
		if got == nil || (*got.Pods)[0].Values[0] != app || (got == was) != (app == "mine") {
			t.Errorf("%s: %+v, understood as %+v", name, got, was)
		}
	}
	if h.known != nil {
		t.Error("it is kept")
	}
}

// TestShareOfMany has one of 50,000 endpoints change: nothing else is looked at or told.
func TestShareOfMany(t *testing.T) {
	endpoints := replica.New(1, 1, endpointLimits())
	values, names := map[string][]byte{}, map[uint64]string{}
	const some = 20_000
	o := replica.New(7, 1, endpointLimits())
	value := func(i, n int) []byte {
		b, err := replica.Endpoint{Namespace: "default", Name: fmt.Sprint("w", i), ID: fmt.Sprint(i), Labels: map[string]string{"n": fmt.Sprint(n)}}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for i := range some {
		values[replica.EndpointKey(fmt.Sprint(i))] = value(i, 0)
	}
	names[7] = "node-7"
	share, sink := newHostShare(1), newShareSink()
	change := func() (keys int) {
		delta, _, err := o.Own(values)
		if err != nil {
			t.Fatal(err)
		}
		_, changed, err := endpoints.Merge(delta, nil)
		if err != nil {
			t.Fatal(err)
		}
		news := newsOf(replica.New(1, 1, manifestLimits()), endpoints, nil, changed)
		share.update(news, names, sink)
		return len(news.endpoints)
	}
	if n := change(); n != some || len(sink.endpoints) != some {
		t.Fatalf("%d keys, %d endpoints", n, len(sink.endpoints))
	}
	sink.changes = 0
	values[replica.EndpointKey("5")] = value(5, 1)
	if n := change(); n != 1 || sink.changes > 2 || sink.endpoints[policy.Name{Namespace: "default", Name: "w5@node-7"}].Labels["n"] != "1" {
		t.Errorf("%d keys, %d changes", n, sink.changes)
	}
	if allocs := testing.AllocsPerRun(5, func() { share.update(shareNews{}, names, sink) }); allocs > 20 {
		t.Errorf("nothing has changed, and it takes %v allocations", allocs)
	}
}

// TestSetLog has a set on disk through many changes: what is read is what there was, whenever that is, and what is written is in proportion to what has changed.
func TestSetLog(t *testing.T) {
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	set, log := replica.New(1, 1, manifestLimits()), setLog{key: keyManifests}
	written, largest := 0, 0
	const objects = 1200
	for i := range objects {
		delta, _, err := set.Write([]replica.Change{{Key: fmt.Sprint("key-", i), Value: bytes.Repeat([]byte{'x'}, 1000)}, {Key: fmt.Sprint("key-", i/2)}})
		if err != nil {
			t.Fatal(err)
		}
		var now setLog
		if err := st.Update(func(tx *store.Tx) (err error) {
			now, err = log.write(tx, [][]byte{delta}, set.Encode)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if now.changes > log.changes {
			written += len(delta)
		} else {
			written += now.whole
		}
		log, largest = now, max(largest, now.whole)
		if i%100 == 0 || i == objects-1 {
			again, l := replica.New(1, 1, manifestLimits()), setLog{key: keyManifests}
			if err := st.View(func(tx *store.Tx) error { return l.read(tx, again) }); err != nil {
				t.Fatal(err)
			}
			if l != log || !bytes.Equal(again.Encode(), set.Encode()) {
				t.Fatalf("after %d changes %+v is read, and %+v was written; as it was: %v", i+1, l, log, bytes.Equal(again.Encode(), set.Encode()))
			}
		}
	}
	if most := objects*1100*2 + 8*largest; written > most {
		t.Errorf("%d bytes written, and %d would do", written, most)
	}
	t.Logf("%d bytes written for %d changes; the whole has %d", written, objects, largest)
}
