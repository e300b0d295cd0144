// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/kube"
	"github.com/weftnet/weft/internal/kube/kubetest"
	"github.com/weftnet/weft/internal/netlock"
	"github.com/weftnet/weft/mesh/memnet"
)

// Whole nodes, each directed by an agent, in a cluster whose API server is in memory.

// kubernetes is a cluster of machines that are nodes of Kubernetes.
type kubernetes struct {
	*cluster
	server *kubetest.Server
	agents map[*machine]*kube.Agent
	fed    bool // the guide tells network policies, or the test in its place
}

const secretPath = "kube-system/secrets/weft"

func newKubernetes(t *testing.T, machines int) *kubernetes {
	k := &kubernetes{server: kubetest.New(), agents: map[*machine]*kube.Agent{}}
	t.Cleanup(func() { // after the nodes have ended
		for _, a := range k.agents {
			a.Close()
		}
		if err := k.server.Close(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
	})
	k.cluster = newCluster(t, machines)
	for _, m := range k.machines {
		k.register(m)
	}
	return k
}

// register makes the Node object of a machine.
func (k *kubernetes) register(m *machine) {
	k.server.Put("nodes/"+m.name, kubetest.Object{"status": kubetest.Object{"addresses": []any{
		kubetest.Object{"type": "InternalIP", "address": m.addr.String()}, kubetest.Object{"type": "Hostname", "address": m.name},
	}}})
}

// launch starts the node of m as the DaemonSet does.
func (k *kubernetes) launch(m *machine, change func(*kube.Config)) {
	k.t.Helper()
	k.launchOn(m, fakeSystem{m}, change)
}

func (k *kubernetes) launchOn(m *machine, on system, change func(*kube.Config)) {
	k.t.Helper()
	if old := k.agents[m]; old != nil {
		old.Close()
	}
	server, err := kube.ConnectTo(k.server.Dial, m.name)
	if err != nil {
		k.t.Fatal(err)
	}
	directing := kube.Config{
		Cluster: server, Node: m.name, Namespace: "kube-system", DaemonSet: "weft", DefaultRange: testRange, Encryption: "on",
		Rand: rand.Reader, Log: zap.NewNop(), Up: func(context.Context) error { return nil },
	}
	if change != nil {
		change(&directing)
	}
	k.agents[m] = kube.New(directing)
	cfg := Config{
		Version: "test", Name: m.name, Port: DefaultPort, Range: DefaultRange, DataDir: m.dir, RunDir: m.dir + ".run", Shards: 1,
		Masquerade: true, Log: zap.NewNop(), Out: io.Discard, Guide: guide{k.agents[m]}, GuidePolicies: k.fed,
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.kill, m.done = cancel, make(chan error, 1)
	m.mu.Lock()
	m.svc = nil
	m.mu.Unlock()
	go func() { m.done <- launch(ctx, cfg, on) }()
}

// guide has an agent direct a node, as the command line does.
type guide struct{ agent *kube.Agent }

func (g guide) StandBy(by string) { g.agent.StandBy(by) }

func (g guide) Attached(p Pod, warnings []string) { g.agent.Attached(kube.Pod(p), warnings) }

func (g guide) Refused(p Pod, why string) { g.agent.Attached(kube.Pod(p), []string{why}) }

func (g guide) Begin(ctx context.Context, k Known, waits func(string)) (Orders, error) {
	o, err := g.agent.Begin(ctx, kube.Known(k), waits)
	return Orders(o), begunAnew(err)
}

func (g guide) Confirm(ctx context.Context, f Founded, waits func(string)) error {
	return begunAnew(g.agent.Confirm(ctx, kube.Founded(f), waits))
}

func (g guide) Run(ctx context.Context, n *Node) error {
	return begunAnew(g.agent.Run(ctx, n.ID(), directed{n}))
}

func begunAnew(err error) error {
	if errors.Is(err, kube.ErrAnew) {
		return fmt.Errorf("%w (%w)", ErrAnew, err)
	}
	return err
}

type directed struct{ *Node }

func (directed) Policies() kube.Sink { return nil }

func (d directed) Members() []kube.Member {
	var members []kube.Member
	for _, m := range d.Node.Members() {
		members = append(members, kube.Member(m))
	}
	return members
}

// node reads a Node object: its annotation, and the condition NetworkUnavailable.
func (k *kubernetes) node(m *machine) (id, unavailable string) {
	o := k.server.Get("nodes/" + m.name)
	meta, _ := o["metadata"].(kubetest.Object)
	annotations, _ := meta["annotations"].(kubetest.Object)
	id, _ = annotations["weftnet.dev/node-id"].(string)
	status, _ := o["status"].(kubetest.Object)
	conditions, _ := status["conditions"].([]any)
	for _, c := range conditions {
		if c, _ := c.(kubetest.Object); c["type"] == "NetworkUnavailable" {
			unavailable = fmt.Sprint(c["status"], " ", c["reason"])
		}
	}
	return id, unavailable
}

// events are the messages of the Events with this reason.
func (k *kubernetes) events(reason string) (messages []string) {
	for _, o := range k.server.List("default/events/") {
		if o["reason"] == reason {
			messages = append(messages, fmt.Sprint(o["message"]))
		}
	}
	return messages
}

// allUp waits until every machine is ready, and has said so.
func (k *kubernetes) allUp(within time.Duration) {
	k.t.Helper()
	k.eventually(within, "all nodes ready, and said to be", func() bool {
		for _, m := range k.machines {
			svc := m.service()
			if svc == nil || !svc.Status().Ready {
				return false
			}
			if id, unavailable := k.node(m); id != svc.Status().NodeID || unavailable != "False WeftIsUp" {
				return false
			}
		}
		return true
	})
}

func TestKubernetesNodesAtOnceAreOneMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 5)
		k.server.Put("kube-system/configmaps/kubeadm-config", kubetest.Object{"data": kubetest.Object{
			"ClusterConfiguration": "kind: ClusterConfiguration\nnetworking:\n  podSubnet: 10.244.0.0/16\n  serviceSubnet: 10.96.0.0/12\n",
		}})
		k.server.Put("servicecidrs/kubernetes", kubetest.Object{"spec": kubetest.Object{"cidrs": []any{"10.96.0.0/12"}}})
		for _, m := range k.machines {
			k.launch(m, nil)
		}
		k.allUp(10 * time.Second)
		meshes := map[string]int{}
		for _, m := range k.machines {
			s := m.service().Status()
			meshes[s.MeshID+" "+s.Universe]++
			if s.Nodes.Total != 5 {
				t.Errorf("%s knows %d nodes", m.name, s.Nodes.Total)
			}
			k.attach(m, "pod-on-"+m.name)
		}
		if len(meshes) != 1 || !strings.HasSuffix(fmt.Sprint(meshes), " 10.244.0.0/16:5]") {
			t.Errorf("the meshes are %v", meshes)
		}
		k.connected(10 * time.Second)
		k.distinct()
	})
}

func TestKubernetesRestartsWithoutAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 3)
		for _, m := range k.machines {
			k.launch(m, nil)
		}
		k.allUp(10 * time.Second)
		before := map[string]string{}
		for _, m := range k.machines {
			before[m.name] = fmt.Sprint(k.attach(m, "pod-on-"+m.name).Addresses)
		}
		k.server.SetDown(true)
		time.Sleep(5 * time.Minute)
		for _, m := range k.machines {
			if err := m.stop(); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range k.machines {
			k.launch(m, nil)
		}
		for _, m := range k.machines {
			k.ready(m)
			if w := m.service().Workloads(); len(w) != 1 || fmt.Sprint(w[0].Addresses) != before[m.name] {
				t.Errorf("%s has %+v, had %s", m.name, w, before[m.name])
			}
		}
		k.connected(10 * time.Second)
		k.server.SetDown(false)
		time.Sleep(time.Minute)
		if n := k.server.Watches(); n != 21 {
			t.Errorf("%d watches are open, not seven of each node", n)
		}
		k.allUp(time.Second)
	})
}

// TestKubernetesSecretComesBack deletes the Secret of a cluster that runs, and adds a node meanwhile.
func TestKubernetesSecretComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 4)
		last := k.machines[3]
		for _, m := range k.machines[:3] {
			k.launch(m, nil)
		}
		k.eventually(10*time.Second, "three ready", func() bool {
			for _, m := range k.machines[:3] {
				if s := m.service(); s == nil || !s.Status().Ready || s.Status().Nodes.Total != 3 {
					return false
				}
			}
			return true
		})
		time.Sleep(10 * time.Second)
		was := k.server.Get(secretPath)["data"].(kubetest.Object)
		k.server.Delete(secretPath)
		k.launch(last, nil)
		k.allUp(time.Minute)
		is := k.server.Get(secretPath)["data"].(kubetest.Object)
		for _, key := range []string{"token", "mesh", "founded", "range"} {
			if is[key] != was[key] {
				t.Errorf("%s is %v in the new Secret, was %v", key, is[key], was[key])
			}
		}
		if s := last.service().Status(); s.Nodes.Total != 4 {
			t.Errorf("the new node is in a mesh of %d", s.Nodes.Total)
		}
	})
}

func TestKubernetesNodeOfAnotherMeshIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 2)
		n1, n2 := k.machines[0], k.machines[1]
		k.launch(n1, nil)
		k.ready(n1)
		mesh := n1.service().Status().MeshID
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		k.server.Delete(secretPath)
		k.server.Delete("nodes/n1")
		k.launch(n2, nil)
		k.ready(n2)
		k.register(n1)
		k.launch(n1, nil)
		err := <-n1.done
		n1.kill = nil
		want := fmt.Sprintf("this node is of the mesh %s, and Secret kube-system/weft names the mesh %s; run weft reset on this node to have it join that one, or delete the Secret if it is the wrong one",
			mesh, n2.service().Status().MeshID)
		if err == nil || err.Error() != want {
			t.Errorf("a node of another mesh: %v, want %s", err, want)
		}
	})
}

// TestKubernetesDeletedNodeIsReclaimed kills a node, deletes its object, and then a daemon at a time; and has another one lose its network only.
func TestKubernetesDeletedNodeIsReclaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 6)
		for _, m := range k.machines {
			k.launch(m, nil)
		}
		k.allUp(10 * time.Second)
		for _, m := range k.machines {
			k.attach(m, "pod-on-"+m.name)
		}
		time.Sleep(time.Minute)
		k.poorestLast() // those that stay have to be a majority of the addresses
		dead, cut := k.machines[5], k.machines[4]
		id, cutID := dead.service().Status().NodeID, cut.service().Status().NodeID
		hosts := func(ms []*machine) (hs []*memnet.Host) {
			for _, m := range ms {
				hs = append(hs, m.net)
			}
			return hs
		}
		k.net.Partition(hosts(k.machines[:4]), hosts(k.machines[4:5]), hosts(k.machines[5:]))
		k.server.Delete("nodes/" + dead.name)
		retired := func(id string) bool {
			for _, r := range k.machines[1].service().IPAM().Retirements {
				if r.NodeID == id {
					return true
				}
			}
			return false
		}
		time.Sleep(8 * time.Second)
		if err := k.machines[0].stop(); err != nil { // the others wait for its vote, unless they have enough
			t.Fatal(err)
		}
		time.Sleep(15 * time.Second)
		k.launch(k.machines[0], nil)
		k.eventually(37*time.Second, "the addresses of the deleted node are taken over", func() bool { return retired(id) })
		time.Sleep(10 * time.Minute)
		if retired(cutID) {
			t.Error("a node that only lost its network was declared gone")
		}
		k.net.Partition(hosts(k.machines[:5]), hosts(k.machines[5:]))
		k.ready(k.machines[0])
		k.eventually(time.Minute, "the node that was cut off is back", func() bool {
			return cut.service().Status().Phase == api.Ready && k.machines[0].service().Status().Nodes.Alive == 5
		})
		// Who has begun it again meanwhile tells the same.
		if got := slices.Compact(k.events("Reclaimed")); len(got) != 1 || !strings.Contains(got[0], "addresses of "+dead.name+" ("+id+"): its Node was deleted") {
			t.Errorf("the Events say %q", got)
		}
		if err := dead.stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// poorestLast sorts the machines by how many addresses are theirs, as the first one sees it.
func (k *kubernetes) poorestLast() {
	slots := map[string]uint64{}
	for _, h := range k.machines[0].service().IPAM().Holdings {
		slots[h.Node] = h.Slots
	}
	slices.SortStableFunc(k.machines, func(a, b *machine) int { return cmp.Compare(slots[b.name], slots[a.name]) })
}

// TestKubernetesRetiredNodeSaysSo has a node declared gone that is only cut off, and comes back.
func TestKubernetesRetiredNodeSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 4)
		for _, m := range k.machines {
			k.launch(m, nil)
		}
		k.allUp(10 * time.Second)
		time.Sleep(30 * time.Second)
		cut := k.machines[3]
		id := cut.service().Status().NodeID
		k.net.Partition([]*memnet.Host{k.machines[0].net, k.machines[1].net, k.machines[2].net}, []*memnet.Host{cut.net})
		time.Sleep(30 * time.Second)
		if _, err := k.machines[0].service().Forget(t.Context(), api.ForgetRequest{Node: id}, func(api.ForgetProgress) {}); err != nil {
			t.Fatal(err)
		}
		k.net.Heal()
		k.eventually(time.Minute, "the node says that it is retired", func() bool {
			_, unavailable := k.node(cut)
			return cut.service().Status().Phase == api.Retired && unavailable == "True WeftIsRetired"
		})
		if ready, text := k.agents[cut].Health(); ready || text != "retired" {
			t.Errorf("a retired node is called ready=%v, %s", ready, text)
		}
		time.Sleep(10 * time.Second)
		if got := k.events("Retired"); len(got) != 1 {
			t.Errorf("the Events say %q", got)
		}
	})
}

