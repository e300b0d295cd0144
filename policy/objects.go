// SPDX-License-Identifier: Apache-2.0

package policy

import "net/netip"

// A Tier is a set of policies that are asked together.
type Tier uint8

// The tiers in the order in which they are asked.
const (
	Admin    Tier = iota // ClusterNetworkPolicy, tier Admin
	Network              // NetworkPolicy
	Baseline             // ClusterNetworkPolicy, tier Baseline
)

// An Action is what a rule does with a connection that fits it.
type Action uint8

// Rules of the Network tier know Accept alone.
const (
	Accept Action = iota
	Deny
	Pass // asks the next tier
)

// A Direction is an end of a connection, as the endpoint there sees it.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota
	Egress
)

// Protocol is an IP protocol number (IANA). Zero is any.
type Protocol uint8

// The protocols that have ports.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// Name names a policy or an endpoint. Namespace is empty for what is of the whole cluster.
type Name struct{ Namespace, Name string }

// A PolicyKey names a policy: no two have the same one. Kind is Network for a NetworkPolicy and Admin for a ClusterNetworkPolicy, whatever
// its tier.
type PolicyKey struct {
	Kind Tier
	Name
}

// An Operator says how a requirement compares a label's value (LabelSelectorRequirement).
type Operator uint8

// The operators. NotIn and DoesNotExist also hold where there is no such label.
const (
	In Operator = iota
	NotIn
	Exists
	DoesNotExist
)

// A Requirement is one condition on labels.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string // sorted, none twice; only for In and NotIn
}

// A Selector fits what meets all requirements; without any it fits everything. Requirements are in the order of their keys,
// operators and values.
type Selector []Requirement

// A Block is a prefix but for parts of it. All are masked, and every part is in the prefix.
type Block struct {
	Prefix netip.Prefix
	Except []netip.Prefix
}

// A Peer is whom a rule is about. Of a Peer exactly one of the three forms is set: Pods and Namespaces (both, to mean the endpoints that Pods fits
// in the namespaces that Namespaces fits), Nodes, or Block.
type Peer struct {
	// Namespaces selects by namespaces' labels; nil is the policy's own namespace. Pods selects among their endpoints; nil is all. One of
	// them is set if the peer is endpoints.
	Namespaces, Pods *Selector
	Nodes            *Selector // nodes by their labels: all their addresses
	Block            *Block    // addresses, whoever has them, endpoints' too
}

// Ports are destination ports that a rule is about.
type Ports struct {
	Protocol    Protocol // zero only where First, Last and Name are
	First, Last uint16   // inclusive; both zero: all ports of the protocol
	// Name is that of a port of the endpoint at the destination, which has another number in each, or none. With it First and Last are zero.
	// Protocol zero fits a port of that name whatever its protocol is. What is no endpoint has no such ports.
	Name string
}

// A Rule fits a connection if its peer and its destination port do.
type Rule struct {
	Name     string // what the author calls it; may be empty
	Action   Action
	AnyPeer  bool // fits whoever it is; Peers is empty
	Peers    []Peer
	AnyPort  bool // fits all protocols and ports; Ports is empty
	Ports    []Ports
	Disabled bool // fits nothing: it could not be understood, and would have allowed something
}

// A Policy is rules for the endpoints that it selects. It is never changed once given.
type Policy struct {
	PolicyKey
	Tier     Tier
	Priority int32 // of the Admin and Baseline tiers; the lower is asked first, ties by name
	// Namespaces selects the namespaces of the subject by their labels; nil is the policy's own namespace. Pods selects among the
	// endpoints there; nil is all.
	Namespaces, Pods *Selector
	// Isolates says, by direction, whether a policy of the Network tier denies its subject what no such policy allows. Its rules of a direction
	// in which it does not isolate say nothing.
	Isolates [2]bool
	Rules    [2][]Rule // by direction, in the order in which they are asked
	// Problems are what could not be understood, a line each, and how it is enforced instead.
	Problems []string
}

// A NamedPort is a port that an endpoint gives a name to.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// An Endpoint is a workload with addresses of the overlay, as one pod; not one that shares its node's addresses.
type Endpoint struct {
	Name
	ID     string // tells it from an earlier one of the same name; may be empty
	Node   string // name of the node that it is on
	Labels map[string]string
	Addrs  []netip.Addr // at most one of each family; none as long as they are not known
	Ports  []NamedPort
}

// A Namespace is a set of endpoints. To its labels a World adds [NameLabel].
type Namespace struct {
	Name   string
	Labels map[string]string
}

// A Node is a host.
type Node struct {
	Name   string
	Labels map[string]string
	Addrs  []netip.Addr // all that it sends from and is reached by, those on the overlay among them
}

// A Connection is what is judged: the first packet's addresses after destination NAT. Both addresses are of one family and not
// IPv4-mapped. Ports are zero where the protocol has none. If both addresses are the same, it comes through a Service: what an endpoint sends
// to its own address never leaves it, and nobody judges that.
type Connection struct {
	Src, Dst netip.Addr
	Protocol Protocol
	Port     uint16 // destination
}
