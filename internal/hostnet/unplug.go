// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/fault"
)

// maxFreeing bounds how many interfaces are being freed, each by a thread that the kernel holds; Detach waits for its turn.
const maxFreeing = 64

// unplug removes an interface that may be gone already, and returns when nobody can see it any more. Its memory is freed later: the kernel
// lets who asks for the removal wait until no processor can be looking at it, which takes ten times as long as the removal, and
// a goroutine does that waiting.
func (h *Host) unplug(l *line, link netlink.Link) error {
	fault.Point("unplug")
	index := link.Attrs().Index
	freed := make(chan error, 1)
	h.freeing.Go(func() error {
		freed <- h.ns.free(index)
		return nil
	})
	for wait := 20 * time.Microsecond; ; wait = min(2*wait, time.Millisecond) {
		again := time.NewTimer(wait)
		select {
		case err := <-freed:
			again.Stop()
			if err != nil {
				return fmt.Errorf("removing interface %s: %w", link.Attrs().Name, err)
			}
			return nil
		case <-again.C:
		}
		// The kernel answers when it has the lock that the removal holds.
		if left, err := l.link("", index); err != nil || left == nil {
			return err
		}
	}
}

// free removes an interface, and returns when the kernel has nothing left of it.
func (n namespace) free(index int) error {
	l, err := n.line()
	if err != nil {
		return err
	}
	defer l.close()
	answers, err := l.do(delLink(index))
	if err == nil {
		err = failed(answers)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// link is that of conn, by name or by index.
func (l *line) link(name string, index int) (netlink.Link, error) {
	answers, err := l.do(getLink(name, index))
	if err == nil {
		err = failed(answers)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for interface %s: %w", name, err)
	}
	return netlink.LinkDeserialize(nil, answers[0].messages[0])
}
