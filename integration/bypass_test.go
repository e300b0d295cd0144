// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// questions are datagrams from one workload to an address, each of which is answered by another workload.
type questions struct {
	from, to *net.UDPConn
}

// questioning begins them; the answers are from a workload's own address, and a port that may be 0 for any.
func questioning(t *testing.T, from, to *lab.Workload, addr netip.Addr, of netip.AddrPort) *questions {
	t.Helper()
	q := &questions{}
	err := to.Do(func() (err error) {
		q.to, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(of))
		return err
	})
	if err == nil {
		port := q.to.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		err = from.Do(func() (err error) {
			q.from, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port)))
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	answering := make(chan struct{})
	go func() {
		defer close(answering)
		b := make([]byte, 2000)
		for {
			n, from, err := q.to.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = q.to.WriteToUDPAddrPort(b[:n], from) // who asks sees that no answer comes
			}
		}
	}()
	t.Cleanup(func() {
		_, _ = q.to.Close(), q.from.Close()
		<-answering
	})
	return q
}

// answered asks one, and tells whether it is answered soon.
func (q *questions) answered(size int) bool {
	b := make([]byte, 2000)
	_, _ = q.from.Write(b[:size]) // an error tells of an earlier one
	_ = q.from.SetReadDeadline(time.Now().Add(silence))
	n, err := q.from.Read(b)
	return err == nil && n == size
}

// forwarded is how many IP packets the host's stack has forwarded.
func forwarded(t *testing.T, h *lab.Host, v6 bool) (n int) {
	t.Helper()
	err := h.Do(func() error {
		if v6 {
			text, err := os.ReadFile("/proc/thread-self/net/snmp6")
			for line := range strings.Lines(string(text)) {
				if strings.HasPrefix(line, "Ip6OutForwDatagrams") {
					_, err = fmt.Sscan(strings.Fields(line)[1], &n)
				}
			}
			return err
		}
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); f[0] == "Ip:" {
				if names == nil {
					names = f
					continue
				}
				for i, name := range names {
					if name == "ForwDatagrams" {
						_, err = fmt.Sscan(f[i], &n)
					}
				}
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// share asks many questions, all of which must be answered, and tells which part of the packets the host's stack has forwarded.
func (q *questions) share(t *testing.T, h *lab.Host, v6 bool) float64 {
	t.Helper()
	const many = 400
	before := forwarded(t, h, v6)
	for range many {
		if !q.answered(100) {
			t.Error("a question is not answered")
		}
	}
	return float64(forwarded(t, h, v6)-before) / (2 * many)
}

// bypasses waits until packets of established flows go around the stacks of hosts.
func bypasses(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		eventually(t, patience, func() error {
			if out := done(t, h.Weft("status")); !strings.Contains(out, "large flows go around this host's stack") {
				return errors.New(out)
			}
			return nil
		})
	}
}

// TestBypass has flows of both families go around the stacks of both hosts by both paths, but for those whose addresses are translated, and obeys
// firewalls of others that come later.
func TestBypass(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"vxlan", "direct"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			m := lab.Mesh(t, 2, kernelFlags("--paths", path+",udp"))
			hosts, a, b := m.Hosts(), m.Workloads[0], m.Workloads[1]
			onPath(t, path, hosts...)
			bypasses(t, hosts...)
			for _, addr := range b.Addrs() {
				q := questioning(t, a, b, addr, netip.AddrPortFrom(addr, 0))
				eventually(t, patience, func() error {
					for _, h := range hosts {
						if s := q.share(t, h, addr.Is6()); s > 0.2 {
							return fmt.Errorf("%s forwards %.2f of the packets to %v by its stack", h.Name(), s, addr)
						}
					}
					return nil
				})
			}
			service := netip.MustParseAddr("198.51.100.7")
			of := netip.AddrPortFrom(b.V4, 5300)
			hosts[0].Service(netip.AddrPortFrom(service, of.Port()), of)
			q := questioning(t, a, b, service, of)
			for range 3 {
				if s := q.share(t, hosts[0], false); s < 1 {
					t.Errorf("the stack translates %.2f of what is to be translated", s)
				}
			}

			q = questioning(t, a, b, b.V4, netip.AddrPortFrom(b.V4, 0))
			for range 100 {
				if !q.answered(100) {
					t.Error("a question is not answered")
				}
			}
			since := time.Now()
			hosts[1].DropForwarded(q.to.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			for q.answered(100) {
				if d := time.Since(since); d > fallback {
					t.Fatalf("questions are answered %v after they were forbidden", d)
				}
			}
			t.Logf("the last answer came %v after it was forbidden", time.Since(since)-silence)
		})
	}
}

// TestNoBypass has every packet go through the hosts' stacks.
func TestNoBypass(t *testing.T) {
	t.Parallel()
	m := lab.Mesh(t, 2, kernelFlags("--paths", "vxlan,udp", "--no-bypass"))
	hosts, a, b := m.Hosts(), m.Workloads[0], m.Workloads[1]
	onPath(t, "vxlan", hosts...)
	q := questioning(t, a, b, b.V4, netip.AddrPortFrom(b.V4, 0))
	if s := q.share(t, hosts[0], false); s < 1 {
		t.Errorf("%.2f of the packets are forwarded", s)
	}
	if out := done(t, hosts[0].Weft("status")); !strings.Contains(out, "none: launched with --no-bypass") {
		t.Error(out)
	}
	if v, err := hosts[0].ReadSysctl("net/netfilter/nf_conntrack_tcp_be_liberal"); err != nil && !errors.Is(err, unix.ENOENT) || strings.TrimSpace(v) == "1" {
		t.Errorf("connection tracking is changed: %q, %v", v, err)
	}
}
