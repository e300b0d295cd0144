// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// benchResult is the answer of `weft bench --json`.
type benchResult struct {
	From, To struct {
		Name    string     `json:"name"`
		NodeID  string     `json:"node_id"`
		Build   string     `json:"build"`
		Address netip.Addr `json:"address"`
	}
	Path    string  `json:"path"`
	Suite   string  `json:"suite"`
	MTU     int     `json:"overlay_mtu_bytes"`
	Elapsed float64 `json:"elapsed_seconds"`
	Latency struct {
		Samples int     `json:"samples"`
		P50     float64 `json:"p50_us"`
		P99     float64 `json:"p99_us"`
		Max     float64 `json:"max_us"`
	} `json:"latency"`
	TCP []struct {
		Direction string             `json:"direction"`
		Streams   int                `json:"streams"`
		Bytes     int64              `json:"bytes"`
		Seconds   float64            `json:"seconds"`
		Bits      float64            `json:"bits_per_second"`
		CPU       map[string]float64 `json:"cpu"`
	} `json:"tcp"`
	Packets []struct {
		Direction string             `json:"direction"`
		Payload   int                `json:"payload_bytes"`
		Sent      int64              `json:"sent"`
		Delivered int64              `json:"delivered"`
		Rate      float64            `json:"delivered_per_second"`
		Loss      float64            `json:"loss_percent"`
		CPU       map[string]float64 `json:"cpu"`
	} `json:"packets"`
	Strangers int64 `json:"turned_away"`
}

// benching is a weft bench that runs on a host.
type benching struct {
	*lab.Process
	out, err *output
}

// output collects what a process writes, for a reader who does not wait for its end.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// startBench starts weft bench and waits until the two hosts talk to each other.
func startBench(t *testing.T, h, other *lab.Host, args ...string) benching {
	t.Helper()
	b := benching{out: &output{}, err: &output{}}
	var err error
	b.Process, err = h.Start(lab.Command{
		Path: os.Getenv(envBinary), Args: append([]string{"bench", other.Name()}, args...), Env: []string{"WEFT_RUN_DIR=" + h.RunDir()},
		Stdout: b.out, Stderr: b.err,
	})
	if err != nil {
		t.Fatal(err)
	}
	at := ask[status](t, other, "status").Addresses[0]
	eventually(t, patience, func() error {
		if s := sockets(t, other.Namespace, at); len(s) < 4 { // two that wait, control, a stream
			return fmt.Errorf("%s has the sockets %v; weft bench says %q", other.Name(), s, b.err.String())
		}
		return nil
	})
	return b
}

