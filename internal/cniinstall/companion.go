// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// portmapName is the plugin for ports of the host under a name of Weft's own: so it can be told from one that something else has
// installed as portmap, which may be another version and comes and goes with that. It is chained in the place of portmap where it is there.
const portmapName = "weft-portmap"

// putPortmap installs the plugin for ports of the host if one is named. Nobody looks whether there may be one: what is installed is run as root.
func (c Config) putPortmap(d *dir, r *Report) error {
	if c.Portmap == "" {
		return nil
	}
	src, err := openTrusted(c.Portmap)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // opened for reading
	if path := d.path(portmapName); same(c.Portmap, path) || regular(path) && equal(c.Portmap, path) {
		r.done("in place already: %s", path)
		return nil
	}
	return put(d, portmapName, always, src, 0o755, r)
}

// openTrusted opens the plugin for ports of the host, if it is a file that nobody but root and the caller could have put there or can change.
func openTrusted(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("the plugin for ports of the host %s is not there; it is portmap of the containernetworking plugins: name its file by --portmap", path)
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("the plugin for ports of the host %s is a symbolic link, which leads elsewhere when somebody wants it to; name the file itself by --portmap", path)
	case err != nil:
		return nil, fmt.Errorf("the plugin for ports of the host %s cannot be read: %w", path, plain(err))
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the plugin for ports of the host %s cannot be read: %w", path, plain(err)), f.Close())
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		err = fmt.Errorf("the plugin for ports of the host %s is no file; name that of portmap by --portmap", path)
	case !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid():
		err = fmt.Errorf("the plugin for ports of the host %s belongs to another user, and would be run as root; see what it is, and make it root's: chown root %s", path, path)
	case info.Mode().Perm()&0o022 != 0:
		err = fmt.Errorf("the plugin for ports of the host %s may be changed by other users (mode %04o), and would be run as root; see what it is, then: chmod go-w %s",
			path, info.Mode().Perm(), path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// always says of a name that is Weft's alone that its file is.
func always(string) bool { return true }
