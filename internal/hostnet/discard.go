// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// begun says whether there is an interface of the workload's on the host that was not completed. It is for when the kernel's answer got lost.
func (a *attacher) begun(host namespace) bool {
	again, err := host.line()
	if err != nil {
		return false
	}
	a.hangUp()
	a.exit = again
	l, err := again.link(HostIf(a.ID), 0)
	return err == nil && vethOf(l, a.ID) && l.Attrs().Alias == ""
}

// discard removes the workload's interface, by the line that is open already: there may be no descriptor for another.
func (a *attacher) discard() error {
	if a.exit == nil {
		return a.remove()
	}
	l, err := a.exit.link(HostIf(a.ID), 0)
	if err != nil || !vethOf(l, a.ID) {
		return err
	}
	answers, err := a.exit.do(delLink(l.Attrs().Index))
	if err == nil {
		err = failed(answers)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing interface %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// remove is discard without a line.
func (a *attacher) remove() error {
	if a.outer == nil {
		return nil
	}
	return a.host.remove(a.outer)
}

// hangUp closes that line.
func (a *attacher) hangUp() {
	if a.exit != nil {
		a.heard += a.exit.heard
		a.exit.close()
		a.exit = nil
	}
}

// delLink asks to remove a link.
func delLink(index int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	r.AddData(msg)
	return r
}
