// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// loose plans rp_filter=2 for the links by which kernel paths go without a tunnel, where the filter is strict: while the path to a
// peer changes, its packets may come by a link although its route leads elsewhere already. The kernel takes the greater of a link's
// setting and that of all (Linux, ip-sysctl: rp_filter). Whether the source is right is for the rules to say.
func (s *settings) loose(links []string) error {
	all, err := readSysctl(confKey("ipv4", "all", "rp_filter"))
	if err != nil {
		return fmt.Errorf("reading the reverse path filter: %w", err)
	}
	for _, name := range links {
		key := confKey("ipv4", name, "rp_filter")
		was, err := readSysctl(key)
		if err != nil || max(was, all) != "1" {
			continue // gone meanwhile, or nothing is in the way
		}
		s.add(Sysctl{Key: key, Was: was, Set: "2"})
	}
	return nil
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
