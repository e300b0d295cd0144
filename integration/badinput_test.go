// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// TestRefusedLaunch starts daemons that must refuse: one line that names the thing and the remedy, exit code 1, and nothing
// changed on the host or in its files.
func TestRefusedLaunch(t *testing.T) {
	m := lab.Mesh(t, 1, lab.Flags("--range", "10.32.0.0/12"))
	founder := m.Hosts()[0].Link().V4().String()
	for _, tt := range []struct {
		name string
		// prepare changes the host beforehand and returns the flags.
		prepare func(*testing.T, *lab.Host) []string
		want    []string
	}{
		{"no token", func(*testing.T, *lab.Host) []string {
			return []string{"--peer", founder}
		}, []string{"no token", founder, "weft token --raw", "--token-file", "WEFT_TOKEN"}},
		{"another mesh's token", func(t *testing.T, h *lab.Host) []string {
			return []string{"--peer", founder, "--token-file", h.File("token", token(t, h), 0o600)}
		}, []string{"token", founder, "weft token --raw"}},
		{"mistyped token", func(_ *testing.T, h *lab.Host) []string {
			return []string{"--peer", founder, "--token-file", h.File("token", "weft-"+strings.Repeat("a", 40), 0o600)}
		}, []string{"token file", "checksum", "weft token --raw"}},
		{"no token at all in the file", func(_ *testing.T, h *lab.Host) []string {
			return []string{"--peer", founder, "--token-file", h.File("token", "hello\n", 0o600)}
		}, []string{"token file", "is not a Weft token"}},
		{"token file that others may read", func(_ *testing.T, h *lab.Host) []string {
			return []string{"--peer", founder, "--token-file", h.File("token", m.Token, 0o644)}
		}, []string{"token file", "0644", "chmod 600"}},
		{"token file that is not there", func(_ *testing.T, h *lab.Host) []string {
			return []string{"--peer", founder, "--token-file", filepath.Join(h.Dir(), "missing")}
		}, []string{"missing", "does not exist"}},
		{"range overlaps an address", func(*testing.T, *lab.Host) []string {
			return []string{"--range", "192.168.0.0/16"}
		}, []string{"192.168.0.0/16", "192.168.1.", "eth0", "--range"}},
		{"v6 range overlaps an address", func(*testing.T, *lab.Host) []string {
			return []string{"--range", "2001:db8::/32"}
		}, []string{"2001:db8::/32", "2001:db8:1::", "eth0", "--range"}},
		{"range overlaps a route", func(_ *testing.T, h *lab.Host) []string {
			h.Link().AddRoute(netip.MustParsePrefix("10.33.128.0/17"))
			return nil
		}, []string{"10.32.0.0/12", "10.33.128.0/17", "eth0", "--range"}},
		{"v6 range overlaps a route", func(_ *testing.T, h *lab.Host) []string {
			h.Link().AddRoute(netip.MustParsePrefix("fd00:1:2::/48"))
			return []string{"--range", "fd00:1:2:3::/64"}
		}, []string{"fd00:1:2:3::/64", "fd00:1:2::/48", "eth0", "--range"}},
		{"range too small", func(*testing.T, *lab.Host) []string {
			return []string{"--range", "10.9.0.0/30"}
		}, []string{"10.9.0.0/30", "too small", "/29"}},
		{"range with host bits", func(*testing.T, *lab.Host) []string {
			return []string{"--range", "10.9.0.1/16"}
		}, []string{"10.9.0.1/16", "10.9.0.0/16"}},
		{"no range", func(*testing.T, *lab.Host) []string {
			return []string{"--range", "everything"}
		}, []string{"everything", "10.32.0.0/12"}},
		{"two ranges of a family", func(*testing.T, *lab.Host) []string {
			return []string{"--range", "10.9.0.0/16,10.10.0.0/16"}
		}, []string{"10.9.0.0/16"}},
		{"range differs from the mesh's", func(_ *testing.T, h *lab.Host) []string {
			return []string{"--peer", founder, "--token-file", h.File("token", m.Token, 0o600), "--range", "10.99.0.0/16"}
		}, []string{"10.99.0.0/16", "10.32.0.0/12"}},
		{"reserve differs from the mesh's", func(_ *testing.T, h *lab.Host) []string {
			return []string{"--peer", founder, "--token-file", h.File("token", m.Token, 0o600), "--reserve", "10.33.1.0/24"}
		}, []string{"--reserve 10.33.1.0/24 differs from the mesh's, which has none; leave the flag out"}},
		{"reserve differs from this node's", func(t *testing.T, h *lab.Host) []string {
			used(t, h)
			return []string{"--reserve", "10.33.1.0/24"}
		}, []string{"--reserve 10.33.1.0/24 differs from this node's mesh's, which has none; leave the flag out, or run weft reset to join another mesh"}},
		{"reserve outside the range", func(*testing.T, *lab.Host) []string {
			return []string{"--range", "10.9.0.0/16", "--reserve", "10.9.0.0/24,10.10.0.0/24"}
		}, []string{"--reserve: reserve 10.10.0.0/24 lies outside the mesh's range 10.9.0.0/16"}},
		{"UDP port taken", func(t *testing.T, h *lab.Host) []string {
			occupy(t, h.Namespace, func() (interface{ Close() error }, error) { return net.ListenUDP("udp", &net.UDPAddr{Port: 6783}) })
			return nil
		}, []string{"6783", "--port"}},
		{"TCP port taken", func(t *testing.T, h *lab.Host) []string {
			occupy(t, h.Namespace, func() (interface{ Close() error }, error) { return net.ListenTCP("tcp", &net.TCPAddr{Port: 6783}) })
			return nil
		}, []string{"6783", "--port"}},
		{"corrupt data directory", func(t *testing.T, h *lab.Host) []string {
			used(t, h)
			damage(t, h.DataDir())
			return nil
		}, []string{"is corrupt", "kept as weft.db.corrupt-", "put a copy there as weft.db", "weft reset", "weft forget"}},
		{"data directory of another mesh by its seed", func(t *testing.T, h *lab.Host) []string {
			used(t, h)
			return []string{"--seed", h.Name() + ",other", "--token-file", filepath.Join(h.DataDir(), "token")}
		}, []string{"data directory", "another universe", "--data-dir", "weft reset"}},
		{"data directory of another mesh by its range", func(t *testing.T, h *lab.Host) []string {
			used(t, h)
			return []string{"--range", "10.99.0.0/16"}
		}, []string{"10.99.0.0/16", "10.32.0.0/12", "weft reset"}},
		{"data directory of another mesh by its token", func(t *testing.T, h *lab.Host) []string {
			used(t, h)
			return []string{"--peer", founder, "--token-file", h.File("token", m.Token, 0o600)}
		}, []string{"token", h1Data("token"), "another mesh", "weft reset"}},
		{"data directory below a file", func(_ *testing.T, h *lab.Host) []string {
			return []string{"--data-dir", filepath.Join(h.File("file", "", 0o600), "data")}
		}, []string{"file/data", "--data-dir"}},
		{"read-only data directory", func(t *testing.T, _ *lab.Host) []string {
			dir := m.SmallDisk(1 << 20)
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			return []string{"--data-dir", filepath.Join(dir, "data")}
		}, []string{"read-only", "--data-dir"}},
		{"full data directory", func(*testing.T, *lab.Host) []string {
			return []string{"--data-dir", filepath.Join(m.SmallDisk(8<<10), "data")}
		}, []string{"no space left"}},
		{"host name in --peer that is none", func(_ *testing.T, h *lab.Host) []string {
			return []string{"--peer", "not a host", "--token-file", h.File("token", m.Token, 0o600)}
		}, []string{"--peer", "not a host"}},
		{"name that is none", func(*testing.T, *lab.Host) []string {
			return []string{"--name", "two words"}
		}, []string{"two words", "--name"}},
		{"MTU out of range", func(*testing.T, *lab.Host) []string {
			return []string{"--mtu", "17"}
		}, []string{"--mtu 17"}},
		{"no shards", func(*testing.T, *lab.Host) []string {
			return []string{"--shards", "0"}
		}, []string{"--shards 0"}},
		{"seed without this node", func(*testing.T, *lab.Host) []string {
			return []string{"--seed", "a,b"}
		}, []string{"--seed a,b", "--peer"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := m.Host(fmt.Sprintf("refusing%d", len(m.Hosts())), m.Segment)
			flags := tt.prepare(t, h)
			before, filesBefore := snapshot(t, h.Namespace), files(t, h.Dir())
			r := h.RunLaunch(flags...)
			for i, w := range tt.want {
				tt.want[i] = strings.ReplaceAll(w, hostData, h.DataDir())
			}
			refusedLaunch(t, r, tt.want...)
			same(t, "the host", before, snapshot(t, h.Namespace))
			// A damaged file is kept under another name, and nothing else is touched.
			if after := kept.ReplaceAllString(files(t, h.Dir()), "$1"); after != filesBefore {
				t.Errorf("files before:\n%s\nafter:\n%s", filesBefore, after)
			}
		})
	}
}

