// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespaceDir is the directory of links to namespaces, below the lab's.
const namespaceDir = "netns"

// A Namespace is a network namespace that lives as long as the lab, or until [Namespace.Delete].
type Namespace struct {
	lab  *Lab
	name string
	path string // a link to the descriptor
	file *os.File

	// nl is a netlink socket inside the namespace. netlink.Handle is safe for concurrent use.
	nl *netlink.Handle

	closing sync.Once
}

// Namespace makes a network namespace with its loopback device up. The name is for messages only.
func (l *Lab) Namespace(name string) *Namespace {
	l.tb.Helper()
	n, err := l.newNamespace(name)
	if err != nil {
		l.tb.Fatalf("lab: namespace %s: %v", name, err)
	}
	return n
}

// TryNamespace is [Lab.Namespace] that returns the error and can be called from any goroutine.
func (l *Lab) TryNamespace(name string) (*Namespace, error) { return l.newNamespace(name) }

func (l *Lab) newNamespace(name string) (*Namespace, error) {
	n := &Namespace{lab: l, name: name, path: l.namespacePath(name)}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		n.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	if n.nl, err = netlink.NewHandleAt(netns.NsHandle(n.fd()), unix.NETLINK_ROUTE); err != nil {
		n.close()
		return nil, err
	}
	if err := os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd()), n.path); err != nil {
		n.close()
		return nil, err
	}
	lo, err := n.nl.LinkByName("lo")
	if err == nil {
		err = n.nl.LinkSetUp(lo)
	}
	// Addresses are usable at once: nobody else is on these links.
	for _, s := range []string{"all", "default"} {
		if err == nil {
			err = n.Sysctl("net/ipv6/conf/"+s+"/accept_dad", "0")
		}
		if err == nil {
			err = n.Sysctl("net/ipv6/conf/"+s+"/accept_ra", "0")
		}
	}
	if err == nil {
		err = l.add(func() { l.namespaces = append(l.namespaces, n) })
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// namespacePath returns a path that was not used before.
func (l *Lab) namespacePath(name string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.named++
	return filepath.Join(l.root, namespaceDir, fmt.Sprintf("%d-%s", l.named, strings.ReplaceAll(name, "/", "-")))
}

func (n *Namespace) fd() int { return int(n.file.Fd()) }

// Name returns the name by which the namespace was made.
func (n *Namespace) Name() string { return n.name }

// Path returns a path by which other processes can open the namespace while it lives. No other namespace of the lab ever has
// the same.
func (n *Namespace) Path() string { return n.path }

// Delete gives the namespace up; the kernel removes it with its devices once no process and no socket is in it. Its path
// is void from then on.
func (n *Namespace) Delete() {
	n.close()
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	if !n.lab.closed { // else Close is at it
		n.lab.namespaces = slices.DeleteFunc(n.lab.namespaces, func(o *Namespace) bool { return o == n })
	}
}

func (n *Namespace) close() {
	n.closing.Do(func() {
		if n.nl != nil {
			n.nl.Close()
		}
		if n.file != nil {
			_ = os.Remove(n.path)
			_ = n.file.Close()
		}
	})
}

// Do runs fn on a thread inside the namespace. Sockets that fn makes stay in the namespace; goroutines that it starts do
// not. fn must not end its goroutine.
func (n *Namespace) Do(fn func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(n.fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the namespace of %s: %w", n.name, err)
		}
		return fn()
	})
}

// Sysctl writes a file below /proc/sys as the namespace sees it, for example "net/ipv4/ip_forward".
func (n *Namespace) Sysctl(name, value string) error {
	return n.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
	})
}

// ReadSysctl reads a file below /proc/sys as the namespace sees it.
func (n *Namespace) ReadSysctl(name string) (string, error) {
	var value []byte
	err := n.Do(func() (err error) {
		value, err = os.ReadFile(filepath.Join("/proc/sys", name))
		return err
	})
	return strings.TrimSpace(string(value)), err
}

// Netlink returns a route netlink handle inside the namespace. It is closed with the namespace.
func (n *Namespace) Netlink() *netlink.Handle { return n.nl }

// nft runs one nftables transaction inside the namespace.
func (n *Namespace) nft(f func(*nftables.Conn)) error {
	c, err := nftables.New(nftables.WithNetNSFd(n.fd()))
	if err != nil {
		return err
	}
	f(c)
	return c.Flush()
}

// onOwnThread runs fn on an operating system thread that ends afterwards, so fn may change the thread for good.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end, it would stay parked in another namespace. Keep it while another one is used.
			done <- onOwnThread(fn)
			runtime.UnlockOSThread()
			return
		}
		done <- fn()
	}()
	return <-done
}