// lockedSystem is a host on which another daemon runs for a while.
type lockedSystem struct {
	fakeSystem
	until time.Time
}

func (s lockedSystem) lock(ctx context.Context, h netlock.Holder) (io.Closer, error) {
	if time.Now().Before(s.until) {
		return nil, &netlock.TakenError{Holder: netlock.Holder{PID: 7, Socket: "/run/weft/weft.sock"}}
	}
	return s.fakeSystem.lock(ctx, h)
}

func TestKubernetesStandsBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 1)
		m := k.machines[0]
		k.launch(m, nil)
		k.allUp(10 * time.Second)
		a := k.attach(m, "pod")
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		until := time.Now().Add(time.Minute)
		k.launchOn(m, lockedSystem{fakeSystem{m}, until}, nil)
		time.Sleep(30 * time.Second)
		if ready, text := k.agents[m].Health(); !ready || text != "standing by" {
			t.Errorf("a daemon that stands by is called ready=%v, %s", ready, text)
		}
		k.server.SetDown(true) // which keeps nobody from taking over
		time.Sleep(time.Until(until) + 500*time.Millisecond)
		if s := m.service().Status(); !s.Ready {
			t.Errorf("half a second after the other has ended it is %s: %s", s.Phase, s.WaitsFor)
		}
		if w := m.service().Workloads(); len(w) != 1 || !slices.Equal(w[0].Addresses, a.Addresses) {
			t.Errorf("it has %+v, not %+v", w, a)
		}
		if ready, text := k.agents[m].Health(); !ready || text != "ready" {
			t.Errorf("then it is called ready=%v, %s", ready, text)
		}
	})
}

func TestKubernetesDeletedDaemonSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := "kube-system/daemonsets/weft"
		for name, c := range map[string]struct {
			happens func(k *kubernetes)
			want    bool
		}{
			"there":   {func(*kubernetes) {}, false},
			"deleted": {func(k *kubernetes) { k.server.Delete(set) }, true},
			"being deleted": {func(k *kubernetes) {
				k.server.Edit(set, func(o kubetest.Object) {
					o["metadata"].(kubetest.Object)["deletionTimestamp"] = "2026-01-01T00:00:00Z"
				})
			}, true},
			"deleted, and then the API server goes": {func(k *kubernetes) {
				k.server.Delete(set)
				time.Sleep(time.Second)
				k.server.SetDown(true)
			}, true},
			"there, and the API server goes": {func(k *kubernetes) { k.server.SetDown(true) }, false},
			"deleted and made again": {func(k *kubernetes) {
				k.server.Delete(set)
				time.Sleep(time.Second)
				k.server.Put(set, kubetest.Object{})
			}, false},
		} {
			k := newKubernetes(t, 1)
			k.server.Put(set, kubetest.Object{})
			m := k.machines[0]
			k.launch(m, nil)
			k.allUp(10 * time.Second)
			c.happens(k)
			time.Sleep(time.Second)
			if err := m.stop(); err != nil {
				t.Error(err)
			}
			if got := k.agents[m].Removed(t.Context()); got != c.want {
				t.Errorf("%s: removed=%v", name, got)
			}
		}
	})
}

// TestKubernetesWarnsOfPods has an attach that warns told where one looks for it.
func TestKubernetesWarnsOfPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 1)
		m := k.machines[0]
		k.launch(m, nil)
		k.allUp(10 * time.Second)
		g := guide{k.agents[m]}
		for range 3 { // the same again is not told again
			g.Attached(Pod{Namespace: "shop", Name: "cart-1", UID: "u1"}, []string{"IPv6 is switched off in this container"})
		}
		time.Sleep(10 * time.Second)
		all := k.server.List("shop/events/")
		if len(all) != 1 || all[0]["message"] != "IPv6 is switched off in this container" || all[0]["type"] != "Warning" {
			t.Fatalf("the Events are %v", all)
		}
		if about := all[0]["involvedObject"].(kubetest.Object); about["kind"] != "Pod" || about["name"] != "cart-1" || about["uid"] != "u1" || about["namespace"] != "shop" {
			t.Errorf("the Event is about %v", about)
		}
	})
}
