// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Delay is how long frames take along a link, in each direction.
type Delay struct {
	V4, V6 time.Duration
}

// wire carries frames between the link's port and the switch, in this process, for the kernel may have no queue that can wait. A frame
// keeps its offloads: what the machine moves as one goes on as one.
type wire struct {
	ends    [2]*os.File
	workers sync.WaitGroup

	mu    sync.Mutex
	delay Delay
}

// frame is one on its way.
type frame struct {
	due  time.Time
	data []byte
}

// inFlight is how many frames may be on their way in one direction. More are lost.
const inFlight = 4096

// vnetHeader is the length of the header before each frame that says what is left to be done to it (struct virtio_net_hdr).
const vnetHeader = 10

// Delay makes frames take their time along the link, in both directions. The first call rebuilds the link, which loses what is on its
// way; from then on the carrier stays when the plug is pulled at the switch. It is not for high rates.
func (l *Link) Delay(d Delay) {
	l.ns.lab.tb.Helper()
	if l.wire == nil {
		if err := l.rewire(); err != nil {
			l.ns.lab.tb.Fatalf("lab: wire of %s to %s: %v", l.ns.name, l.segment.name, err)
		}
	}
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	l.wire.delay = d
}

// rewire puts a wire between the end of the cable and the port of the switch, which gets the port's name.
func (l *Link) rewire() error {
	nl := l.segment.ns.nl
	cable, err := nl.LinkByName(l.port)
	if err != nil {
		return err
	}
	bridge, err := nl.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	outer, inner := "cable-"+l.port, "wire-"+l.port
	if err := errors.Join(nl.LinkSetDown(cable), nl.LinkSetNoMaster(cable), nl.LinkSetName(cable, outer)); err != nil {
		return err
	}
	port := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: inner}
	port.Name, port.MTU = l.port, cable.Attrs().MTU
	if err := nl.LinkAdd(port); err != nil {
		return err
	}
	w := &wire{}
	for i, name := range []string{outer, inner} {
		dev, err := nl.LinkByName(name)
		if err == nil {
			err = nl.LinkSetUp(dev)
		}
		if err == nil {
			err = l.segment.ns.Do(func() (err error) { w.ends[i], err = openEnd(dev.Attrs().Index); return err })
		}
		if err != nil {
			w.cut()
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := errors.Join(nl.LinkSetMaster(port, bridge), nl.LinkSetUp(port)); err != nil {
		w.cut()
		return err
	}
	if err := l.ns.lab.add(func() { l.ns.lab.wires = append(l.ns.lab.wires, w) }); err != nil {
		w.cut()
		return err
	}
	w.run(0, 1)
	w.run(1, 0)
	l.wire = w
	return l.settle()
}

// openEnd opens a socket that has all frames that come in by the device, whomever they are for, and sends by it.
func openEnd(device int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "wire")
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	for _, step := range []func() error{
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1) },
		func() error {
			return unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
				&unix.PacketMreq{Ifindex: int32(device), Type: unix.PACKET_MR_PROMISC})
		},
		func() error { return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device}) },
	} {
		if err := step(); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return f, nil
}

// run carries frames from one end to the other until the wire is cut. No family waits for another.
func (w *wire) run(from, to int) {
	var ways [lanes]chan frame
	for i := range ways {
		way := make(chan frame, inFlight)
		ways[i] = way
		w.workers.Go(func() {
			for f := range way {
				time.Sleep(time.Until(f.due))
				_, _ = w.ends[to].Write(f.data) // frames may get lost
			}
		})
	}
	w.workers.Go(func() {
		defer func() {
			for _, way := range ways {
				close(way)
			}
		}()
		buf := make([]byte, 128<<10)
		for {
			n, err := w.ends[from].Read(buf)
			switch {
			case errors.Is(err, unix.ENETDOWN): // goes on when the device is up again
			case err != nil:
				return
			case n > vnetHeader:
				by, delay := w.of(buf[vnetHeader:n])
				f := frame{due: time.Now().Add(delay), data: append([]byte(nil), buf[:n]...)}
				select {
				case ways[by] <- f:
				default:
				}
			}
		}
	})
}

// lane is what the delay of a frame depends on.
type lane int

const (
	laneV4 lane = iota
	laneV6
	laneOther
	lanes
)

// of returns the lane of a frame and its delay. What is neither v4 nor v6 goes at once.
func (w *wire) of(ethernet []byte) (lane, time.Duration) {
	const at = 12 // where the protocol is
	if len(ethernet) < at+2 {
		return laneOther, 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch binary.BigEndian.Uint16(ethernet[at:]) {
	case unix.ETH_P_IP:
		return laneV4, w.delay.V4
	case unix.ETH_P_IPV6:
		return laneV6, w.delay.V6
	}
	return laneOther, 0
}

// cut ends the wire.
func (w *wire) cut() {
	for _, f := range w.ends {
		if f != nil {
			_ = f.Close()
		}
	}
	w.workers.Wait()
}