// kept matches the name under which a damaged file is kept.
var kept = regexp.MustCompile(`(weft\.db)\.corrupt-\d{8}T\d{6}Z`)

// hostData stands for the data directory of the test's host in what is wanted.
const hostData = "DATADIR"

func h1Data(file string) string { return filepath.Join(hostData, file) }

// occupy holds something inside the namespace until the test ends.
func occupy(t *testing.T, n *lab.Namespace, listen func() (interface{ Close() error }, error)) {
	t.Helper()
	var c interface{ Close() error }
	err := n.Do(func() (err error) {
		c, err = listen()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
}

// used lets the host found a mesh of its own and stop.
func used(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Launch()
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	h.Terminate()
}

// damage overwrites the middle of every database file in the directory.
func damage(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.db"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no database in %s (%v)", dir, err)
	}
	for _, name := range names {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 16<<10), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHostCannot starts daemons on hosts that lack what a daemon needs.
func TestHostCannot(t *testing.T) {
	l := lab.New(t)
	lan := l.Switch("lan")
	for _, tt := range []struct {
		without string
		want    []string
	}{
		{withoutTUN, []string{"/dev/net/tun"}},
		{withoutNetAdmin, []string{"CAP_NET_ADMIN"}},
	} {
		t.Run(tt.without, func(t *testing.T) {
			h := l.Host("without-"+tt.without, lan)
			before := snapshot(t, h.Namespace)
			launchWithout(t, h, tt.without)
			refusedLaunch(t, h.RunLaunch(), tt.want...)
			same(t, "the host", before, snapshot(t, h.Namespace))
			if left := files(t, h.DataDir()) + files(t, h.RunDir()); left != "" {
				t.Errorf("files:\n%s", left)
			}
		})
	}
}

// TestLeastPrivilege runs daemons with no capabilities but those that the systemd unit leaves them.
func TestLeastPrivilege(t *testing.T) {
	unit, err := os.ReadFile(filepath.Join("..", "scripts", "weft.service"))
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]int{"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE}
	but := withoutAllBut
	for line := range strings.Lines(string(unit)) {
		if names, ok := strings.CutPrefix(line, "CapabilityBoundingSet="); ok {
			for name := range strings.FieldsSeq(names) {
				n, known := numbers[name]
				if !known {
					t.Fatalf("the unit has %s: add its number here", name)
				}
				but += fmt.Sprintf("%d ", n)
			}
		}
	}
	l := lab.New(t)
	lan := l.Switch("lan")
	a, b := l.Host("a", lan), l.Host("b", lan)
	launchWithout(t, a, but)
	launchWithout(t, b, but)
	secret := token(t, a)
	a.Join(secret, nil, "--range", lab.DefaultRange)
	b.Join(secret, []*lab.Host{a}, "--range", lab.DefaultRange)
	var workloads []*lab.Workload
	for _, h := range []*lab.Host{a, b} {
		if err := h.WaitReady(patience); err != nil {
			t.Fatal(err)
		}
		w := h.Workload("w")
		w.Attach()
		workloads = append(workloads, w)
	}
	allReach(t, patience, workloads...)
	// A workload of another user, found by its process.
	w := a.Workload("of-nobody")
	p := idle(t, w.Namespace, 65534)
	done(t, a.Weft("attach", "--pid", fmt.Sprint(p.Pid())))
	w.Detach()
}

// TestUnknownPeer joins by a name that nobody knows. The daemon goes on trying and says so.
func TestUnknownPeer(t *testing.T) {
	l := lab.New(t)
	h := l.Host("host", l.Switch("lan"))
	h.Launch("--peer", "no-such-host.invalid", "--token-file", h.File("token", token(t, h), 0o600))
	eventually(t, patience, func() error {
		var s status
		if err := h.Query(&s, "status"); err != nil {
			return err
		}
		if s.Ready || !strings.Contains(s.WaitsFor, "no-such-host.invalid") {
			return fmt.Errorf("status: %+v", s)
		}
		return nil
	})
	if out := done(t, h.Weft("status")); !strings.Contains(out, "no-such-host.invalid") {
		t.Errorf("weft status prints\n%s", out)
	}
	w := h.Workload("w")
	refused(t, h.Weft("attach", "--netns", w.Path()), "no-such-host.invalid")
	if code := h.Terminate(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
}

// TestCommands runs commands that are refused, and some that must not be, against one daemon.
func TestCommands(t *testing.T) {
	m := lab.Mesh(t, 2)
	allReach(t, patience, m.Workloads...)
	h, w, other := m.Hosts()[0], m.Workloads[0], m.Workloads[1]
	spare := h.Workload("spare")
	file := h.File("no-namespace", "", 0o600)
	hostBefore, ipamBefore := snapshot(t, h.Namespace), ask[space](t, h, "ipam").Allocations
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"path that is not there", []string{"attach", "--netns", "/nonexistent"}, []string{"/nonexistent", "no network namespace"}},
		{"path that is no namespace", []string{"attach", "--netns", file}, []string{file, "network namespace"}},
		{"process that is not there", []string{"attach", "--pid", "4194304"}, []string{"4194304"}},
		{"the host's own namespace", []string{"attach", "--netns", h.Path()}, []string{"host's own"}},
		{"address outside the range", []string{"attach", "--netns", spare.Path(), "--ip", "192.0.2.1"}, []string{"192.0.2.1", "10.32.0.0/12"}},
		{"address of another node's workload", []string{"attach", "--netns", spare.Path(), "--ip", other.V4.String()}, []string{other.V4.String(), "host2"}},
		{"address in use here", []string{"attach", "--netns", spare.Path(), "--ip", w.V4.String()}, []string{w.V4.String(), "in use"}},
		{"network address", []string{"attach", "--netns", spare.Path(), "--ip", "10.32.0.0"}, []string{"10.32.0.0"}},
		{"another address for one attached", []string{"attach", "--netns", w.Path(), "--ip", "10.33.0.77"}, []string{w.V4.String()}},
		{"interface name that is none", []string{"attach", "--netns", spare.Path(), "--ifname", "a/b"}, []string{"a/b", "--ifname"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			refused(t, h.Weft(tt.args...), tt.want...)
		})
	}
	same(t, "the host after refusals", hostBefore, snapshot(t, h.Namespace))
	if after := ask[space](t, h, "ipam").Allocations; fmt.Sprint(after) != fmt.Sprint(ipamBefore) {
		t.Errorf("allocations were %v, are %v", ipamBefore, after)
	}

	t.Run("attached already", func(t *testing.T) {
		before := w.Addrs()
		w.Attach()
		if fmt.Sprint(before) != fmt.Sprint(w.Addrs()) {
			t.Errorf("had %v, got %v", before, w.Addrs())
		}
		w.Attach("--ip", w.V4.String())
		same(t, "the host", hostBefore, snapshot(t, h.Namespace))
	})
	t.Run("wanted address", func(t *testing.T) {
		want := netip.MustParseAddr("10.39.1.2")
		spare.Attach("--ip", want.String())
		if spare.V4 != want {
			t.Errorf("got %v", spare.V4)
		}
		allReach(t, patience, spare, other)
		spare.Detach()
	})
	t.Run("second interface", func(t *testing.T) {
		spare.Attach("--ifname", "weft-a")
		refused(t, h.Weft("attach", "--netns", spare.Path(), "--ifname", "weft-b"), spare.Path(), "attached already", "detach")
		done(t, h.Weft("detach", "--netns", spare.Path(), "--ifname", "weft-a"))
	})
	t.Run("detach of something unknown", func(t *testing.T) {
		done(t, h.Weft("detach", "--netns", spare.Path()))
		done(t, h.Weft("detach", "--netns", "/nonexistent"))
		done(t, h.Weft("detach", "--netns", w.Path(), "--ifname", "other"))
		allReach(t, patience, m.Workloads...)
	})
	t.Run("by process", func(t *testing.T) {
		p := idle(t, spare.Namespace, 0)
		defer p.Kill()
		out := done(t, h.Weft("attach", "--pid", fmt.Sprint(p.Pid()), "--ifname", "p0"))
		if _, err := netip.ParseAddr(strings.Fields(out)[0]); err != nil {
			t.Error(err)
		}
		done(t, h.Weft("detach", "--pid", fmt.Sprint(p.Pid()), "--ifname", "p0"))
	})
	same(t, "the host at the end", hostBefore, snapshot(t, h.Namespace))
}

