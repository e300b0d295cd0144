// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/token"
)

// What is refused at a first start leaves nothing behind.
func TestRefusedStartsLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, nil)
		c.ready(n1)
		other := newToken(t)
		inRange := netip.MustParseAddr("10.32.0.1")
		advertised := "--advertise 10.32.0.1 is inside the mesh's own range " + testRange + ", which is reached by the mesh only; " +
			"give an address of the network between the hosts, or leave it out"
		for name, r := range map[string]struct {
			change func(*Config)
			peers  []string
			want   string
		}{
			"wrong token": {
				func(cfg *Config) { cfg.Token = other },
				[]string{"n1"},
				"the token is not that of the mesh at n1:6783; get the right one there by `weft token --raw`, and give it by --token-file or WEFT_TOKEN",
			},
			"no token": {
				func(cfg *Config) { cfg.Token = token.Token{} },
				[]string{"n1"},
				"no token to join n1:6783 with; get it there by `weft token --raw`, and give it by --token-file or WEFT_TOKEN",
			},
			"other range": {
				func(cfg *Config) { cfg.Range, cfg.RangeGiven = "10.64.0.0/16", true },
				[]string{"n1"},
				"--range 10.64.0.0/16 differs from the mesh's, which has " + testRange + "; leave the flag out",
			},
			"advertises an address of the mesh it joins": {
				func(cfg *Config) { cfg.Advertise = inRange },
				[]string{"n1"},
				advertised,
			},
			"advertises an address of the mesh it founds": {
				func(cfg *Config) { cfg.Advertise = inRange },
				nil,
				advertised,
			},
		} {
			c.start(n2, r.change, r.peers...)
			err := <-n2.done
			n2.kill = nil
			if err == nil || err.Error() != r.want {
				t.Errorf("%s:\ngot  %v\nwant %s", name, err, r.want)
			}
			if _, err := os.Stat(n2.dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: the data directory is there: %v", name, err)
			}
		}
		// It may join properly afterwards.
		c.start(n2, nil, "n1")
		c.ready(n2)
		// A data directory of another universe.
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n2, func(cfg *Config) { cfg.Range, cfg.RangeGiven = "10.64.0.0/16", true }, "n1")
		err := <-n2.done
		n2.kill = nil
		want := "--range 10.64.0.0/16 differs from this node's mesh, which has " + testRange + "; leave the flag out, or run weft reset to join another mesh"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		c.start(n2, func(cfg *Config) { cfg.Seed = []string{"n2", "n9"} }, "n1")
		err = <-n2.done
		n2.kill = nil
		want = "data directory " + n2.dir + " is of another universe: its mesh was not founded with --seed n2,n9; choose another --data-dir, or run weft reset"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
}

// A host that cannot carry packets ends the start with that reason alone, leaves
// nothing, and starts when it can.
func TestBrokenDataPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		n1.broken = errors.New("weft0 is in use by another process")
		c.start(n1, nil)
		if err := <-n1.done; !errors.Is(err, n1.broken) || err.Error() != n1.broken.Error() {
			t.Errorf("got %v", err)
		}
		n1.kill = nil
		if _, err := os.Stat(n1.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the data directory is there: %v", err)
		}
		n1.broken = nil
		c.start(n1, nil)
		c.ready(n1)
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		// A later start that fails keeps everything.
		n1.broken = errors.New("weft0 is in use by another process")
		c.start(n1, nil)
		if err := <-n1.done; !errors.Is(err, n1.broken) {
			t.Errorf("got %v", err)
		}
		n1.kill = nil
		n1.broken = nil
		id := c.attachedTo(n1)
		c.start(n1, nil)
		c.ready(n1)
		if got := n1.service().Status().NodeID; got != id {
			t.Errorf("it was node %s and is %s", id, got)
		}
	})
}

// attachedTo reads which node the data directory of m belongs to.
func (c *cluster) attachedTo(m *machine) string {
	c.t.Helper()
	st, err := store.Open(m.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	s, err := loadState(st)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		c.t.Fatal(err)
	}
	return s.identity.ID.String()
}

// A share of --seed is one node's: neither a second node of the name nor a node
// that changes its name gets it.
func TestSeedSharesAreTakenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		seed := func(cfg *Config) { cfg.Seed = []string{"n1", "n2"} }
		c.start(n1, seed, "n2")
		c.start(n2, seed, "n1")
		c.ready(n1)
		c.ready(n2)
		c.start(n3, func(cfg *Config) { seed(cfg); cfg.Name = "n1" }, "n1")
		err := <-n3.done
		n3.kill = nil
		if err == nil || !strings.HasPrefix(err.Error(), "the seeded share of this node's name was taken over by node n1") {
			t.Errorf("got %v", err)
		}
		if _, err := os.Stat(n3.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the data directory of the refused node is there: %v", err)
		}
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n2, func(cfg *Config) { seed(cfg); cfg.Name = "n1" }, "n1")
		err = <-n2.done
		n2.kill = nil
		want := "this node has the share that --seed gave to the name n2; launch it with --name n2, or run weft reset"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		c.start(n2, seed, "n1")
		c.ready(n2)
		c.eventually(10*time.Second, "two nodes, all told", func() bool { return n1.service().Status().Nodes.Total == 2 })
	})
}

// A copy of a living node's data directory is refused on another host, and taken
// where the first has gone.
func TestCopyOfALivingNodeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, nil)
		c.start(n2, nil, "n1")
		c.ready(n1)
		c.ready(n2)
		time.Sleep(10 * time.Second)
		if err := os.CopyFS(n3.dir, os.DirFS(n2.dir)); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{store.FileName, token.FileName} {
			if err := os.Chmod(filepath.Join(n3.dir, f), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.start(n3, nil, "n1")
		err := <-n3.done
		n3.kill = nil
		want := "data directory " + n3.dir + " is a copy of that of a node that is alive on another host, as a node of its mesh says; run weft reset here to make it a new one"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n3, nil, "n1") // moved
		c.ready(n3)
		if id := n3.service().Status().NodeID; id != c.attachedTo(n2) {
			t.Errorf("the node that moved is %s", id)
		}
	})
}

func TestWaitsForTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		n1.unplugged = true
		c.start(n1, nil)
		time.Sleep(time.Minute)
		if st := n1.service().Status(); st.Phase != api.Starting || st.WaitsFor != hostnet.ErrNoNetwork.Error() {
			t.Errorf("it does not say what it waits for: %+v", st)
		}
		if err := n1.stop(); err != nil { // and can be stopped
			t.Errorf("stopped: %v", err)
		}
		c.start(n1, nil)
		time.Sleep(time.Minute)
		n1.mu.Lock()
		n1.unplugged = false
		n1.mu.Unlock()
		c.ready(n1)
	})
}
