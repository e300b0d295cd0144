// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/integration/lab"
)

// soon is how long a runtime may have to wait for DEL, and for the answer that there is no daemon, at most.
const soon = 15 * time.Second

// TestCNIGone deletes what is gone in any way: the namespace, the interface, all of it, the daemon.
func TestCNIGone(t *testing.T) {
	t.Parallel()
	hosts := cniMesh(t, 2)
	h, n := hosts[0], hosts[0].weft()
	far := hosts[1].added(hosts[1].weft(), "far")
	clean := noted(t, h.Host)

	// DEL of what never was, with and without a namespace.
	never := h.newPod("never")
	h.del(n, never)
	never.Delete()
	h.del(n, never)
	never.NetNS = ""
	h.del(n, never)

	// The namespace has gone first, then the daemon has been restarted.
	gone := h.added(n, "gone")
	gone.Delete()
	h.del(n, gone)
	clean.leaks(t)
	restarted := h.added(n, "restarted")
	restarted.Delete()
	h.Kill()
	h.Relaunch()
	ready(t, h.Host)
	h.del(n, restarted)
	clean.leaks(t)

	// The daemon is down: DEL succeeds, in time, also without the namespace, and is done when the daemon has come.
	down, without, stays := h.added(n, "down"), h.added(n, "without"), h.added(n, "stays")
	if _, err := far.Reach(stays.V4, patience); err != nil {
		t.Fatal(err)
	}
	h.Kill()
	without.Delete()
	for _, p := range []*pod{down, without} {
		h.del(n, p)
		h.del(n, p) // and again
		if k := h.last(weftType, "DEL"); k.took > soon {
			t.Errorf("DEL without a daemon took %v", k.took)
		}
	}
	start := time.Now()
	_, err := h.tryAdd(n, h.newPod("late"))
	refusedBy(t, err, 11, "weft launch", h.RunDir())
	if took := time.Since(start); took > soon {
		t.Errorf("ADD without a daemon took %v", took)
	}
	refusedBy(t, h.check(n, stays), 11, "weft launch")
	refusedBy(t, h.status(n), 50, "weft launch")
	h.Relaunch()
	ready(t, h.Host)
	eventually(t, patience, func() error { _, err := far.Reach(stays.V4, silence); return err })
	if got, want := owners(t, h.Host), []string{"cni/stays/eth0"}; !slices.Equal(beyond(got, clean.owners), want) {
		t.Errorf("after the daemon has come, addresses are with %v, want %v", got, want)
	}
	if _, err := down.Netlink().LinkByName("eth0"); err == nil {
		t.Error("the interface of a container that was deleted without a daemon is left")
	}
	if kept, err := filepath.Glob(filepath.Join(h.RunDir(), "cni", "*")); err != nil || len(kept) != 0 {
		t.Errorf("what DEL has left for the daemon is left still: %v, %v", kept, err)
	}
	// The same container again gets an interface that nothing of before takes away.
	h.add(n, down)
	time.Sleep(silence)
	if _, err := far.Reach(down.V4, patience); err != nil {
		t.Error(err)
	}
	if err := h.check(n, down); err != nil {
		t.Error(err)
	}
	for _, p := range []*pod{down, stays} {
		h.del(n, p)
	}
	clean.leaks(t)

	// The daemon is there and does not answer: it is the same, and done when it goes on.
	hung := h.added(n, "hung")
	h.Freeze()
	h.del(n, hung)
	if k := h.last(weftType, "DEL"); k.took > soon {
		t.Errorf("DEL with a daemon that hangs took %v", k.took)
	}
	refusedBy(t, h.status(n), 50)
	h.Thaw()
	eventually(t, patience, func() error {
		if left := beyond(owners(t, h.Host), clean.owners); len(left) != 0 {
			return fmt.Errorf("addresses are with %v", left)
		}
		return nil
	})
	clean.leaks(t)

	// What cannot be kept for the daemon is an error: the runtime is told, and asks again.
	full := h.added(n, "full")
	h.Kill()
	lost := h.weftConf().with(keys{"runDir": "/proc/weft"})
	refusedBy(t, h.tryDel(network(t, newest, "weft", lost), full), 5, "weft launch", "/proc/weft")
	h.Relaunch()
	ready(t, h.Host)
	h.del(n, full)
	clean.leaks(t)

	// ADD that is asked for while the daemon starts waits for it.
	h.Kill()
	patient := h.newPod("patient")
	added := make(chan error, 1)
	go func() { _, err := h.tryAdd(n, patient); added <- err }()
	time.Sleep(time.Second)
	h.Relaunch()
	if err := <-added; err != nil {
		t.Errorf("ADD, a second before the daemon: %v", err)
	}
	if _, err := far.Reach(patient.V6, patience); err != nil {
		t.Error(err)
	}
	h.del(n, patient)
	clean.leaks(t)
}

// beyond returns what only the first list has.
func beyond(all, but []string) (out []string) {
	for _, s := range all {
		if !slices.Contains(but, s) {
			out = append(out, s)
		}
	}
	return out
}

// ready waits until the host's daemon is ready.
func ready(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
}

