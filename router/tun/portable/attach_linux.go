// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// Attach opens the clone device, attaches it to the device called name, which it makes if need be, and returns a non-blocking
// descriptor, which is the caller's then. Errors are the kernel's. multiQueue and persistent say what the device shall be; the kernel
// refuses to change the former of a device that exists. If water fails to attach what it has
// opened, it leaves that open, until the process ends.
func Attach(name string, multiQueue, persistent bool) (fd int, err error) {
	// What water opens would stay open in programs that are started meanwhile.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	dev, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, MultiQueue: multiQueue, Persist: persistent},
	})
	if err != nil {
		return -1, fmt.Errorf("water: %w", err)
	}
	fd, err = duplicate(dev.ReadWriteCloser)
	return fd, errors.Join(err, dev.Close())
}

// duplicate returns another descriptor of an open file, non-blocking as that is.
func duplicate(file any) (fd int, err error) {
	f, ok := file.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("water opened a %T, which has no descriptor", file)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	if cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return -1, cerr
	}
	return fd, err
}
