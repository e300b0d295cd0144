// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
)

// Remove takes away all kernel paths, the routes that carry traffic first, also those of an earlier run without an Apply before,
// and forgets the last Apply. It returns what that was, in words. It goes on after an error, and can be repeated.
func (k *Kernel) Remove() (removed []string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.open()
	if err != nil {
		return nil, err
	}
	k.applied, k.doubt = false, false
	k.want, k.have, k.hops, k.refused, k.broken, k.links = newObjects(), newObjects(), nil, nil, nil, nil
	k.show()
	links := map[string]link{}
	for _, name := range []string{Device4, Device6} {
		l, exists, err := c.link(name)
		if err != nil {
			return nil, err
		}
		if exists && k.config.ours(l) {
			links[name] = l
		}
	}
	have, extra, err := c.objects(k.config, links)
	if err != nil {
		return nil, err
	}
	count := map[uint32]int{}
	for key := range have.routes {
		count[key.table]++
	}
	rules := len(have.rules)
	have.fdb, have.neighbours = nil, nil // they go with the devices
	w := &worker{conn: c, links: links, have: have}
	for _, x := range extra {
		w.did(x.remove(c.resend(x.kind, x.body)))
	}
	w.run(newObjects())
	for key := range have.routes { // what is left
		count[key.table]--
	}
	if n := count[mainTable]; n > 0 {
		removed = append(removed, fmt.Sprintf("%d routes of kernel paths", n))
	}
	if n := rules - len(have.rules); n > 0 {
		removed = append(removed, fmt.Sprintf("%d rules for probes of kernel paths", n))
	}
	if n := count[TableDirect] + count[TableVXLAN]; n > 0 {
		removed = append(removed, fmt.Sprintf("%d routes for probes of kernel paths", n))
	}
	for _, name := range []string{Device4, Device6} {
		if l, ok := links[name]; ok && w.did(explainDevice(name, "removing", c.removeLink(l.index))) {
			removed = append(removed, "device "+name)
		}
	}
	return removed, joined(w.sorted())
}
