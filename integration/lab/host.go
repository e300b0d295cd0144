// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/nftables"
)

// A Host is a namespace on a segment, with a directory of its own for a weft daemon.
type Host struct {
	*Namespace
	link    *Link
	plugged int // links besides
	dir     string

	// The daemon, see daemon.go. The test's goroutine only.
	daemon  *Process
	program string // instead of the weft binary
	flags   []string
	env     []string
}

// A HostOption changes how a host is made.
type HostOption func(*hostConfig)

type hostConfig struct {
	v4, v6 bool
	mtu    int
}

// OnlyV4 gives the host no v6 address on its link.
func OnlyV4(c *hostConfig) { c.v6 = false }

// OnlyV6 gives the host no v4 address on its link.
func OnlyV6(c *hostConfig) { c.v4 = false }

// MTU sets the MTU of the host's link.
func MTU(bytes int) HostOption { return func(c *hostConfig) { c.mtu = bytes } }

// Host makes a host on the segment, with the link eth0 and its default route by the segment's gateway.
func (l *Lab) Host(name string, s *Segment, options ...HostOption) *Host {
	l.tb.Helper()
	c := hostConfig{v4: true, v6: true}
	for _, o := range options {
		o(&c)
	}
	h, err := l.newHost(name, s, c)
	if err != nil {
		l.tb.Fatalf("lab: host %s: %v", name, err)
	}
	return h
}

func (l *Lab) newHost(name string, s *Segment, c hostConfig) (*Host, error) {
	ns, err := l.newNamespace(name)
	if err != nil {
		return nil, err
	}
	h := &Host{Namespace: ns, dir: filepath.Join(l.root, name)}
	if err := os.Mkdir(h.dir, 0o700); err != nil {
		return nil, err
	}
	s.members++
	if h.link, err = s.plug(ns, "eth0", s.members, c.v4, c.v6, c.mtu); err != nil {
		return nil, err
	}
	if err := h.link.addDefaultRoutes(); err != nil {
		return nil, err
	}
	l.hosts = append(l.hosts, h)
	return h, nil
}

// Link returns the host's link to its segment.
func (h *Host) Link() *Link { return h.link }

// Dir returns the host's own directory.
func (h *Host) Dir() string { return h.dir }

// File writes a file into the host's directory and returns its path.
func (h *Host) File(name, content string, mode os.FileMode) string {
	h.lab.tb.Helper()
	path := filepath.Join(h.dir, name)
	err := os.WriteFile(path, []byte(content), mode)
	if err == nil {
		err = os.Chmod(path, mode) // the umask does not count
	}
	if err != nil {
		h.lab.tb.Fatalf("lab: %v", err)
	}
	return path
}

// A Workload is a network namespace on a host, empty but for loopback until it is attached.
type Workload struct {
	*Namespace
	host *Host
	addresses
}

// Workload makes a workload on the host.
func (h *Host) Workload(name string) *Workload {
	h.lab.tb.Helper()
	return &Workload{Namespace: h.lab.Namespace(fmt.Sprintf("%s/%s", h.name, name)), host: h}
}

// TryWorkload is [Host.Workload] that returns the error and can be called from any goroutine.
func (h *Host) TryWorkload(name string) (*Workload, error) {
	n, err := h.lab.TryNamespace(fmt.Sprintf("%s/%s", h.name, name))
	if err != nil {
		return nil, err
	}
	return &Workload{Namespace: n, host: h}, nil
}

// Host returns the host that the workload is on.
func (w *Workload) Host() *Host { return w.host }

// ClearRules takes away all nftables tables of the host, as root on it can.
func (h *Host) ClearRules() error {
	return h.nft(func(c *nftables.Conn) { c.FlushRuleset() })
}

// DropTable takes away one nftables table of the host, of the family inet, as root on it can.
func (h *Host) DropTable(name string) error {
	return h.nft(func(c *nftables.Conn) { c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name}) })
}