// sockets lists the TCP and UDP sockets of a namespace that wait for somebody at one of the addresses, and its TCP
// connections between them.
func sockets(t *testing.T, n *lab.Namespace, addrs ...netip.Addr) []string {
	t.Helper()
	var found []string
	err := n.Do(func() error {
		for _, table := range []string{"tcp", "udp", "tcp6", "udp6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				if len(f) < 4 || f[3] == "06" { // TIME_WAIT is the kernel's alone
					continue
				}
				for _, a := range addrs {
					if strings.HasPrefix(f[1], procAddr(a)+":") {
						found = append(found, table+" "+f[1]+" "+f[3])
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// procAddr writes an address as /proc/net does on a little-endian machine.
func procAddr(a netip.Addr) string {
	b := slices.Clone(a.AsSlice())
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	return strings.ToUpper(fmt.Sprintf("%x", b))
}

// quiet checks that nothing of a measurement is left on the hosts.
func quiet(t *testing.T, within time.Duration, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		addrs := ask[status](t, h, "status").Addresses
		eventually(t, within, func() error {
			if s := sockets(t, h.Namespace, addrs...); len(s) > 0 {
				return fmt.Errorf("%s has sockets on its overlay address: %v", h.Name(), s)
			}
			return nil
		})
	}
}

// TestBenchNode measures between two of three nodes, and reads what it prints.
func TestBenchNode(t *testing.T) {
	m := lab.Mesh(t, 3)
	allReach(t, patience, m.Workloads...)
	a, b, c := m.Hosts()[0], m.Hosts()[1], m.Hosts()[2]

	r := ask[benchResult](t, a, "bench", "host2", "--time", "1s", "--streams", "2")
	if r.From.Name != "host1" || r.To.Name != "host2" || r.From.Build == "" || r.To.Build != r.From.Build || len(r.To.NodeID) != 16 ||
		r.To.Address != ask[status](t, b, "status").Addresses[0] || r.From.Address != ask[status](t, a, "status").Addresses[0] ||
		r.Path != "udp" || r.Suite == "" || r.MTU != ask[status](t, a, "status").MTU || r.Elapsed < 5 || r.Strangers != 0 {
		t.Errorf("%+v", r)
	}
	if l := r.Latency; l.Samples < 10 || l.P50 <= 0 || l.P99 < l.P50 || l.Max < l.P99 {
		t.Errorf("latency: %+v", l)
	}
	cpu := func(what string, of map[string]float64) {
		t.Helper()
		for _, end := range []string{"from", "to"} {
			process, engine := of[end+"_process_seconds_per_gbit"], of[end+"_engine_seconds_per_gbit"]
			if engine <= 0 || process <= engine {
				t.Errorf("%s: processor time %v", what, of)
			}
		}
	}
	var phases []string
	for _, p := range r.TCP {
		what := fmt.Sprintf("%d %s", p.Streams, p.Direction)
		phases = append(phases, what)
		if p.Bytes <= 0 || p.Bits <= 0 || p.Seconds <= 0 {
			t.Errorf("%s: %+v", what, p)
		}
		cpu(what, p.CPU)
	}
	for _, p := range r.Packets {
		phases = append(phases, p.Direction)
		if p.Payload != 64 || p.Delivered <= 0 || p.Delivered > p.Sent || p.Rate <= 0 || p.Loss < 0 || p.Loss >= 100 {
			t.Errorf("packets: %+v", p)
		}
		cpu("packets "+p.Direction, p.CPU)
	}
	if want := []string{"1 there", "1 back", "2 there", "2 back", "there", "back"}; !slices.Equal(phases, want) {
		t.Errorf("phases %v, want %v", phases, want)
	}
	t.Logf("%+v", r)
	quiet(t, patience, a, b)

	// As a table, by the beginning of the NodeID, over the other node.
	res := c.Weft("bench", r.To.NodeID[:8], "--time", "1s", "--streams", "1", "--max-bytes", "64M")
	if res.Code != 0 || strings.Count(res.Stderr, "\n") != 5 || !strings.Contains(res.Stderr, "5/5 small packets back: ") {
		t.Errorf("exit code %d, stderr:\n%s", res.Code, res.Stderr)
	}
	for _, want := range []string{
		"host3 (", ") to host2 (", "path udp, ", "request/response, 64 bytes ", "1 TCP stream there ", "1 TCP stream back ",
		"bit/s  ", "ended by --max-bytes", "UDP packets of 64 bytes there ", "UDP packets of 64 bytes back ", "packets/s", "% lost", "CPU S/GBIT host2",
	} {
		if !strings.Contains(res.Stdout, want) {
			t.Errorf("the table lacks %q:\n%s", want, res.Stdout)
		}
	}
	t.Logf("%s\n%s", res.Stderr, res.Stdout)
	quiet(t, patience, b, c)

	// What is refused.
	for _, x := range []struct {
		args []string
		want string
	}{
		{[]string{"host9"}, `weft: there is no node "host9"; the others are host2, host3`},
		{[]string{"host1"}, "weft: host1 is this node; name another one: host2, host3"},
		{[]string{"host2", "--time", "31s"}, "weft: --time 31s is out of range; give 1s to 30s"},
	} {
		refused(t, a.Weft(append([]string{"bench"}, x.args...)...), x.want)
	}
	if comp := a.Weft("__completeNoDesc", "bench", "ho"); comp.Code != 0 || !strings.HasPrefix(comp.Stdout, "host2\nhost3\n") {
		t.Errorf("completed as %+v", comp)
	}
}

// TestBenchV6 measures in a mesh without IPv4, above and below.
func TestBenchV6(t *testing.T) {
	m := lab.Mesh(t, 2, lab.Flags("--range", "fd77:6566:7400::/64", "--shards", "2"), lab.Hosts(lab.OnlyV6))
	allReach(t, patience, m.Workloads...)
	r := ask[benchResult](t, m.Hosts()[1], "bench", "host1", "--time", "1s", "--max-bytes", "16M")
	if !r.From.Address.Is6() || !r.To.Address.Is6() || len(r.TCP) != 4 || len(r.Packets) != 2 || r.Latency.Samples == 0 {
		t.Errorf("%+v", r)
	}
	for _, p := range r.TCP {
		if p.Bytes != 16<<20/7 || p.Bits <= 0 {
			t.Errorf("%+v", p)
		}
	}
	for _, p := range r.Packets {
		if p.Sent <= 0 || p.Sent > 16<<20/7/64 || p.Delivered <= 0 {
			t.Errorf("%+v", p)
		}
	}
	quiet(t, patience, m.Hosts()...)
}

// TestBenchEndsAndStrangers refuses a second measurement at both ends, turns strangers away meanwhile, and ends by Ctrl-C and by
// the death of the other node.
func TestBenchEndsAndStrangers(t *testing.T) {
	m := lab.Mesh(t, 3)
	allReach(t, patience, m.Workloads...)
	a, b, c := m.Hosts()[0], m.Hosts()[1], m.Hosts()[2]
	target := ask[status](t, b, "status").Addresses[0]

	run := startBench(t, a, b, "--time", "2s", "--streams", "1")
	refused(t, a.Weft("bench", "host3"), "weft: busy: node host1 is measuring with node host2 since ", " ago); try again when that is done")
	refused(t, b.Weft("bench", "host3"), "weft: busy: node host2 is measuring with node host1 since ")
	refused(t, c.Weft("bench", "host2"), "weft: busy: node host2 is measuring with node host1 since ")
	refused(t, c.Weft("bench", "host1"), "weft: busy: node host1 is measuring with node host2 since ")

	// Neither a workload, not even one on the asking host, nor somebody on the network below gets a word out of the ports,
	// and the measurement goes on to its end.
	ports := listening(t, b, target)
	if len(ports) != 2 {
		t.Fatalf("host2 has these ports open: %v", ports)
	}
	outside := m.Host("outside", m.Segment)
	if err := outside.Netlink().RouteAdd(&netlink.Route{
		Dst: &net.IPNet{IP: target.AsSlice(), Mask: net.CIDRMask(target.BitLen(), target.BitLen())}, Gw: b.Link().V4().AsSlice(),
	}); err != nil {
		t.Fatal(err)
	}
	var strangers sync.WaitGroup
	for _, from := range []*lab.Namespace{
		m.Workloads[0].Namespace, m.Workloads[1].Namespace, m.Workloads[2].Namespace, outside.Namespace, a.Namespace, b.Namespace, c.Namespace,
	} {
		strangers.Go(func() { stranger(t, from, target, ports) })
	}
	strangers.Wait()
	if code, err := run.Wait(patience); code != 0 || err != nil {
		t.Errorf("the measurement beside strangers: exit code %d, %v, %s", code, err, run.err)
	}
	if !strings.Contains(run.out.String(), "that were not of this measurement were turned away.\n") {
		t.Errorf("nobody was turned away:\n%s", run.out)
	}
	quiet(t, patience, a, b)

	// Ctrl-C.
	run = startBench(t, a, b, "--time", "2s")
	if err := run.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code, err := run.Wait(5 * time.Second); code != 1 || err != nil || !strings.HasSuffix(run.err.String(), "weft: interrupted: the measurement ends on both nodes\n") {
		t.Errorf("after Ctrl-C: exit code %d, %v, %s", code, err, run.err)
	}
	quiet(t, 5*time.Second, a, b)
	if !strings.Contains(b.Log(), "the other node ended the measurement: interrupted") {
		t.Errorf("the log of host2 does not say that it was interrupted")
	}

	// The other node dies.
	run = startBench(t, a, b, "--time", "1s")
	b.Kill()
	if code, err := run.Wait(15 * time.Second); code != 1 || err != nil || !strings.HasSuffix(run.err.String(), "no sign of life from the other node for 5s\n") {
		t.Errorf("after the death of the other node: exit code %d, %v, %s", code, err, run.err)
	}
	quiet(t, 5*time.Second, a)

	// So does the asking one; and who does not want to be measured is not.
	b.Relaunch()
	if err := b.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	c.Kill()
	c.Launch("--no-bench")
	if err := c.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	allReach(t, patience, m.Workloads...)
	eventually(t, patience, func() error {
		r := a.Weft("bench", "host3", "--time", "1s")
		if r.Stderr != "weft: node host3 was launched with --no-bench and lets nobody measure the way to it; measure from there, or launch it without the flag\n" {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	run = startBench(t, c, b, "--time", "1s")
	c.Kill()
	if code, err := run.Wait(patience); code != 1 || err != nil {
		t.Errorf("after the death of its daemon: exit code %d, %v, %s", code, err, run.err)
	}
	quiet(t, 10*time.Second, b)
}

// listening returns the ports of the host that are open at the address, as network and number.
func listening(t *testing.T, h *lab.Host, at netip.Addr) map[string]int {
	t.Helper()
	ports := map[string]int{}
	for _, s := range sockets(t, h.Namespace, at) {
		var network, local, state string
		if _, err := fmt.Sscan(s, &network, &local, &state); err != nil {
			t.Fatal(err)
		}
		if state != "0A" && state != "07" { // LISTEN; UDP
			continue
		}
		var port int
		if _, err := fmt.Sscanf(local[strings.LastIndex(local, ":"):], ":%X", &port); err != nil {
			t.Fatal(err)
		}
		ports[network] = port
	}
	return ports
}

// stranger talks to the ports from a namespace, and fails if it gets an answer.
func stranger(t *testing.T, from *lab.Namespace, to netip.Addr, ports map[string]int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	for network, port := range ports {
		var d net.Dialer
		var c net.Conn
		err := from.Do(func() (err error) {
			c, err = d.DialContext(ctx, network, netip.AddrPortFrom(to, uint16(port)).String())
			return err
		})
		if err != nil {
			continue // not even a connection
		}
		_ = c.SetDeadline(time.Now().Add(time.Second))
		for range 10 {
			_, _ = c.Write(bytes.Repeat([]byte("wfbn"), 16))
		}
		if b, _ := io.ReadAll(io.LimitReader(c, 1)); len(b) > 0 {
			t.Errorf("%s got an answer of %s port %d", from.Name(), network, port)
		}
		_ = c.Close()
	}
}
