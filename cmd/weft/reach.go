// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/weftnet/weft/internal/api"
)

// mostNames is how many names or addresses a line of the status lists.
const mostNames = 8

// reachRows are the rows of the status that say how this node is reached, and what it does for others.
func reachRows(s api.Status) (rows [][]string) {
	if r := s.Reach; r != nil {
		rows = append(rows, []string{"reached at:", some(r.Addresses)}, []string{"NAT:", nat(*r)}, []string{"links:", some(r.Links)})
		if len(r.Relays) > 0 {
			var relays []string
			for _, x := range r.Relays {
				relays = append(relays, fmt.Sprintf("%s (for %s)", x.Node, count(uint64(x.Peers), "node", "nodes")))
			}
			rows = append(rows, []string{"relays used:", some(relays)})
		}
	}
	if r := s.Relaying; r != nil {
		rows = append(rows, []string{"relaying:", relaying(*r)})
	}
	return rows
}

// nat says in plain words what is between the node and the others.
func nat(r api.Reach) string {
	seen := ""
	if len(r.Observed) > 0 {
		seen = ": others see it at " + some(r.Observed)
	}
	switch r.NAT {
	case api.NATNone:
		return "none"
	case api.NATCone:
		return "one that keeps its port" + seen
	case api.NATSymmetric:
		return "one that gives it another port for each host (symmetric), so nodes behind the like are reached by relay" + seen
	}
	return "not known yet: nobody has said where it sees this node"
}

// relaying says what the node passes on for others.
func relaying(r api.Relaying) string {
	if r.Off {
		return "nothing for others (--no-relay)"
	}
	limit := "no limit"
	if r.Limit > 0 {
		limit = "at most " + rate(r.Limit)
	}
	text := fmt.Sprintf("%s, %s and %s for others, %s", count(r.Packets, "packet", "packets"), size(r.Bytes), count(r.Control, "control datagram", "control datagrams"), limit)
	if r.Dropped > 0 {
		text += fmt.Sprintf("; %s dropped beyond that", count(r.Dropped, "packet", "packets"))
	}
	return text
}

func count(n uint64, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, several)
}

// some lists the first of a few.
func some(list []string) string {
	if len(list) > mostNames {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:mostNames], ", "), len(list)-mostNames)
	}
	return strings.Join(list, ", ")
}
