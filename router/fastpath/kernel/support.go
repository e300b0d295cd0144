// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	tryName = "weft-vxtry"
	tryMTU  = 1280
	// tryTable is that of a rule that there never is.
	tryTable = 8700
	tryMark  = 0x57650000
)

// Support says what this host can do. The errors say in one line what is lacking and what to do about it; nil is nothing.
type Support struct {
	VXLAN4, VXLAN6 error // VXLAN over each family of the underlay
	Rules          error // routing by mark, without which nothing can be proven
}

// Support tries it: it makes what it needs and removes it. Devices that an earlier run has left need no trial.
func (k *Kernel) Support() Support {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.open()
	if err != nil {
		return Support{err, err, err}
	}
	return Support{VXLAN4: c.tryDevice(k.config, false), VXLAN6: c.tryDevice(k.config, true), Rules: c.tryRule()}
}

// tryDevice makes a device as Apply would, under another name, and removes it.
func (c *conn) tryDevice(cfg Config, underlay6 bool) error {
	name := Device4
	if underlay6 {
		name = Device6
	}
	l, exists, err := c.link(name)
	switch {
	case err != nil:
		return err
	case exists && cfg.ours(l) && cfg.right(l):
		return nil
	case exists && cfg.ours(l): // Apply replaces it
		return nil
	}
	return c.tryAs(tryName, underlay6, cfg)
}

func (c *conn) tryAs(name string, underlay6 bool, cfg Config) error {
	if l, exists, err := c.link(name); err == nil && exists && cfg.ours(l) { // of a run that was interrupted
		if err := c.removeLink(l.index); err != nil {
			return explainDevice(name, "removing", err)
		}
	}
	if err := c.addDevice(name, underlay6, cfg, tryMTU); err != nil {
		return explainMaking(name, cfg, err)
	}
	l, exists, err := c.link(name)
	if err != nil || !exists {
		return errors.Join(err, explainDevice(name, "making", unix.ENODEV))
	}
	err = c.setLink(l.index, addressMode(genNone))
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EINVAL) { // no IPv6 inside
		err = nil
	}
	err = explainUp(name, cfg, errors.Join(err, c.setUp(l.index)))
	return errors.Join(err, explainDevice(name, "removing", c.removeLink(l.index)))
}

// tryRule has a rule removed that is not there, for which the kernel needs what it needs to make one. To make one would cost: once there has been any, the kernel
// looks for each packet's route by the rules, and no more in the tables of this host and of its links at once (fib_has_custom_rules).
func (c *conn) tryRule() error {
	err := c.removeRule(rule{priority: tryTable, table: tryTable, mark: tryMark})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("this kernel has no routing by marks: boot one with CONFIG_IP_MULTIPLE_TABLES (%w)", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("rules cannot be made: CAP_NET_ADMIN is needed (%w)", err)
	}
	return err
}
