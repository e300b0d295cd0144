// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// running is a container that runs.
type running struct {
	name  string
	by    containers
	addrs []netip.Addr
}

// started starts a container and asks it for its addresses.
func started(t *testing.T, by containers, name string) running {
	t.Helper()
	by.run(name)
	return asked(t, by, name)
}

// asked is a container that runs already.
func asked(t *testing.T, by containers, name string) running {
	t.Helper()
	r := running{name: name, by: by}
	for _, a := range answered(t, r, "127.0.0.1").Addresses {
		if p := netip.MustParsePrefix(a); !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			r.addrs = append(r.addrs, p.Addr())
		}
	}
	if len(r.addrs) != 2 {
		t.Fatalf("%s has the addresses %v, want one of each family", name, r.addrs)
	}
	return r
}

// answer is what the program in a container says.
type answer struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
}

// answered asks from inside of a container.
func answered(t *testing.T, from running, address string) (a answer) {
	t.Helper()
	out, err := from.by.inside(from.name, "ask", net.JoinHostPort(address, podPort))
	if err == nil {
		err = json.Unmarshal([]byte(out), &a)
	}
	if err != nil {
		t.Fatalf("%s asks %s: %v", from.name, address, err)
	}
	return a
}

// fromHost asks from a host, by the network outside of the mesh.
func fromHost(t *testing.T, h *lab.Host, address string) (a answer) {
	t.Helper()
	eventually(t, patience, func() error {
		var text []byte
		err := h.Do(func() error {
			conn, err := net.DialTimeout("tcp", address, time.Second)
			if err != nil {
				return err
			}
			text, err = io.ReadAll(conn)
			return errors.Join(err, conn.Close())
		})
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &a)
	})
	return a
}

// TestContainerRuntimes has containerd and podman, as Debian has them, make containers on two hosts: they get addresses of the mesh, talk to each other
// across hosts and runtimes, come back when they are restarted, and leave nothing when they have gone.
func TestContainerRuntimes(t *testing.T) {
	for _, program := range []string{"containerd", "ctr", "podman", "runc", "unshare", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("NOT TESTED with real container runtimes: %v (Debian: apt-get install containerd podman runc iptables)", err)
		}
	}
	t.Parallel()
	var machines []*machine
	t.Cleanup(func() { // after the lab, with which the processes go
		for _, m := range machines {
			m.removeCgroups()
		}
	})
	l := lab.New(t)
	lan := l.Switch("lan")
	image := filepath.Join(l.Root(), "image.tar")
	buildPodImage(t, image)
	hosts := []*lab.Host{l.Host("plain", lan)}
	for _, name := range []string{"host1", "host2"} {
		m := newMachine(t, l.Host(name, lan))
		machines, hosts = append(machines, m), append(hosts, m.Host)
	}
	mesh(t, hosts, first(hosts))
	workloads := attach(t, 1, hosts[0])
	var runtimes []containers
	var pods []*podman
	for _, m := range machines {
		m.install()
		p := withPodman(m, image)
		pods = append(pods, p)
		runtimes = append(runtimes, withContainerd(m, image), p)
	}
	// The plugin portmap makes tables with its first port, and keeps them.
	for _, p := range pods {
		p.publish("first", "--publish", "8080:"+podPort)
		p.stop("first")
	}
	var clean []before
	for _, m := range machines {
		clean = append(clean, noted(t, m.Host))
	}

	var all []running
	for i, by := range runtimes {
		all = append(all, started(t, by, string(rune('a'+i))))
	}
	talk := func() {
		t.Helper()
		for _, from := range all {
			for _, to := range all {
				for _, a := range to.addrs {
					if got := answered(t, from, a.String()); got.Name != to.name {
						t.Errorf("%s asks %v of %s and is answered by %s", from.name, a, to.name, got.Name)
					}
				}
			}
			for _, w := range workloads {
				for _, a := range from.addrs {
					if _, err := w.Reach(a, patience); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	talk()
	var every []netip.Addr
	for _, r := range all {
		every = append(every, r.addrs...)
	}
	distinct(t, append(every, addrs(workloads...)...))

	// The port of a container is published on its host, and found from the other one.
	pods[0].publish("web", "--publish", "8081:"+podPort)
	if got := fromHost(t, hosts[0], net.JoinHostPort(machines[0].Link().V4().String(), "8081")); got.Name != "web" {
		t.Errorf("the port published on %s is answered by %q", machines[0].Name(), got.Name)
	}
	// Started again, a container is reached as before.
	pods[0].do(pods[0].podman("restart", "web")...)
	all = append(all, asked(t, pods[0], "web"))
	talk()

	// Where the daemon is not there the runtimes end their containers all the same, and it catches up.
	without := machines[0]
	done(t, without.Weft("stop"))
	for _, r := range all {
		r.by.stop(r.name)
	}
	without.Relaunch()
	ready(t, without.Host)
	for _, b := range clean {
		b.leaks(t)
	}
}
