// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
)

// loose plans rp_filter=2 for the links by which kernel paths go without a tunnel, where the filter is strict: while the path to a
// peer changes, its packets may come by a link although its route leads elsewhere already. The kernel takes the greater of a link's
// setting and that of all (Linux, ip-sysctl: rp_filter), and of a link without an IPv4 address even the loose filter takes nothing that
// is routed elsewhere. Whether the source is right is for the rules to say.
func (s *settings) loose(links []string) error {
	all, err := readSysctl(confKey("ipv4", "all", "rp_filter"))
	if err != nil {
		return fmt.Errorf("reading the reverse path filter: %w", err)
	}
	for _, name := range links {
		key := confKey("ipv4", name, "rp_filter")
		was, err := readSysctl(key)
		if err != nil {
			continue // gone meanwhile
		}
		set := "2"
		if !hasIPv4(name) {
			set = "0"
			if all != "0" {
				s.warnings = append(s.warnings, fmt.Sprintf("net.ipv4.conf.all.rp_filter is %s and %s has no IPv4 address: "+
					"IPv4 packets that come by it are dropped while the path to a peer changes; set it to 0", all, name))
				continue
			}
		}
		if strict := max(was, all) == "1" || set == "0" && was != "0"; strict {
			s.add(Sysctl{Key: key, Was: was, Set: set})
		}
	}
	return nil
}

// hasIPv4 says whether an interface of the namespace of the calling thread has an IPv4 address.
func hasIPv4(link string) bool {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return false
	}
	addrs, err := i.Addrs()
	return err == nil && slices.ContainsFunc(addrs, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.To4() != nil
	})
}

// tighten gives back what loose has set for links that are no longer among those, and returns the rest of the changes.
func (c Changes) tighten(links []string) (Changes, error) {
	kept := c.clone()
	var errs []error
	kept.Sysctls = slices.DeleteFunc(kept.Sysctls, func(s Sysctl) bool {
		if !isLoose(s.Key) || slices.ContainsFunc(links, func(name string) bool { return confKey("ipv4", name, "rp_filter") == s.Key }) {
			return false
		}
		_, err := Changes{Sysctls: []Sysctl{s}}.restore()
		errs = append(errs, err)
		return err == nil || errors.Is(err, fs.ErrNotExist)
	})
	return kept, errors.Join(errs...)
}

// isLoose says whether a setting is one that loose changes.
func isLoose(key string) bool {
	return strings.HasPrefix(key, "net/ipv4/conf/") && strings.HasSuffix(key, "/rp_filter")
}