// TestCNIStatus asks for the status of hosts that cannot add containers, and says why, and of one that can.
func TestCNIStatus(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch("lan")
	founder, joiner := withCNI(t, l.Host("founder", lan)), withCNI(t, l.Host("joiner", lan))
	// Without a daemon, and one that nobody answers.
	refusedBy(t, founder.status(founder.weft()), 50, "weft launch")
	secret := token(t, founder.Host)
	joiner.Join(secret, []*lab.Host{founder.Host}, "--range", "10.32.0.0/29")
	eventually(t, patience, func() error { return joiner.Query(new(status), "status") })
	refusedBy(t, joiner.status(joiner.weft()), 50)
	_, err := joiner.tryAdd(joiner.weft(), joiner.newPod("early"))
	refusedBy(t, err, 11)
	// Then all is well, as the founder comes.
	founder.Launch("--token-file", founder.File("token", secret+"\n", 0o600), "--range", "10.32.0.0/29", "--quarantine", "1s")
	for _, h := range []*cniHost{founder, joiner} {
		ready(t, h.Host)
		if err := h.status(h.weft()); err != nil {
			t.Error(err)
		}
	}
	// Then all addresses are taken: eight less those of the two nodes, less the first and the last one.
	var pods []*pod
	for i := range 8 {
		p := founder.newPod(string(rune('a' + i)))
		if _, err := founder.tryAdd(founder.weft(), p); err != nil {
			refusedBy(t, err, 11)
			t.Log(err)
			break
		}
		pods = append(pods, p)
	}
	if len(pods) < 2 || len(pods) > 6 {
		t.Fatalf("%d containers in 10.32.0.0/29", len(pods))
	}
	err = founder.status(founder.weft())
	refusedBy(t, err, 50)
	t.Log(err)
	for _, p := range pods {
		if err := founder.check(founder.weft(), p); err != nil {
			t.Error(err)
		}
		founder.del(founder.weft(), p)
	}
	eventually(t, patience, func() error { return founder.status(founder.weft()) })
	// And a node whose addresses others have taken over says that its containers are off the network.
	p := joiner.added(joiner.weft(), "last")
	joiner.Kill()
	eventually(t, found, func() error {
		r, err := founder.TryWeft(context.Background(), "forget", joiner.Name(), "--force")
		if err == nil && r.Code != 0 {
			err = errors.New(r.Stderr)
		}
		return err
	})
	joiner.Relaunch()
	eventually(t, found, func() error { // it has to hear of it
		err = joiner.status(joiner.weft())
		var e *types.Error
		if errors.As(err, &e) && strings.Contains(e.Msg, "declared gone") {
			return nil
		}
		return fmt.Errorf("a node that was forgotten says %v", err) //nolint:errorlint // it may be nil
	})
	refusedBy(t, err, 51)
	t.Log(err)
	joiner.del(joiner.weft(), p)
}

// TestCNIGC releases what is not valid, and nothing else: by libcni, which deletes what it remembers itself first, and past it.
func TestCNIGC(t *testing.T) {
	t.Parallel()
	h := cniMesh(t, 1)[0]
	n, other := h.weft(), network(t, newest, "other", h.weftConf())
	byHand := h.Workload("by-hand")
	byHand.Attach()
	elsewhere := h.added(other, "elsewhere")
	clean := noted(t, h.Host)
	a, b, c, d := h.added(n, "a"), h.added(n, "b"), h.added(n, "c"), h.added(n, "d")
	b.Delete()
	has := func(want ...string) {
		t.Helper()
		var got []string
		for _, o := range beyond(owners(t, h.Host), clean.owners) {
			got = append(got, strings.TrimSuffix(strings.TrimPrefix(o, "cni/"), "/eth0"))
		}
		if !slices.Equal(got, want) {
			t.Errorf("there are %v, want %v", got, want)
		}
	}
	has("a", "b", "c", "d")
	conf := func(key, value string) string {
		return `{"cniVersion": "1.1.0", "name": "weft", "type": "weft", "runDir": "` + h.RunDir() + `"` + key + value + `}`
	}
	const list = `, "cni.dev/valid-attachments": `
	for _, wrong := range []string{"", list + "{}", list + `[{"containerID": "a"}]`, list + `[{"containerID": "../a", "ifname": "eth0"}]`} {
		refusedBy(t, h.raw(conf(wrong, ""), "CNI_COMMAND=GC").refusal(), 7)
	}
	has("a", "b", "c", "d")
	if k := h.raw(conf(list, `[{"containerID": "a", "ifname": "eth0"}, {"containerID": "c", "ifname": "eth0"}, {"containerID": "d", "ifname": "eth1"}]`), "CNI_COMMAND=GC"); k.code != 0 {
		t.Error(k)
	}
	has("a", "c")
	if _, err := d.Netlink().LinkByName("eth0"); err == nil {
		t.Error("the interface of a container that was released is left")
	}
	for _, p := range []*pod{a, c} {
		if err := h.check(n, p); err != nil {
			t.Error(err)
		}
	}
	if err := h.gc(n, c); err != nil {
		t.Error(err)
	}
	has("c")
	if err := h.gc(n); err != nil {
		t.Error(err)
	}
	has()
	clean.leaks(t)
	if _, err := elsewhere.Ping(lab.Ping{To: byHand.V4}); err != nil {
		t.Error(err)
	}
	// A runtime that has lost everything, daemon and namespaces too: what is gone is released all the same.
	e := h.added(n, "e")
	if err := os.RemoveAll(filepath.Join(h.Dir(), "cni-cache")); err != nil {
		t.Fatal(err)
	}
	e.Delete()
	h.Kill()
	h.Relaunch()
	ready(t, h.Host)
	if err := h.gc(n); err != nil {
		t.Error(err)
	}
	clean.leaks(t)
	distinct(t, append(byHand.Addrs(), elsewhere.Addrs()...))
}
