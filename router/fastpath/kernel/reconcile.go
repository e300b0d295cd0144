// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// reconcile makes the kernel have what is wanted, and returns a line for each thing of belief that the kernel does not have, or
// has otherwise.
func (k *Kernel) reconcile(belief objects) (repaired []string, err error) {
	c, err := k.open()
	if err != nil {
		return nil, err
	}
	k.doubt = true // until it is done
	k.show()
	d := &devices{conn: c, ns: k.ns, config: k.config, links: map[string]link{}, touched: map[string]bool{}}
	have, err := d.put(k.want, belief)
	k.links, k.broken = d.links, d.errs
	k.have = newObjects()
	k.show()
	if err != nil {
		return d.lines, err
	}
	found, extra, err := c.objects(k.config, d.links)
	if err != nil {
		return d.lines, err
	}
	found.devices = have
	k.have = found
	w := &worker{conn: c, links: d.links, have: found, errs: slices.Concat(k.refused, d.errs), done: d.done}
	belief = belief.without(func(name string) bool { return d.touched[name] })
	before := found.without(func(string) bool { return false }) // a copy
	for _, x := range extra {
		w.did(x.remove(c.resend(x.kind, x.body)))
	}
	w.run(k.possible())
	for _, l := range d.unwanted {
		if w.did(explainDevice(l.name, "removing", c.removeLink(l.index))) {
			delete(k.links, l.name)
			w.done++
		}
	}
	k.doubt = w.stale
	k.show()
	if w.done > 0 {
		k.log.Info("kernel paths put right", zap.Int("changes", w.done), zap.Int("errors", len(w.errs)))
	}
	repaired = slices.Concat(d.lines, changes(belief, before, found))
	if belief.known() {
		for _, x := range extra {
			repaired = append(repaired, fmt.Sprintf("a second %v was added by somebody; removed", x.what))
		}
	}
	return repaired, joined(w.sorted())
}

// changes returns a line for each thing that is different in found from what was believed, in order, and what became of it.
func changes(belief, found, now objects) []string {
	if !belief.known() {
		return nil
	}
	var lines []string
	compare(&lines, belief.fdb, found.fdb, now.fdb)
	compare(&lines, belief.neighbours, found.neighbours, now.neighbours)
	compare(&lines, belief.routes, found.routes, now.routes)
	compare(&lines, belief.rules, found.rules, now.rules)
	slices.Sort(lines)
	return lines
}

func compare[K interface {
	comparable
	fmt.Stringer
}, V comparable](lines *[]string, belief, found, now map[K]V) {
	changed, added := differ(found, belief)
	for _, key := range changed {
		verb := "changed"
		if _, ok := found[key]; !ok {
			verb = "deleted"
		}
		if v, ok := now[key]; ok && v == belief[key] {
			*lines = append(*lines, fmt.Sprintf("%v was %s by somebody; set again", key, verb))
		}
	}
	for _, key := range added {
		if _, ok := now[key]; !ok {
			*lines = append(*lines, fmt.Sprintf("%v was added by somebody; removed", key))
		}
	}
}

// possible is what is wanted, without what needs a device that is not there.
func (k *Kernel) possible() objects {
	missing := false
	for name := range k.want.devices {
		missing = missing || !k.usable(name)
	}
	for name := range k.want.segments() {
		missing = missing || !k.usable(name)
	}
	if !missing {
		return k.want
	}
	return k.want.without(func(name string) bool { return !k.usable(name) })
}

func (k *Kernel) usable(device string) bool {
	l, ok := k.links[device]
	return ok && l.up
}

// devices looks at the interfaces that kernel paths need, and puts the VXLAN devices in order.
type devices struct {
	conn   *conn
	ns     namespace
	config Config

	links    map[string]link // that are there and of use
	touched  map[string]bool // devices whose objects may be gone, or are no longer wanted: nobody needs to be told of each
	unwanted []link
	lines    []string
	errs     []error
	done     int
}

