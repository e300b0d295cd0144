// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/fault"
)

// pluginPackage is what the plugin was built from, which its file tells.
const pluginPackage = "github.com/weftnet/weft/cmd/weft-cni"

// lockPatience bounds how long one waits for another one.
const lockPatience = 10 * time.Second

// isPlugin tells whether a file is Weft's plugin, of whatever version.
func isPlugin(path string) bool {
	info, err := buildinfo.ReadFile(path)
	return err == nil && info.Path == pluginPackage
}

// installedPlugin tells whether a file is Weft's plugin and no link to it: Weft makes none, so a link is somebody else's.
func installedPlugin(path string) bool { return regular(path) && isPlugin(path) }

// regular tells whether a path is that of a file, not of a link to one.
func regular(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}

// dir is a directory in which nobody else installs meanwhile. A nil dir does not exist.
type dir struct {
	name   string
	file   *os.File
	shared bool
}

// makeDir makes a directory that everybody may look into, and those above it.
func makeDir(name string) error {
	return os.MkdirAll(name, 0o755) //nolint:gosec // runtimes, and those who look why they do not work, are not always root
}

// openDir opens and locks a directory, waiting for whoever has it; the lock ends with the process at the latest.
func openDir(ctx context.Context, name string) (*dir, error) {
	f, err := os.Open(filepath.Clean(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("directory %s cannot be read: %w", name, plain(err))
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return &dir{name: name, file: f}, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, errors.Join(fmt.Errorf("directory %s cannot be locked: %w", name, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("directory %s is in use by another weft cni install or uninstall; try again when that has ended", name), f.Close())
		case <-time.After(lockPatience / 500):
		}
	}
}

// share returns the same directory once more.
func (d *dir) share() *dir {
	if d == nil {
		return nil
	}
	return &dir{name: d.name, file: d.file, shared: true}
}

func (d *dir) close() error {
	if d == nil || d.shared {
		return nil
	}
	return d.file.Close()
}

func (d *dir) path(name string) string { return filepath.Join(d.name, name) }

// rename gives a file another name in the directory, durably; one that has that name is replaced.
func (d *dir) rename(from, to string) error {
	if err := os.Rename(d.path(from), d.path(to)); err != nil {
		return fmt.Errorf("renaming %s to %s: %w", d.path(from), to, plain(err))
	}
	return d.sync()
}

// remove removes a file, durably, which may be gone already.
func (d *dir) remove(name string) error {
	if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", d.path(name), plain(err))
	}
	return d.sync()
}

func (d *dir) sync() error {
	if err := d.file.Sync(); err != nil {
		return fmt.Errorf("writing %s to disk: %w", d.name, plain(err))
	}
	return nil
}

// put gives a file a new content. One of somebody else's that has the name is kept beside.
func put(d *dir, name string, ours func(path string) bool, from io.Reader, mode fs.FileMode, r *Report) error {
	path, kept := d.path(name), d.path(name+keptSuffix)
	info, err := os.Lstat(path)
	there := err == nil
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("looking for %s: %w", path, plain(err))
	case there && info.IsDir():
		return fmt.Errorf("%s is a directory; move it away and install again", path)
	}
	foreign := there && !ours(path)
	if foreign {
		// The file has both names until the new one takes its place: at no moment it has none.
		err := os.Link(path, kept)
		switch {
		case errors.Is(err, fs.ErrExist) && !same(path, kept):
			return fmt.Errorf("neither %s nor %s is Weft's, and only one of them can be kept; move one away and install again", path, kept)
		case err != nil && !errors.Is(err, fs.ErrExist):
			return fmt.Errorf("keeping %s as %s: %w", path, kept, plain(err))
		}
		fault.Point("install-kept")
	}
	if err := d.write(name+newSuffix, from, mode); err != nil {
		return err
	}
	fault.Point("install-written")
	if err := d.rename(name+newSuffix, name); err != nil {
		return errors.Join(err, d.remove(name+newSuffix))
	}
	fault.Point("install-renamed")
	switch {
	case foreign:
		r.done("kept %s, which is not Weft's, as %s", path, filepath.Base(kept))
		r.done("installed %s", path)
	case there:
		r.done("brought up to date: %s", path)
	default:
		r.done("installed %s", path)
	}
	return nil
}

// remove removes a file of Weft's, and puts back what was kept beside it. What is not Weft's stays.
func remove(d *dir, name string, ours func(path string) bool, r *Report) error {
	path, kept := d.path(name), d.path(name+keptSuffix)
	if err := d.remove(name + newSuffix); err != nil {
		return err
	}
	_, err := os.Lstat(path)
	there := err == nil
	_, err = os.Lstat(kept)
	before := err == nil
	switch {
	case there && before && same(path, kept): // an install that did not get further
		return d.remove(name + keptSuffix)
	case there && !ours(path):
		if before {
			r.warn("%s is not Weft's and stays, and so does %s, which was there before it", path, kept)
		}
		return nil
	case before:
		if err := d.rename(name+keptSuffix, name); err != nil {
			return err
		}
		fault.Point("uninstall-put-back")
		r.done("put back %s, as it was before", path)
	case there:
		if err := d.remove(name); err != nil {
			return err
		}
		fault.Point("uninstall-removed")
		r.done("removed %s", path)
	}
	return nil
}

// write writes a new file, durably, or nothing.
func (d *dir) write(name string, from io.Reader, mode fs.FileMode) error {
	path := d.path(name)
	fail := func(err error) error { return fmt.Errorf("writing %s: %w", path, plain(err)) }
	if err := d.remove(name); err != nil { // of an install that did not get further
		return err
	}
	// A child that this process starts meanwhile would have the file open for writing, too, and until that has become another
	// program nobody could execute the file (ETXTBSY).
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fail(err)
	}
	_, err = io.Copy(f, from)
	fault.Point("install-writing")
	if err == nil {
		err = f.Chmod(mode) // whatever the umask
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fail(errors.Join(err, os.Remove(path)))
	}
	return nil
}

// same tells whether two paths are those of one file; symbolic links are files as others are.
func same(a, b string) bool {
	i, err := os.Lstat(a)
	if err != nil {
		return false
	}
	j, err := os.Lstat(b)
	return err == nil && os.SameFile(i, j)
}

// sameDir tells whether two paths lead to one directory.
func sameDir(a, b string) bool {
	i, err := os.Stat(a)
	if err != nil {
		return false
	}
	j, err := os.Stat(b)
	return err == nil && os.SameFile(i, j)
}

// equal tells whether two files have the same content, and everybody may execute the second one.
func equal(a, b string) bool {
	i, err := os.Stat(b)
	if err != nil || i.Mode().Perm() != 0o755 {
		return false
	}
	x, err := os.ReadFile(filepath.Clean(a))
	if err != nil {
		return false
	}
	y, err := os.ReadFile(filepath.Clean(b))
	return err == nil && bytes.Equal(x, y)
}

// plain is the cause of an error of a file that is named already.
func plain(err error) error {
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.As(err, &pe):
		err = pe.Err
	case errors.As(err, &le):
		err = le.Err
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; run weft as root", err)
	}
	return err
}
