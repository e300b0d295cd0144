// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// conf6Dir has a directory of IPv6 settings for each interface.
const conf6Dir = "/proc/sys/net/ipv6/conf"

// openConf6 opens conf6Dir of the namespace; nil if there is no IPv6. The path to it is long for the kernel on a host with many
// namespaces, of which each has a "net/ipv6" of its own among which it looks for the right one, so it is gone once only.
func (n namespace) openConf6() (*os.File, error) {
	var dir *os.File
	err := n.run(func() (err error) {
		dir, err = os.Open(conf6Dir)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return dir, err
}

// vethSettings sets the sysctls of a veth on the host. A workload's router
// advertisements never count; and where the kernel has no better means, its IPv4 source addresses are checked by the reverse path
// filter. A veth that is gone, or one too small for IPv6, is no error, nor are settings that nobody may change.
func vethSettings(host namespace, name string, state *applied) error {
	var err error
	if state.v6 && state.conf6 != nil {
		err = excuse(writeAt(state.conf6, filepath.Join(name, "accept_ra"), "0"))
	}
	if state.strict {
		err = errors.Join(err, excuse(host.run(func() error { return writeSysctl(confKey("ipv4", name, "rp_filter"), "1") })))
	}
	return err
}

func excuse(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

// writeAt writes a setting below an open directory, whichever namespace the calling thread is in.
func writeAt(dir *os.File, key, value string) error {
	fd, err := unix.Openat(int(dir.Fd()), key, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s/%s: %w", conf6Dir, key, err)
	}
	if _, err = unix.Write(fd, []byte(value)); err != nil {
		err = fmt.Errorf("writing %s/%s: %w", conf6Dir, key, err)
	}
	return errors.Join(err, unix.Close(fd))
}
