// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// SetElements describes what is in the sets of the namespace's nftables tables, as sorted lines. [Namespace.Snapshot] has the sets alone, as
// those of kernel paths follow the mesh.
func (n *Namespace) SetElements() (lines []string, err error) {
	c, err := nftables.New(nftables.WithNetNSFd(n.fd()))
	if err != nil {
		return nil, err
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("nftables tables of %s: %w", n.name, err)
	}
	for _, t := range tables {
		sets, err := c.GetSets(t)
		if err != nil {
			return nil, fmt.Errorf("nftables sets of %s: %w", n.name, err)
		}
		for _, set := range sets {
			elements, err := c.GetSetElements(set)
			if err != nil {
				return nil, fmt.Errorf("nftables set %s of %s: %w", set.Name, n.name, err)
			}
			for _, e := range elements {
				lines = append(lines, fmt.Sprintf("nft element %d %s %s %x %x", t.Family, t.Name, set.Name, e.Key, e.Val))
			}
		}
	}
	slices.Sort(lines)
	return lines, nil
}