// put does it and returns the VXLAN devices as they are then. An error is one of looking; what cannot be put in order is in errs.
func (d *devices) put(want, belief objects) (map[string]device, error) {
	have := map[string]device{}
	for _, name := range []string{Device4, Device6} {
		l, exists, err := d.conn.link(name)
		if err != nil {
			return nil, err
		}
		w, wanted := want.devices[name]
		_, known := belief.devices[name]
		switch {
		case !wanted && (!exists || !d.config.ours(l)):
			d.touched[name] = true
			continue
		case !wanted:
			d.links[name] = l
			d.unwanted = append(d.unwanted, l)
			continue
		case exists && !d.config.ours(l):
			d.touched[name] = true
			d.errs = append(d.errs, fmt.Errorf("interface %s exists and is not Weft's; rename it, or delete it as by: ip link delete %s", name, name))
			continue
		}
		if err := d.device(name, l, exists, w, known); err != nil {
			d.errs = append(d.errs, err)
			d.touched[name] = true
			continue
		}
		have[name] = w
	}
	for name := range want.segments() {
		l, exists, err := d.conn.link(name)
		if err != nil {
			return nil, err
		}
		if !exists || !l.up {
			d.touched[name] = true
			what := "is down"
			if !exists {
				what = "does not exist"
			}
			d.errs = append(d.errs, fmt.Errorf("interface %s %s: nobody is reached by direct through it", name, what))
			continue
		}
		d.links[name] = l
	}
	return have, nil
}

// device makes one VXLAN device, or puts the one that there is in order; known says that it was in order before.
func (d *devices) device(name string, l link, exists bool, want device, known bool) error {
	before := d.done
	tell := func(format string, args ...any) {
		d.done++
		if known {
			d.lines = append(d.lines, fmt.Sprintf(format, args...))
		}
	}
	// One that was too small for IPv6 would begin with addresses of its own.
	if small := exists && l.mtu < minMTU6 && want.mtu >= minMTU6; small || exists && !d.config.right(l) {
		if err := d.conn.removeLink(l.index); err != nil {
			return explainDevice(name, "removing", err)
		}
		tell("device %s was changed by somebody; made anew", name)
		exists, known = false, false
	}
	if !exists {
		d.touched[name] = true
		if err := d.conn.addDevice(name, name == Device6, d.config, want.mtu); err != nil {
			return explainMaking(name, d.config, err)
		}
		tell("device %s was deleted by somebody; made again", name)
		known = false
		var err error
		if l, exists, err = d.conn.link(name); err != nil || !exists {
			return errors.Join(err, fmt.Errorf("device %s has gone while it was made", name))
		}
	}
	if err := d.attributes(l, want, tell); err != nil {
		return err
	}
	if err := d.address(l, want, tell); err != nil {
		return err
	}
	changed, err := d.settings(name, want)
	if err != nil {
		return err
	}
	for _, line := range changed {
		d.touched[name] = true
		tell("%s", line)
	}
	if !l.up {
		d.touched[name] = true
		tell("device %s was set down by somebody; it is up again", name)
		if err := d.conn.setUp(l.index); err != nil {
			return explainUp(name, d.config, err)
		}
	}
	if d.done > before {
		again, exists, err := d.conn.link(name)
		if err != nil || !exists {
			return errors.Join(err, fmt.Errorf("device %s has gone while it was put in order", name))
		}
		l = again
	}
	d.links[name] = l
	return nil
}

// attributes corrects what can be changed of a device.
func (d *devices) attributes(l link, want device, tell func(string, ...any)) error {
	name, m := l.name, macOf(d.config.ID)
	if l.alias != deviceAlias {
		if err := d.conn.setLink(l.index, aliasAttr()); err != nil {
			return explainDevice(name, "naming", err)
		}
		tell("alias of device %s was changed by somebody; set again", name)
	}
	if g := d.config.Group; g != 0 && l.group != g {
		if err := d.conn.setLink(l.index, attr32(unix.IFLA_GROUP, g)); err != nil {
			return explainDevice(name, "setting the group of", err)
		}
		tell("group of device %s was changed by somebody; set again", name)
	}
	if l.mac != string(m[:]) { // neighbours go with it
		d.touched[name] = true
		if err := d.conn.setLink(l.index, macAttr(m)); err != nil {
			return explainDevice(name, "setting the hardware address of", err)
		}
		tell("hardware address of device %s was changed by somebody; set again", name)
	}
	if l.mtu != want.mtu {
		d.touched[name] = true
		if err := d.conn.setLink(l.index, attr32(unix.IFLA_MTU, uint32(want.mtu))); err != nil {
			return explainDevice(name, fmt.Sprintf("setting the MTU %d of", want.mtu), err)
		}
		tell("MTU of device %s was changed to %d by somebody; set to %d again", name, l.mtu, want.mtu)
	}
	if l.gen >= 0 && l.gen != genNone {
		if err := d.conn.setLink(l.index, addressMode(genNone)); err != nil {
			return explainDevice(name, "setting the address mode of", err)
		}
		tell("IPv6 address mode of device %s was changed by somebody; set again", name)
	}
	return nil
}
