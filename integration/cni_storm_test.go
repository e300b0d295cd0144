// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weftnet/weft/integration/lab"
)

// raceBuilt builds a command with the race detector, which ends it at the first race.
func raceBuilt(t *testing.T, dir, pkg string) string {
	t.Helper()
	out := filepath.Join(dir, filepath.Base(pkg))
	build := exec.Command("go", "build", "-race", "-o", out, pkg)
	build.Dir = ".."
	build.Env = append(build.Environ(), "CGO_ENABLED=1")
	if text, err := build.CombinedOutput(); err != nil {
		if _, missing := exec.LookPath(strings.TrimSpace(goenv(t, "CC"))); missing != nil {
			t.Skipf("NOT TESTED: 200 requests at once with the race detector, which needs a C compiler: %v", missing)
		}
		t.Fatalf("building %s with the race detector: %v\n%s", pkg, err, text)
	}
	return out
}

// TestCNIStorm has two hundred ADDs, DELs, CHECKs and GCs at once, of two networks, with daemon and plugin built with the race detector: each of them does what it
// is asked for, and nothing else, and when all containers have gone nothing is left.
func TestCNIStorm(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	daemon, plugin := raceBuilt(t, dir, "./cmd/weft"), raceBuilt(t, dir, "./cmd/weft-cni")
	hosts := cniMesh(t, 2, lab.With(lab.Binary(daemon)))
	h, far := hosts[0], hosts[1]
	h.use(plugin)
	remote := far.added(far.weft(), "remote")
	clean := noted(t, h.Host)
	one, two := h.weft(), network(t, newest, "other", h.weftConf())

	const each = 60 // ADDs, DELs and CHECKs, and what is left of two hundred are GCs
	pods := func(prefix string) map[string]*pod {
		out := map[string]*pod{}
		for i := range each {
			id := fmt.Sprintf("%s%02d", prefix, i)
			out[id] = h.newPod(id)
		}
		return out
	}
	// all does something for each of the containers, all at once.
	var mu sync.Mutex
	var failed []error
	var wg sync.WaitGroup
	all := func(pods map[string]*pod, do func(p *pod) error) {
		for id, p := range pods {
			wg.Go(func() {
				if err := do(p); err != nil {
					mu.Lock()
					failed = append(failed, fmt.Errorf("%s: %w", id, err))
					mu.Unlock()
				}
			})
		}
	}
	wait := func(what string) {
		t.Helper()
		wg.Wait()
		if err := errors.Join(failed...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	add := func(p *pod) error { _, err := h.tryAdd(one, p); return err }
	stay, go1, stray := pods("stay"), pods("gone"), pods("stray")
	maps.DeleteFunc(stray, func(string, *pod) bool { return len(stray) > 20 }) // that only GC releases
	// What is asked for twice at once is given once.
	twice := func(p *pod) error {
		same := *p
		same.Workload = &lab.Workload{Namespace: p.Namespace}
		again := make(chan error, 1)
		go func() { again <- add(&same) }()
		if err := errors.Join(add(p), <-again); err != nil {
			return err
		}
		if same.V4 != p.V4 || same.V6 != p.V6 {
			return fmt.Errorf("asked twice at once, it has got %v and %v", p.Addrs(), same.Addrs())
		}
		return nil
	}
	for _, some := range []map[string]*pod{stay, go1, stray} {
		all(some, twice)
		wait("ADD")
	}
	elsewhere := h.newPod("elsewhere")
	if _, err := h.tryAdd(two, elsewhere); err != nil {
		t.Fatal(err)
	}

	come := pods("come")
	valid := func() string {
		var out []string
		for id := range maps.Keys(stay) {
			out = append(out, fmt.Sprintf(`{"containerID": %q, "ifname": "eth0"}`, id))
		}
		return strings.Join(out, ", ")
	}()
	gc := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "weft", "type": "weft", "runDir": %q, "cni.dev/valid-attachments": [%s]}`, h.RunDir(), valid)
	all(come, add)
	all(go1, func(p *pod) error { return h.tryDel(one, p) })
	all(stay, func(p *pod) error { return h.check(one, p) })
	for range 200 - 3*each {
		wg.Go(func() {
			if k := h.raw(gc, "CNI_COMMAND=GC"); k.code != 0 {
				mu.Lock()
				failed = append(failed, errors.New(k.String()))
				mu.Unlock()
			}
		})
	}
	wait("200 at once")
	// What was added while GC ran, and completed before the last of them began, is not in its list: so it may be gone, but whole or not at all.
	has := map[string]bool{}
	for _, o := range owners(t, h.Host) {
		has[strings.TrimSuffix(strings.TrimPrefix(o, "cni/"), "/eth0")] = true
	}
	for _, id := range slices.Concat(slices.Collect(maps.Keys(go1)), slices.Collect(maps.Keys(stray))) {
		if has[id] {
			t.Errorf("%s was to go, and is there", id)
		}
	}
	for id := range stay {
		if !has[id] {
			t.Errorf("%s was to stay, and is gone", id)
		}
	}
	if !has["elsewhere"] {
		t.Error("GC of one network has released a container of another one")
	}
	there := 0
	for id, p := range come {
		if has[id] {
			there++
			all(map[string]*pod{id: p}, func(p *pod) error { return h.check(one, p) })
		} else if _, err := p.Netlink().LinkByName("eth0"); err == nil {
			t.Errorf("%s has an interface and no address", id)
		}
	}
	wait("CHECK of what came")
	t.Logf("%d of %d containers that were added while GC ran are there", there, each)
	var addresses []netip.Addr
	for _, p := range stay {
		addresses = append(addresses, p.Addrs()...)
		if _, err := remote.Reach(p.V4, patience); err != nil {
			t.Error(err)
		}
	}
	for id, p := range come {
		if has[id] {
			addresses = append(addresses, p.Addrs()...)
		}
	}
	distinct(t, append(addresses, elsewhere.Addrs()...))
	all(stay, func(p *pod) error { return h.tryDel(one, p) })
	all(come, func(p *pod) error { return h.tryDel(one, p) })
	wait("DEL")
	h.del(two, elsewhere)
	clean.leaks(t)
	if log := h.Log(); !h.Running() || strings.Contains(log, "DATA RACE") {
		t.Errorf("the daemon runs: %v; its log:\n%s", h.Running(), log)
	}
	for _, k := range h.calls {
		if strings.Contains(string(k.stderr), "DATA RACE") {
			t.Errorf("%v", k)
		}
	}
}
