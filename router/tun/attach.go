// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/router/tun/portable"
)

// opener attaches files to a device, each in the same way.
type opener struct {
	Config
	existed    bool // the device did, before Open
	multiQueue bool
	vnetHdr    bool
}

// newOpener finds out what the kernel can do.
func newOpener(c Config, existed bool) (*opener, error) {
	fd, err := openClone(c.Name)
	if err != nil {
		return nil, err
	}
	features, ferr := unix.IoctlGetUint32(fd, unix.TUNGETFEATURES)
	if err := unix.Close(fd); err != nil {
		return nil, newError(c.Name, nil, err, "closing %s: %v", clonePath, err)
	}
	o := &opener{Config: c, existed: existed, multiQueue: features&unix.IFF_MULTI_QUEUE != 0}
	if c.Portable {
		return o, nil // and where the kernel tells nothing, it has nothing
	}
	if ferr != nil || !o.multiQueue {
		return nil, newError(c.Name, ErrUnsupported, ferr,
			"creating %s: this kernel has no multi-queue TUN devices, as Linux 3.8 and later have; --tun portable does without", c.Name)
	}
	o.vnetHdr = c.VNetHdr && features&unix.IFF_VNET_HDR != 0
	return o, nil
}

func openClone(name string) (fd int, err error) {
	fd, err = unix.Open(clonePath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, cloneError(name, err)
	}
	return fd, nil
}

// attach returns a descriptor that is a queue of the device.
func (o *opener) attach() (fd int, err error) {
	if o.Portable {
		// A device that was there stays if this fails; a new one goes.
		if fd, err = portable.Attach(o.Name, o.multiQueue, o.existed); err != nil {
			return -1, attachError(o.Name, err)
		}
		return fd, nil
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
	if o.vnetHdr {
		flags |= unix.IFF_VNET_HDR
	}
	ifr, err := unix.NewIfreq(o.Name)
	if err != nil {
		return -1, newError(o.Name, ErrName, err, "%q cannot be the name of a device: %v", o.Name, err)
	}
	ifr.SetUint16(flags)
	if fd, err = openClone(o.Name); err != nil {
		return -1, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return -1, errors.Join(attachError(o.Name, err), unix.Close(fd))
	}
	return fd, nil
}

// writer returns a descriptor for writing alone: one that is attached as a queue and switched off again. The kernel
// takes the packets that are written to it, but, other than with those written to a queue, does not
// move the flow that they answer to where they came from. Such a move lets packets in the new queue overtake those
// in the old one; without it the flow stays in the queue that the hash of its addresses and ports chose.
func (o *opener) writer() (fd int, err error) {
	if fd, err = o.attach(); err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq(o.Name)
	if err == nil {
		ifr.SetUint16(unix.IFF_DETACH_QUEUE)
		err = unix.IoctlIfreq(fd, unix.TUNSETQUEUE, ifr)
	}
	if err != nil {
		return -1, errors.Join(newError(o.Name, nil, err, "making a queue of %s one for writing: %v", o.Name, err), unix.Close(fd))
	}
	return fd, nil
}

// negotiate asks for the most offloads that the kernel grants, for all queues by the first. It also takes back what
// an earlier process had set on a persistent device.
func (o *opener) negotiate(fd int) (Offloads, error) {
	const (
		tso = unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		uso = unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	name := o.Name
	if o.vnetHdr {
		// 10 bytes, in the byte order of the host: the kernel's own defaults.
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHdrLen); err != nil {
			return Offloads{}, newError(name, nil, err, "setting the offload header of %s: %v", name, err)
		}
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 0); err != nil {
			return Offloads{}, newError(name, nil, err, "setting the offload byte order of %s: %v", name, err)
		}
		for _, try := range []Offloads{
			{VNetHdr: true, TSO: !o.NoTSO, USO: !o.NoUSO},
			{VNetHdr: true, TSO: !o.NoTSO}, // before Linux 6.2
		} {
			features := unix.TUN_F_CSUM
			if try.TSO {
				features |= tso
			}
			if try.USO {
				features |= uso
			}
			if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, features) == nil {
				return try, nil
			}
		}
	}
	err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
	if o.Portable && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY)) {
		err = nil // the kernel knows of none
	}
	if err != nil {
		return Offloads{}, newError(name, nil, err, "switching the offloads of %s off: %v", name, err)
	}
	return Offloads{VNetHdr: o.vnetHdr}, nil
}
