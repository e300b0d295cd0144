// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// Probes leave by the way that they are to prove, whatever is listed, and do not count as traffic; other marks help nobody.
func TestProbesAreLetOut(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Plain = h.neighbourPeer(t)
	listed := d.Plain.Out
	d.Plain.Out = nil
	h.apply(t, d)
	h.direct(t, true)
	for _, out := range [][]Out{nil, listed} {
		p := d.Plain
		p.Out = out
		must(t, h.SetPlain(p))
		for _, remote := range []netip.Addr{remote4, remote6} {
			for _, mark := range []int{markDirect, markVXLAN} {
				before := dropped(t, h.ns, "never in plaintext")
				onlySecond(t, func(port uint16) error {
					if len(out) > 0 {
						return nil // all may leave
					}
					return sendMarked(t, h.ns, 0x57650003, netip.AddrPortFrom(remote, port), "leak")
				}, func(port uint16) error {
					return sendMarked(t, h.ns, mark, netip.AddrPortFrom(remote, port), "good")
				}, h.outside, remote)
				if n := dropped(t, h.ns, "never in plaintext") - before; n != 1 && len(out) == 0 {
					t.Errorf("to %v: %d packets dropped, want 1", remote, n)
				}
			}
		}
		got, err := h.Traffic()
		must(t, err)
		if len(got) > 0 {
			t.Errorf("probes are counted: %v", got)
		}
	}
	must(t, send(t, h.ns, netip.Addr{}, netip.AddrPortFrom(remote4, 9), "counted"))
	if got, err := h.Traffic(); err != nil || got[has4] != 1 {
		t.Errorf("traffic %v, %v", got, err)
	}
}

// sendMarked sends a datagram with a mark.
func sendMarked(t testing.TB, n namespace, mark int, to netip.AddrPort, payload string) error {
	t.Helper()
	return n.run(func() error {
		domain := unix.AF_INET
		if to.Addr().Is6() {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			return err
		}
		return unix.Sendto(fd, []byte(payload), 0, sockaddr(to))
	})
}
