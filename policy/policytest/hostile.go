// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/policy"
)

// A HostilePolicy is one that somebody wrote to do harm.
type HostilePolicy struct {
	What    string
	Policy  *policy.Policy
	Refused string // part of what policy.Policy.Check says; empty if it lets it pass
}

// Hostile returns policies that are as large or as odd as can be. Each call makes new ones.
func Hostile() []HostilePolicy {
	network := func(r ...policy.Rule) *policy.Policy {
		return &policy.Policy{
			PolicyKey: policy.PolicyKey{Kind: policy.Network, Name: policy.Name{Namespace: "default", Name: "hostile"}},
			Tier:      policy.Network,
			Isolates:  [2]bool{true, true},
			Rules:     [2][]policy.Rule{r, r},
		}
	}
	many := func(n int) []policy.Ports {
		all := make([]policy.Ports, n)
		for i := range all {
			all[i] = policy.Ports{Protocol: policy.TCP, First: uint16(i + 1), Last: uint16(i + 1)}
		}
		return all
	}
	overlapping := &policy.Block{Prefix: netip.MustParsePrefix("0.0.0.0/0")}
	for bits := 1; bits <= 32; bits++ {
		for i := range 100 {
			overlapping.Except = append(overlapping.Except, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, 0, byte(i)}), bits).Masked())
		}
	}
	var blocks []policy.Peer
	for i := range 9000 {
		blocks = append(blocks, policy.Peer{Block: &policy.Block{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}})
	}
	values := make([]string, 15_000)
	for i := range values {
		values[i] = fmt.Sprintf("v%05d", i)
	}
	longest := network(policy.Rule{Name: strings.Repeat("r", policy.MaxName), AnyPeer: true, AnyPort: true})
	longest.Name = policy.Name{Namespace: strings.Repeat("n", policy.MaxLabel), Name: strings.Repeat("p", policy.MaxName)}
	key := strings.Repeat("k", policy.MaxName) + "/" + strings.Repeat("k", policy.MaxLabel)
	longest.Pods = &policy.Selector{{Key: key, Operator: policy.DoesNotExist}}
	longer := network()
	longer.Name.Name = strings.Repeat("p", 1<<20)
	odd := network(policy.Rule{AnyPeer: true, AnyPort: true})
	odd.Pods = &policy.Selector{{Key: "app", Operator: 77, Values: []string{"\x1b[31m\n"}}}
	empty := network()
	empty.Pods = &policy.Selector{{Key: "app", Operator: policy.In}}
	wide := &policy.Policy{
		PolicyKey:  policy.PolicyKey{Kind: policy.Admin, Name: policy.Name{Name: "wide"}},
		Tier:       policy.Baseline,
		Namespaces: &policy.Selector{{Key: "a", Operator: 9}},
		Rules:      [2][]policy.Rule{make([]policy.Rule, 100_000), {{Action: policy.Deny, AnyPeer: true, AnyPort: true}}},
	}
	return []HostilePolicy{
		{"10,000 ports", network(policy.Rule{AnyPeer: true, Ports: many(10_000)}), ""}, // 20,000 both ways
		{"20,000 ports", network(policy.Rule{AnyPeer: true, Ports: many(20_000)}), "more than 20000 peers, ports and labels"},
		{"60,000 ports", network(policy.Rule{AnyPeer: true, Ports: many(60_000)}), "more than 20000 peers, ports and labels"},
		{"many peers to many ports", network(policy.Rule{Peers: blocks[:300], Ports: many(300)}), "in more than 100000 ways"},
		{"9,000 blocks", network(policy.Rule{Peers: blocks, AnyPort: true}), ""},
		{"overlapping parts left out", network(policy.Rule{Peers: []policy.Peer{{Block: overlapping}}, AnyPort: true}), ""},
		{"15,000 values", network(policy.Rule{Peers: []policy.Peer{{Pods: &policy.Selector{{Key: "app", Operator: policy.NotIn, Values: values}}}}, AnyPort: true}), "more than 20000"},
		{"names of maximal length", longest, ""},
		{"a name longer than that", longer, "its name is ppp"},
		{"an odd operator", odd, "unknown operator 77"},
		{"no values", empty, "In has no values"},
		{"100,000 rules", wide, "the subject's namespaces: label a: unknown operator 9"},
		{"nothing at all", &policy.Policy{}, `its name is ""`},
	}
}
