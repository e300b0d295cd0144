// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// String is NAMESPACE/NAME, or the name alone of what is of the whole cluster.
func (n Name) String() string {
	if n.Namespace == "" {
		return n.Name
	}
	return n.Namespace + "/" + n.Name
}

// String is the kind of the object and its name, as in "NetworkPolicy prod/db".
func (k PolicyKey) String() string {
	if k.Kind == Network {
		return "NetworkPolicy " + k.Name.String()
	}
	return "ClusterNetworkPolicy " + k.Name.String()
}

// String is the tier's name.
func (t Tier) String() string { return nth(t, "Admin", "Network", "Baseline") }

// String is what an author writes.
func (a Action) String() string { return nth(a, "Accept", "Deny", "Pass") }

// String is what an author writes.
func (o Operator) String() string { return nth(o, "In", "NotIn", "Exists", "DoesNotExist") }

// String is the direction as the endpoint sees it.
func (d Direction) String() string { return nth(d, "ingress", "egress") }

// nth is the name of i, or its number if it has none.
func nth[I ~uint8](i I, names ...string) string {
	if int(i) < len(names) {
		return names[i]
	}
	return strconv.Itoa(int(i))
}

// String is the protocol's name, or its number if policies have no word for it.
func (p Protocol) String() string {
	switch p {
	case 0:
		return "any protocol"
	case 1:
		return "ICMP"
	case 58:
		return "ICMPv6"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	default:
		return "protocol " + strconv.Itoa(int(p))
	}
}

// HasPorts says whether connections of that protocol have ports that policies know.
func (p Protocol) HasPorts() bool { return p == TCP || p == UDP || p == SCTP }

// String is SOURCE -> DESTINATION PROTOCOL PORT.
func (c Connection) String() string { return fmt.Sprintf("%v -> %v %s", c.Src, c.Dst, c.service()) }

// service is the protocol and port.
func (c Connection) service() string {
	if !c.Protocol.HasPorts() {
		return c.Protocol.String()
	}
	return fmt.Sprintf("%v %d", c.Protocol, c.Port)
}

// String is the requirement as kubectl has it: "app=db", "tier in (a, b)", "!legacy".
func (r Requirement) String() string {
	values := make([]string, len(r.Values))
	for i, v := range r.Values {
		values[i] = plain(v)
	}
	key := plain(r.Key)
	switch r.Operator {
	case In:
		if len(values) == 1 {
			return key + "=" + values[0]
		}
		return key + " in (" + list(values) + ")"
	case NotIn:
		if len(values) == 1 {
			return key + "!=" + values[0]
		}
		return key + " not in (" + list(values) + ")"
	case Exists:
		return key
	case DoesNotExist:
		return "!" + key
	default:
		return fmt.Sprintf("%s %v (%s)", key, r.Operator, list(values))
	}
}

// String is all requirements; of none it is "".
func (s Selector) String() string {
	all := make([]string, len(s))
	for i, r := range s {
		all[i] = r.String()
	}
	return strings.Join(all, ", ")
}

// String is the prefix and what is left out of it.
func (b Block) String() string {
	if len(b.Except) == 0 {
		return b.Prefix.String()
	}
	left := make([]string, len(b.Except))
	for i, e := range b.Except {
		left[i] = e.String()
	}
	return b.Prefix.String() + " but for " + list(left)
}

// String is the protocol and what of it: "TCP 80", "UDP 1000-2000", "SCTP", `TCP "http"`.
func (p Ports) String() string {
	switch {
	case p.Name != "" && p.Protocol == 0:
		return "port " + strconv.Quote(p.Name)
	case p.Name != "":
		return p.Protocol.String() + " " + strconv.Quote(p.Name)
	case p.First == 0 && p.Last == 0:
		return p.Protocol.String()
	case p.First == p.Last:
		return fmt.Sprintf("%v %d", p.Protocol, p.First)
	default:
		return fmt.Sprintf("%v %d-%d", p.Protocol, p.First, p.Last)
	}
}

// mostListed is how many members of a list are shown.
const mostListed = 12

// list joins with commas, and says how many are not shown.
func list(all []string) string {
	if n := len(all) - mostListed; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:mostListed], ", "), n)
	}
	return strings.Join(all, ", ")
}

// mostShown is how many bytes are shown of what somebody else wrote.
const mostShown = 100

// plain is s, in quotes if a terminal or a reader could take it for something else, and cut if it is long.
func plain(s string) string {
	odd := s == "" || strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsPrint(r) || r == ' ' || r == '"' || r == ',' || r == '(' || r == ')' || r == unicode.ReplacementChar
	})
	cut := ""
	if len(s) > mostShown {
		s, cut = strings.ToValidUTF8(s[:mostShown], ""), "..."
	}
	if odd {
		s = strconv.Quote(s)
	}
	return s + cut
}

// oneLine is a sentence of ours with others' words in it: without what a terminal could take for something else, and cut if it is very long.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if most := 5 * mostShown; len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
