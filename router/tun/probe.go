// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Probe tells whether this process could make the device called name, and
// changes nothing: /dev/net/tun is there and may be opened, and the process has
// CAP_NET_ADMIN (capabilities(7)). The error is the *Error that Open would return.
func Probe(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return cloneError(name, err)
	}
	if err := unix.Close(fd); err != nil {
		return newError(name, nil, err, "closing %s: %v", clonePath, err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // 64 capabilities; CAP_NET_ADMIN is in the first word
	if err := unix.Capget(&header, &data[0]); err != nil && !errors.Is(err, unix.ENOSYS) {
		return newError(name, nil, err, "asking for this process's capabilities: %v", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return attachError(name, unix.EPERM)
	}
	return nil
}
