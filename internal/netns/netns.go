// SPDX-License-Identifier: Apache-2.0

// Package netns tells network namespaces apart.
//
// A namespace is identified by the inode of its nsfs file, which is unique
// among the namespaces that exist at one time, whichever path leads to it.
// internal/node and internal/hostnet import the package, and nothing else.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ID identifies a network namespace, as the kernel writes it: "net:[4026531840]".
// The empty ID is none.
type ID string

// ErrNotNetns says that a path leads to something else.
var ErrNotNetns = errors.New("is no network namespace")

// At returns the ID of the namespace that path leads to. The error wraps
// [ErrNotNetns] if it leads elsewhere or nowhere.
func At(path string) (ID, error) {
	f, id, err := Open(path)
	if err != nil {
		return "", err
	}
	_ = f.Close()
	return id, nil
}

// Open opens the namespace that path leads to, and tells which one it is. The
// caller closes the file. Nothing else than a namespace is opened: a FIFO that
// nobody writes to does not hold it up, and no device notices. The error wraps
// [ErrNotNetns] if the path leads elsewhere or nowhere.
func Open(path string) (*os.File, ID, error) {
	fd, err := retry(func() (int, error) { return unix.Open(filepath.Clean(path), unix.O_PATH|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, "", explain(path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	none := fmt.Errorf("%s %w; give the path of one, such as /run/netns/NAME or /proc/PID/ns/net", path, ErrNotNetns)
	var sys unix.Statfs_t
	if _, err := retry(func() (int, error) { return 0, unix.Fstatfs(fd, &sys) }); err != nil {
		return nil, "", fmt.Errorf("looking at %s: %w", path, err)
	}
	if sys.Type != unix.NSFS_MAGIC {
		return nil, "", none
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, "", explain(path, err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		_ = f.Close()
		return nil, "", none
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		_ = f.Close()
		return nil, "", fmt.Errorf("looking at %s: %w", path, err)
	}
	return f, ID(fmt.Sprintf("net:[%d]", st.Ino)), nil
}

// retry repeats a call that a signal has interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func explain(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		if pid, ok := strings.CutPrefix(path, "/proc/"); ok {
			if pid, ok = strings.CutSuffix(pid, "/ns/net"); ok {
				return fmt.Errorf("there is no process %s, so %s %w; give the pid of one that runs", pid, path, ErrNotNetns)
			}
		}
		return fmt.Errorf("%s does not exist, so it %w; give the path of one, such as /run/netns/NAME", path, ErrNotNetns)
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("%s cannot be opened: %w", path, err)
}
