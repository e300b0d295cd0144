// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
)

// targets returns the hosts that the node of m connects to, with the state of each.
func (m *machine) targets() map[string]string {
	all := map[string]string{}
	for _, t := range m.service().Status().Targets {
		all[t.Host] = t.State
	}
	return all
}

// Hosts of weft connect are joined at once, outlive a restart beside those of --peer, and go with weft disconnect.
func TestConnectOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2, n3 := c.machines[0], c.machines[1], c.machines[2]
		c.start(n1, nil)
		c.ready(n1)
		c.start(n2, nil, "n1")
		c.start(n3, nil, "n1")
		c.ready(n2)
		c.ready(n3)
		res, err := n3.service().Connect(t.Context(), api.ConnectRequest{Hosts: []string{"n2", "n2:6783", "nowhere", "n1"}})
		if err != nil {
			t.Fatal(err)
		}
		states := map[string]string{}
		for _, x := range res.Targets {
			states[x.Host] = x.State
		}
		if len(states) != 3 || states["n2:6783"] != "joined" || states["n1:6783"] != "joined" || !strings.HasPrefix(states["nowhere:6783"], "waiting: ") || states["nowhere:6783"] == "waiting: not tried yet" {
			t.Errorf("connected: %v", states)
		}
		if err := n3.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n3, nil) // --peer is not given any more
		c.ready(n3)
		c.eventually(10*time.Second, "n2 is joined", func() bool { return n3.targets()["n2:6783"] == "joined" })
		if got := n3.targets(); len(got) != 2 {
			t.Errorf("after a restart: %v", got)
		}
		gone, err := n3.service().Disconnect(api.DisconnectRequest{Hosts: []string{"n2", "nowhere"}})
		if err != nil {
			t.Fatal(err)
		}
		want := "[{n2:6783 [n2, which was found there, stays a member of the mesh: this node knows it by gossip; weft forget declares a node gone]} {nowhere:6783 []}]"
		if got := fmt.Sprint(gone.Disconnected); got != want {
			t.Errorf("disconnected: %s", got)
		}
		time.Sleep(time.Minute)
		if got := n3.targets(); len(got) != 0 {
			t.Errorf("after that: %v", got)
		}
		if st := n3.service().Status(); st.Nodes.Alive != 3 {
			t.Errorf("%d nodes are alive", st.Nodes.Alive)
		}
		if err := n3.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n3, nil)
		c.ready(n3)
		if got := n3.targets(); len(got) != 0 {
			t.Errorf("after another restart: %v", got)
		}
	})
}

// What --peer gives goes for now, and comes back with the next launch.
func TestDisconnectFromAPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, nil)
		c.ready(n1)
		c.start(n2, nil, "n1")
		c.ready(n2)
		gone, err := n2.service().Disconnect(api.DisconnectRequest{Hosts: []string{"n1"}})
		if err != nil {
			t.Fatal(err)
		}
		if d := gone.Disconnected; len(d) != 1 || len(d[0].Notes) != 2 || d[0].Notes[1] != "it was given by --peer: the next launch with that connects to it again" {
			t.Errorf("%+v", d)
		}
		if got := n2.targets(); len(got) != 0 {
			t.Errorf("targets %v", got)
		}
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n2, nil, "n1")
		c.ready(n2)
		c.eventually(10*time.Second, "n1 is joined", func() bool { return n2.targets()["n1:6783"] == "joined" })
	})
}

func TestConnectRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		connect := func(hosts ...string) error {
			_, err := n1.service().Connect(t.Context(), api.ConnectRequest{Hosts: hosts})
			return err
		}
		disconnect := func(hosts ...string) error {
			_, err := n1.service().Disconnect(api.DisconnectRequest{Hosts: hosts})
			return err
		}
		expect := func(what string, err error, want string) {
			t.Helper()
			if err == nil || err.Error() != want {
				t.Errorf("%s:\ngot  %v\nwant %s", what, err, want)
			}
		}
		expect("no host", connect("a:b:c"), `"a:b:c" is no HOST or HOST:PORT; give a name or an address, such as 192.0.2.1:6783`)
		expect("no port", connect("good", "a:0"), `"a:0" is no HOST or HOST:PORT; give a name or an address, such as 192.0.2.1:6783`)
		for _, h := range []string{"a\nb", "a b", "[a", "a]", "a/b", "a:b", strings.Repeat("a", 300)} {
			expect("no host", connect("good", h), fmt.Sprintf("%q is no HOST or HOST:PORT; give a name or an address, such as 192.0.2.1:6783", h))
		}
		expect("not one", disconnect("a"), "this node was not told to connect to a:6783, nor to any other host")
		if err := connect("a"); err != nil {
			t.Fatal(err)
		}
		expect("one of two", disconnect("a", "b"), "this node was not told to connect to b:6783; it was to: a:6783")
		if got := n1.targets(); len(got) != 1 {
			t.Errorf("targets %v", got)
		}
		var many []string
		for i := range maxTargets {
			many = append(many, fmt.Sprint("h", i))
		}
		expect("too many", connect(many...), "this node would connect to 257 hosts, and 256 are the most; a few are enough, as each tells of all others: disconnect some (weft disconnect)")
		if saved, err := loadTargets(n1.node(t).store); err != nil || !slices.Equal(saved, []string{"a:6783"}) {
			t.Errorf("saved %v, %v", saved, err)
		}
		n1.node(t).setPhase(api.Stopping, "")
		if connect("b") == nil || disconnect("a") == nil {
			t.Error("a node that stops took orders")
		}
	})
}

// Whatever weft connect took, in whatever spelling, the next launch takes; and what it would not take does not keep a node down.
func TestConnectIsKeptInAnySpelling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		for _, h := range []string{"fd00::9", "[fd00::9]", "[fd00:0::9]:6783", "[FD00::9]:06783", "there:06783", "there", "-x", "\u00fcber"} {
			if _, err := n1.service().Connect(t.Context(), api.ConnectRequest{Hosts: []string{h}}); err != nil {
				t.Error(err)
			}
		}
		want := []string{"[fd00::9]:6783", "there:6783", "-x:6783", "\u00fcber:6783"}
		saved, err := loadTargets(n1.node(t).store)
		if err != nil || !slices.Equal(saved, want) {
			t.Errorf("saved %q, %v", saved, err)
		}
		var many []string
		for i := range maxTargets {
			many = append(many, fmt.Sprint("h", i, ":6783"))
		}
		if err := saveTargets(n1.node(t).store, append([]string{"no\nhost:6783", "[fd00:0::9]:6783", "[fd00::9]:6783"}, many...)); err != nil {
			t.Fatal(err)
		}
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n1, nil)
		c.ready(n1)
		got := n1.targets()
		if _, ok := got["[fd00::9]:6783"]; !ok || len(got) != maxTargets {
			t.Errorf("%d targets after a restart: %v", len(got), got)
		}
	})
}

// A node that waits for a host that is not there joins by another one that it is told meanwhile.
func TestConnectWhileJoining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		c.start(n1, nil)
		c.ready(n1)
		c.start(n2, nil, "nowhere")
		time.Sleep(10 * time.Second)
		if _, err := n2.service().Disconnect(api.DisconnectRequest{Hosts: []string{"nowhere"}}); err == nil ||
			err.Error() != "nowhere:6783 was given by --peer, and this node has not joined yet; stop it and launch it without" {
			t.Error(err)
		}
		if _, err := n2.service().Disconnect(api.DisconnectRequest{Hosts: []string{"n1"}}); err == nil || err.Error() != "this node was not told to connect to n1:6783" {
			t.Error(err)
		}
		for range 2 {
			if _, err := n2.service().Connect(t.Context(), api.ConnectRequest{Hosts: []string{"elsewhere"}}); err != nil {
				t.Fatal(err)
			}
			if got := n2.targets(); len(got) != 2 {
				t.Errorf("the hosts are %v", got)
			}
			if _, err := n2.service().Disconnect(api.DisconnectRequest{Hosts: []string{"elsewhere"}}); err != nil {
				t.Fatal(err)
			}
		}
		res, err := n2.service().Connect(t.Context(), api.ConnectRequest{Hosts: []string{"n1"}})
		if err != nil || len(res.Targets) != 1 || res.Targets[0].State != "waiting: this node has not joined yet; it asks this host, too" {
			t.Errorf("%+v, %v", res, err)
		}
		c.ready(n2)
		c.eventually(10*time.Second, "n1 is joined", func() bool { return n2.targets()["n1:6783"] == "joined" })
		if err := n2.stop(); err != nil {
			t.Fatal(err)
		}
		c.start(n2, nil) // and it is kept
		c.ready(n2)
		c.eventually(10*time.Second, "n1 is joined again", func() bool { return n2.targets()["n1:6783"] == "joined" })
	})
}
