// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const clonePath = "/dev/net/tun"

// MaxQueues is how many queues a device may have. Each takes several of the files that the kernel allows a device; see lanes.go.
const MaxQueues = 64

// Config says what Open shall make.
type Config struct {
	// Name of the device: 1 to 15 bytes, no slash, colon, percent sign or white space, not "." or "..".
	Name string
	// Queues is their number, 1 to MaxQueues; 0 means 1.
	Queues int
	// VNetHdr asks for offloads: a header of 10 bytes (virtio_net_hdr) before each
	// packet, and packets of up to 64 KiB. What is granted is in Device.Offloads.
	VNetHdr bool
	// NoTSO and NoUSO leave out packets of more than one TCP segment or UDP datagram.
	NoTSO, NoUSO bool
	// Persist makes the device outlive the process; otherwise it goes with
	// the last queue, also if an earlier Open had made it persistent.
	Persist bool
	// Portable opens the device by package portable, without VNetHdr, for kernels where Open fails with ErrUnsupported
	// otherwise. On a kernel without multi-queue devices it has one queue, however many are asked for.
	Portable bool
}

// Offloads tells what the kernel leaves to the reader of a device, and what it takes from the writer.
type Offloads struct {
	VNetHdr bool // each packet is preceded by a header; the rest is false without
	TSO     bool // runs of TCP segments, and partial checksums
	USO     bool // runs of UDP datagrams (Linux 6.2)
}

// Device is an open TUN device.
type Device struct {
	name     string
	queues   []*Queue
	offloads Offloads
	portable bool
}

// Open makes the device, or takes over the one of that name that an earlier process left
// behind, with its addresses and routes, whatever offloads that one had used.
// It works in the network namespace of the calling thread; the Device then can be used from
// anywhere. Errors hold an *Error (errors.As); nothing is left behind then that was not there before.
func Open(c Config) (*Device, error) {
	if err := checkName(c.Name); err != nil {
		return nil, err
	}
	n := max(c.Queues, 1)
	if n > MaxQueues {
		return nil, newError(c.Name, nil, nil, "%s cannot have %d queues: choose at most %d", c.Name, n, MaxQueues)
	}
	existed, err := checkFree(c.Name)
	if err != nil {
		return nil, err
	}
	o, err := newOpener(c, existed)
	if err != nil {
		return nil, err
	}
	var d *Device
	for _, l := range layouts(n, o.multiQueue) {
		if d, err = openAs(o, l); !errors.Is(err, unix.E2BIG) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	// Persistence comes last: if anything failed before, a new device is gone
	// with its queues.
	persist := 0
	if c.Persist {
		persist = 1
	}
	if err := unix.IoctlSetInt(d.queues[0].lanes[0], unix.TUNSETPERSIST, persist); err != nil {
		return nil, errors.Join(newError(c.Name, nil, err, "making %s persistent: %v", c.Name, err), d.Close())
	}
	return d, nil
}

// openAs opens the device with so many queues and lanes.
func openAs(o *opener, l layout) (*Device, error) {
	d := &Device{name: o.Name, portable: o.Portable}
	for range l.queues {
		if err := d.add(o, l.lanes); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	return d, nil
}

func checkName(name string) *Error {
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsAny(name, "/:% \t\n\v\f\r\x00") {
		return newError(name, ErrName, nil, "%q cannot be the name of a device: use 1 to %d letters or digits", name, unix.IFNAMSIZ-1)
	}
	return nil
}

// checkFree refuses a device that another process has open: the kernel would
// let us share a multi-queue device, and each would get a part of the packets. It tells whether there is a device.
func checkFree(name string) (exists bool, err error) {
	link, err := netlink.LinkByName(name)
	var absent netlink.LinkNotFoundError
	switch {
	case errors.As(err, &absent):
		return false, nil
	case err != nil:
		return false, newError(name, nil, err, "looking for %s: %v", name, err)
	}
	t, ok := asTUN(link)
	if !ok {
		return true, kindError(name, nil)
	}
	if t.Queues+t.DisabledQueues > 0 {
		return true, busyError(name, nil)
	}
	return true, nil
}

// asTUN tells whether the link is a TUN device, as far as can be known: kernels before Linux 4.18 do not tell it from a TAP device.
func asTUN(link netlink.Link) (t *netlink.Tuntap, ok bool) {
	t, ok = link.(*netlink.Tuntap)
	return t, ok && t.Mode != netlink.TUNTAP_MODE_TAP
}

// add adds a queue of some lanes, with a file of its own for writing if there are several.
func (d *Device) add(o *opener, lanes int) error {
	q := &Queue{name: d.name, fd: -1, out: -1}
	d.queues = append(d.queues, q)
	for i := range lanes {
		fd, err := o.attach()
		if err != nil {
			return err
		}
		q.lanes = append(q.lanes, fd)
		if len(d.queues) == 1 && i == 0 {
			if d.offloads, err = o.negotiate(fd); err != nil {
				return err
			}
		}
		// The kernel says of what is written to a file which queue it was when it was attached. The lane that comes after this one will be
		// that, so it is one that exists.
		if lanes > 1 && i == 0 {
			if q.out, err = o.writer(); err != nil {
				return err
			}
		}
	}
	q.offloads = d.offloads
	q.fd = q.lanes[0]
	if lanes > 1 {
		return q.bundle()
	}
	q.out = q.lanes[0]
	return nil
}

// Name returns the name under which the device was opened.
func (d *Device) Name() string { return d.name }

// Queues returns the queues; the slice belongs to the device.
func (d *Device) Queues() []*Queue { return d.queues }

// Offloads returns what the kernel granted.
func (d *Device) Offloads() Offloads { return d.offloads }

// Portable tells whether the device was opened as a portable one.
func (d *Device) Portable() bool { return d.portable }

// Close closes all queues. A persistent device stays; another one goes. It may be called
// at any time and more than once; calls of Read and Write that follow return an error that matches
// os.ErrClosed. A thread that waits for a descriptor of the device is not woken by it.
func (d *Device) Close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.close())
	}
	return errors.Join(errs...)
}

// Delete removes the device called name, persistent or not, and with it its
// addresses and routes. No such device is no error; one that is not a TUN device is left
// alone and an error. Whoever has it open finds it gone.
func Delete(name string) error {
	link, err := netlink.LinkByName(name)
	var absent netlink.LinkNotFoundError
	switch {
	case errors.As(err, &absent):
		return nil
	case err != nil:
		return newError(name, nil, err, "looking for %s: %v", name, err)
	}
	if _, ok := asTUN(link); !ok {
		return newError(name, ErrKind, nil, "%s is not a TUN device (%s): left alone", name, link.Type())
	}
	err = netlink.LinkDel(link)
	switch {
	case err == nil, errors.Is(err, unix.ENODEV):
		return nil
	case errors.Is(err, unix.EPERM):
		return newError(name, ErrPermission, err, "deleting %s needs CAP_NET_ADMIN: run as root or grant the capability", name)
	}
	return newError(name, nil, err, "deleting %s: %v", name, err)
}

// String describes the device for a log line.
func (d *Device) String() string {
	return fmt.Sprintf("%s (%d queues, vnet header %v, TSO %v, USO %v)",
		d.name, len(d.queues), d.offloads.VNetHdr, d.offloads.TSO, d.offloads.USO)
}
