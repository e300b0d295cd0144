// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Remove takes back everything that Weft made on the host, and c, as far as nobody else has changed it since; nothing else. It
// returns what that was, in words. It goes on after an error, works without an Apply before, and can be repeated. The daemon must
// have ended.
func (h *Host) Remove(c Changes) (removed []string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k, err := h.ns.open()
	if err != nil {
		return nil, err
	}
	defer k.Close()
	line, err := h.ns.line()
	if err != nil {
		return nil, err
	}
	defer line.close()
	defer h.close()
	defer func() { _ = h.freeing.Wait() }() // unplug has had the errors
	var errs []error
	links, err := k.links()
	errs = append(errs, err)
	// Workloads first: as long as they can send, the rules stand.
	for _, tunnels := range []bool{false, true} {
		for _, l := range links {
			if !ours(l) || tunnel(l) != tunnels {
				continue
			}
			if err := h.unplug(line, l, nil); err != nil {
				errs = append(errs, err)
				continue
			}
			what := "device " + l.Attrs().Name
			if id, _ := veth(l); id != "" {
				what += " of workload " + id
			}
			removed = append(removed, what)
		}
	}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		gone, err := removeRoutes(k, f)
		removed, errs = append(removed, gone...), append(errs, err)
	}
	gone, err := removeTable(h.ns)
	errs = append(errs, err)
	if gone {
		removed = append(removed, "nftables table inet "+tableName)
	}
	errs = append(errs, h.ns.run(func() error {
		restored, err := c.restore()
		removed = append(removed, restored...)
		return err
	}))
	h.table = nil
	return removed, errors.Join(errs...)
}

// removeRoutes removes the routes that did not go with their devices.
func removeRoutes(c conn, family int) (removed []string, err error) {
	list, err := c.routes(family)
	if err != nil {
		return nil, err
	}
	var errs []error
	for i, r := range list {
		k, ok := keyOf(r)
		if !ok || r.Protocol != RouteProtocol {
			continue
		}
		switch err := c.RouteDel(&list[i]); {
		case err == nil:
			removed = append(removed, fmt.Sprintf("route to %v", k.dst))
		case !errors.Is(err, unix.ESRCH):
			errs = append(errs, fmt.Errorf("removing the route to %v: %w", k.dst, err))
		}
	}
	return removed, errors.Join(errs...)
}
