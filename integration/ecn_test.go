// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// TestCongestionMarks lets a router between the hosts mark their datagrams as congested: TCP between the workloads must learn of it, and
// slow down without losing anything, over underlays of either family.
func TestCongestionMarks(t *testing.T) {
	for _, tt := range []struct {
		name   string
		family lab.HostOption
		flags  []string
	}{
		{"v4", lab.OnlyV4, nil},
		{"v6", lab.OnlyV6, nil},
		{"v4, no offload", lab.OnlyV4, []string{"--no-offload", "--copy-dscp"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := lab.New(t)
			left, right := l.Switch("left"), l.Switch("right")
			middle := l.Router("middle", left, right)
			a, b := l.Host("a", left, tt.family), l.Host("b", right, tt.family)
			secret := token(t, a)
			a.Join(secret, nil, append(tt.flags, "--range", lab.DefaultRange)...)
			b.Join(secret, []*lab.Host{a}, append(tt.flags, "--range", lab.DefaultRange)...)
			var workloads []*lab.Workload
			for _, h := range []*lab.Host{a, b} {
				if err := h.WaitReady(patience); err != nil {
					t.Fatal(err)
				}
				w := h.Workload("w")
				w.Attach()
				if err := w.Sysctl("net/ipv4/tcp_ecn", "1"); err != nil {
					t.Fatal(err)
				}
				workloads = append(workloads, w)
			}
			allReach(t, patience, workloads...)
			from, to := workloads[0], workloads[1]
			wire := l.Capture(middle.Namespace, middle.Link(left).Device(), 256<<20)
			for _, addr := range to.Addrs() {
				ce := "IpExt.InCEPkts"
				if addr.Is6() {
					ce = "Ip6InCEPkts"
				}
				clean := congested(t, l, from, to, addr, ce)
				if clean.ce != 0 || clean.delivered != 0 {
					t.Errorf("%v, no congestion: %+v", addr, clean)
				}
				middle.Congest(0.02)
				marked := congested(t, l, from, to, addr, ce)
				if marked.ce == 0 || marked.delivered == 0 {
					t.Errorf("%v, congestion: packets with CE at the receiver, and said by it to the sender: %+v", addr, marked)
				}
				middle.Congest(0)
				t.Logf("%v: %+v", addr, marked)
			}
			wire.Stop()
			outer := outerECN(wire, a.Link())
			if outer[2] == 0 || outer[1] != 0 || outer[3] != 0 {
				t.Errorf("ECN fields of datagrams as host a sends them: %v", outer)
			}
			// None of it is loss. Acknowledgements of a connection that is capable of ECN are not (RFC 3168 §6.1.4), so
			// there were packets of both kinds; none was marked that must not be.
			for _, h := range []*lab.Host{a, b} {
				if d := drops(t, h); d["ecn"] != 0 {
					t.Errorf("%s drops %v", h.Name(), d)
				}
			}
		})
	}
}

// congestion is what TCP has learnt of it.
type congestion struct {
	ce        uint64 // packets with CE at the receiver
	delivered uint64 // packets of which the sender knows that they had it
}

// congested transfers some data and returns what was marked meanwhile. counter names the receiver's packets with CE.
func congested(t *testing.T, l *lab.Lab, from, to *lab.Workload, addr netip.Addr, counter string) congestion {
	t.Helper()
	before := congestion{netstat(t, to.Namespace, counter), netstat(t, from.Namespace, "TcpExt.TCPDeliveredCE")}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := l.Transfer(ctx, from.Namespace, to.Namespace, addr, 16<<20); err != nil {
		t.Fatal(err)
	}
	return congestion{
		netstat(t, to.Namespace, counter) - before.ce, netstat(t, from.Namespace, "TcpExt.TCPDeliveredCE") - before.delivered,
	}
}

// netstat returns a counter of the namespace: of /proc/net/netstat with its group, or of /proc/net/snmp6.
func netstat(t *testing.T, n *lab.Namespace, name string) uint64 {
	t.Helper()
	values := map[string]uint64{}
	err := n.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		lines := strings.Split(string(b), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			keys, counts := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for k := 1; k < len(keys); k++ {
				var v uint64
				if _, err := fmt.Sscan(counts[k], &v); err == nil {
					values[strings.TrimSuffix(keys[0], ":")+"."+keys[k]] = v
				}
			}
		}
		if b, err = os.ReadFile("/proc/thread-self/net/snmp6"); err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			var key string
			var v uint64
			if _, err := fmt.Sscan(line, &key, &v); err == nil {
				values[key] = v
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	v, ok := values[name]
	if !ok {
		t.Fatalf("the kernel has no counter %s", name)
	}
	return v
}

// outerECN counts the UDP packets that the link's host has sent, by ECN field.
func outerECN(c *lab.Capture, from *lab.Link) (count [4]int) {
	for _, f := range c.Frames() {
		if len(f.Data) < 14+40 {
			continue
		}
		ip := f.Data[14:]
		switch binary.BigEndian.Uint16(f.Data[12:]) {
		case unix.ETH_P_IP:
			if ip[9] == unix.IPPROTO_UDP && netip.AddrFrom4([4]byte(ip[12:])) == from.V4() {
				count[ip[1]&3]++
			}
		case unix.ETH_P_IPV6:
			if ip[6] == unix.IPPROTO_UDP && netip.AddrFrom16([16]byte(ip[8:])) == from.V6() {
				count[ip[1]>>4&3]++
			}
		}
	}
	return count
}

// packets returns what the host's daemon counts of its data path.
func packets(t *testing.T, h *lab.Host) map[string]uint64 {
	t.Helper()
	s := ask[struct {
		Packets map[string]uint64 `json:"packets"`
	}](t, h, "status")
	if len(s.Packets) == 0 {
		t.Fatalf("%s counts no packets", h.Name())
	}
	return s.Packets
}

// drops returns what the host's daemon has dropped, by reason.
func drops(t *testing.T, h *lab.Host) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	for name, n := range packets(t, h) {
		if reason, ok := strings.CutPrefix(name, "drop_"); ok && n > 0 {
			all[reason] = n
		}
	}
	return all
}