// TestNoDaemon runs every command that needs a daemon where there is none.
func TestNoDaemon(t *testing.T) {
	l := lab.New(t)
	h := l.Host("host", l.Switch("lan"))
	w := h.Workload("w")
	for _, args := range [][]string{
		{"status"},
		{"status", "--json"},
		{"peers"},
		{"ps"},
		{"ipam"},
		{"token"},
		{"token", "--raw"},
		{"leave"},
		{"attach", "--netns", w.Path()},
		{"detach", "--netns", w.Path()},
	} {
		t.Run(strings.Join(args[:1], " "), func(t *testing.T) {
			refused(t, h.Weft(args...), "no weft daemon is running", h.RunDir(), "weft launch")
		})
	}
	done(t, h.Weft("stop")) // it is stopped: done
	h.Launch()
	if err := h.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	h.Kill() // leaves its socket
	refused(t, h.Weft("status"), "no weft daemon is running")
}

// TestUsage runs commands that are typed wrongly: exit code 2.
func TestUsage(t *testing.T) {
	l := lab.New(t)
	h := l.Host("host", l.Switch("lan"))
	for _, line := range []string{
		"nonsense", "status extra", "attach", "attach --netns a --pid 1", "attach --netns /x --ip 1.2.3", "attach --pid -1",
		"launch --port 0", "launch --port 99999", "launch --advertise nowhere", "launch --log-level loud", "launch --log-format xml",
		"launch --foreground=false", "launch --tun tap", "--no-such-flag",
	} {
		t.Run(line, func(t *testing.T) {
			if r := h.Weft(strings.Fields(line)...); r.Code != 2 || r.Stdout != "" || !strings.HasPrefix(r.Stderr, "weft: ") {
				t.Errorf("%+v", r)
			}
		})
	}
	for _, line := range []string{"help", "version", "version --json", "completion bash", "--version", "launch --help"} {
		t.Run(line, func(t *testing.T) {
			if out := done(t, h.Weft(strings.Fields(line)...)); out == "" {
				t.Error("prints nothing")
			}
		})
	}
}
