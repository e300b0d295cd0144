// SPDX-License-Identifier: Apache-2.0

package tun_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/routertest"
	"github.com/weftnet/weft/router/tun"
)

// lanesHost returns a device with an address in a namespace of its own, and a function that sends a datagram into it, of a flow that
// is told by its source port.
func lanesHost(t *testing.T, queues int) (ns *routertest.Namespace, d *tun.Device, send func(port uint16)) {
	ns = routertest.NewNamespace(t)
	d = open(t, ns, tun.Config{Name: "weft0", Queues: queues})
	ns.Address("weft0", netip.MustParsePrefix("10.9.0.1/24"))
	socks := map[uint16]*net.UDPConn{}
	return ns, d, func(port uint16) {
		c := socks[port]
		if c == nil {
			ns.Do(func() {
				var err error
				if c, err = net.DialUDP("udp4", &net.UDPAddr{Port: int(port)}, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 9}); err != nil {
					t.Fatal(err)
				}
			})
			socks[port] = c
			t.Cleanup(func() { _ = c.Close() })
		}
		if _, err := c.Write([]byte("packet")); err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatal(err)
		}
	}
}

// A flow that nobody carries fast enough fills its own lane: others lose nothing and are read soon.
func TestLanesKeepFlowsApart(t *testing.T) {
	_, d, send := lanesHost(t, 1)
	const flood, others = 5000, 40
	for range 2000 { // more than a lane holds
		send(flood)
	}
	for i := range others {
		send(uint16(flood + 1 + i))
	}
	q := d.Queues()[0]
	b := make([]byte, 2000)
	first := map[uint16]int{}
	n := 0
	for ; ; n++ {
		length, err := q.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if length == 0 {
			// Read may say so when it has read a lane to its end; then whoever waits is told of the others.
			if length, err = q.Read(b); length == 0 || err != nil {
				break
			}
		}
		if port := binary.BigEndian.Uint16(b[20:]); first[port] == 0 {
			first[port] = n + 1
		}
	}
	soon, lost := 0, 0
	for i := range others {
		switch at := first[uint16(flood+1+i)]; {
		case at == 0:
			lost++
		case at <= 8*130:
			soon++
		}
	}
	// One flow in eight is expected in the lane of the flood.
	t.Logf("%d packets; of %d other flows %d were read soon, %d lost", n, others, soon, lost)
	if lost > others/2 || soon < others/2 {
		t.Errorf("of %d other flows only %d were read soon, and %d lost their packet", others, soon, lost)
	}
}

// What is written seems to the kernel to come from a queue that the device has: otherwise receive packet steering (RPS) would
// complain.
func TestWritersHaveQueues(t *testing.T) {
	for _, queues := range []int{1, 2, 4} {
		ns, d, _ := lanesHost(t, queues)
		fd := -1
		ns.Do(func() {
			var err error
			if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
				t.Fatal(err)
			}
			link, err := net.InterfaceByName("weft0")
			if err != nil {
				t.Fatal(err)
			}
			// The packet is cut to 20 bytes and one more for each number of the queue, counted from 1 (SKF_AD_QUEUE of linux/filter.h).
			program := []unix.SockFilter{
				{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0xfffff000 + 24},
				{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_K, K: 20},
				{Code: unix.BPF_RET | unix.BPF_A},
			}
			if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
				t.Fatal(err)
			}
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
				t.Fatal(err)
			}
			if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: link.Index}); err != nil { // IPv4, in network order
				t.Fatal(err)
			}
		})
		p := make([]byte, 200)
		copy(p, []byte{0x45, 0, 0, 200, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1})
		for i, q := range d.Queues() {
			if err := q.Write(p); err != nil {
				t.Fatal(err)
			}
			n, _, err := unix.Recvfrom(fd, make([]byte, 2000), 0)
			if err != nil {
				t.Fatal(err)
			}
			// 16 lanes each; 0 would mean that the kernel keeps no number, as for a device of one queue.
			if queue := n - 20; queue < 1 || queue > queues*16 {
				t.Errorf("%d queues: what queue %d writes comes from receive queue %d of %d", queues, i, queue-1, queues*16)
			}
		}
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	}
}
