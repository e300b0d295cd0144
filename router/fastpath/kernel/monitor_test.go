// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// monitor collects what the kernel tells of changes in a namespace.
type monitor struct {
	f *os.File
}

func newMonitor(t testing.TB, n namespace) *monitor {
	t.Helper()
	f, err := n.listen()
	must(t, err)
	t.Cleanup(func() { must(t, f.Close()) })
	return &monitor{f}
}

// told returns all messages since the last call, one line each, without the dynamic neighbours that traffic makes.
func (m *monitor) told(t testing.TB) (lines []string) {
	t.Helper()
	b := make([]byte, 64<<10)
	for {
		// The kernel queues what it tells before it answers who has asked for the change.
		must(t, m.f.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
		n, err := m.f.Read(b)
		if os.IsTimeout(err) {
			return lines
		}
		must(t, err)
		for b := b[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(nl.NativeEndian().Uint32(b))
			if line := describe(nl.NativeEndian().Uint16(b[4:]), b[unix.SizeofNlMsghdr:size]); line != "" {
				lines = append(lines, line)
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

func describe(kind uint16, body []byte) string {
	name := func(index int) string { return fmt.Sprint(index) }
	switch kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		key, r, ours := parseRoute(body, name)
		if !ours {
			return fmt.Sprintf("%d foreign route", kind)
		}
		return fmt.Sprintf("%d %v via %v", kind, key, r.via)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		e, _ := parseEntry(body)
		if e.family != unix.AF_BRIDGE && e.state != unix.NUD_PERMANENT && kind == unix.RTM_NEWNEIGH {
			return ""
		}
		if e.family == unix.AF_BRIDGE {
			return fmt.Sprintf("%d forwarding entry %v to %v", kind, e.mac, e.addr)
		}
		return fmt.Sprintf("%d neighbour %v %v", kind, e.addr, e.mac)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		r, _ := parseRule(body)
		return fmt.Sprintf("%d %v", kind, r)
	}
	return fmt.Sprintf("%d message", kind)
}

// quiet fails the test if the kernel has told of anything.
func (m *monitor) quiet(t testing.TB, what string) {
	t.Helper()
	if lines := m.told(t); len(lines) > 0 {
		t.Errorf("%s: %d changes in the kernel: %q", what, len(lines), lines[:min(len(lines), 10)])
	}
}

// expect fails the test unless the kernel has told exactly that, in any order.
func (m *monitor) expect(t testing.TB, what string, want ...string) {
	t.Helper()
	got := m.told(t)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}
