// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// CaptureLimit is how many bytes a capture keeps unless told otherwise. Frames beyond it are counted, not kept.
const CaptureLimit = 64 << 20

// A Frame is one captured frame, from the link-layer header on (from the IP header on, on devices without one, like TUN).
type Frame struct {
	At   time.Time
	Data []byte
}

// A Capture records what a device sends and receives. Its methods are safe for concurrent use.
type Capture struct {
	file     *os.File
	linkType uint32
	done     chan struct{}
	stopping sync.Once

	mu     sync.Mutex
	left   int // bytes that may still be kept
	frames []Frame
	missed uint64
}

// Link types of the pcap format.
const (
	linkEthernet = 1
	linkRaw      = 101 // begins with the IP header
)

// Capture begins to record the frames on a device of the namespace, up to limit bytes in all (0 = [CaptureLimit]).
func (l *Lab) Capture(n *Namespace, device string, limit int) *Capture {
	l.tb.Helper()
	if limit == 0 {
		limit = CaptureLimit
	}
	c := &Capture{left: limit, done: make(chan struct{})}
	dev, err := n.nl.LinkByName(device)
	if err == nil {
		c.linkType = linkRaw
		if len(dev.Attrs().HardwareAddr) == 6 {
			c.linkType = linkEthernet
		}
		err = n.Do(func() error { return c.open(dev.Attrs().Index) })
	}
	if err == nil {
		err = l.add(func() { l.captures = append(l.captures, c) })
	}
	if err != nil {
		l.tb.Fatalf("lab: capture on %s of %s: %v", device, n.name, err)
	}
	go c.run()
	return c
}

// open makes the packet socket. It hears nothing before it is bound to the device.
func (c *Capture) open(device int) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	c.file = os.NewFile(uintptr(fd), "capture")
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		return err
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device})
}

// run reads until Stop, and then what the socket still holds.
func (c *Capture) run() {
	defer close(c.done)
	buf := make([]byte, 128<<10)
	for {
		n, err := c.file.Read(buf)
		switch {
		case err == nil:
			c.keep(buf[:n])
		case errors.Is(err, unix.ENETDOWN): // goes on when the device is up again
		default:
			c.drain(buf)
			return
		}
	}
}

func (c *Capture) drain(buf []byte) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), buf)
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
				continue
			}
			if err != nil {
				break
			}
			c.keep(buf[:n])
		}
		if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			c.mu.Lock()
			c.missed += uint64(st.Drops)
			c.mu.Unlock()
		}
	})
}

func (c *Capture) keep(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(frame) > c.left {
		c.missed++
		return
	}
	c.left -= len(frame)
	c.frames = append(c.frames, Frame{At: time.Now(), Data: bytes.Clone(frame)})
}

// Stop ends the recording. What was sent before is in it.
func (c *Capture) Stop() {
	c.stopping.Do(func() {
		_ = c.file.SetReadDeadline(time.Unix(1, 0))
		<-c.done
		_ = c.file.Close()
	})
	<-c.done
}

// Frames returns the frames recorded so far. They must not be changed.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frames[:len(c.frames):len(c.frames)]
}

// Missed returns how many frames went by unrecorded: those beyond the limit, and, once the capture has stopped, those that
// the kernel dropped because this process was too slow.
func (c *Capture) Missed() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.missed
}

// Count returns in how many recorded frames the bytes occur.
func (c *Capture) Count(pattern []byte) int {
	n := 0
	for _, f := range c.Frames() {
		if bytes.Contains(f.Data, pattern) {
			n++
		}
	}
	return n
}

// WritePCAP writes the frames in the pcap file format, which tcpdump and Wireshark read.
func (c *Capture) WritePCAP(w io.Writer) error {
	out := bufio.NewWriter(w)
	le := binary.LittleEndian
	header := le.AppendUint32(nil, 0xa1b23c4d) // nanosecond timestamps
	header = le.AppendUint16(header, 2)
	header = le.AppendUint16(header, 4)
	header = le.AppendUint64(header, 0)
	header = le.AppendUint32(header, 256<<10)
	header = le.AppendUint32(header, c.linkType)
	if _, err := out.Write(header); err != nil {
		return err
	}
	for _, f := range c.Frames() {
		h := le.AppendUint32(header[:0], uint32(f.At.Unix()))
		h = le.AppendUint32(h, uint32(f.At.Nanosecond()))
		h = le.AppendUint32(h, uint32(len(f.Data)))
		h = le.AppendUint32(h, uint32(len(f.Data)))
		if _, err := out.Write(h); err != nil {
			return err
		}
		if _, err := out.Write(f.Data); err != nil {
			return err
		}
	}
	return out.Flush()
}
