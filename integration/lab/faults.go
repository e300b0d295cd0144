// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// faults is the desired state of a switch's drop rules. Every change replaces the whole nftables table in one transaction.
// Hosts do not see it: the rules are in the namespace of the switch.
type faults struct {
	loss  map[string]float64 // port -> probability of losing a frame that enters or leaves by it
	cut   map[[2]string]bool // from port, to port: nothing passes
	block []block
}

// faultTable is the nftables table that a switch keeps its faults in.
const faultTable = "faults"

// randomRange is the resolution of probabilities in rules.
const randomRange = 1_000_000

// Lose drops frames by chance, with probability p in [0,1] each, in both directions of the link. Frames are what the machine
// moves, see [Link.Segmented]. Zero ends it.
func (l *Link) Lose(p float64) {
	l.ns.lab.tb.Helper()
	f := &l.segment.faults
	if f.loss == nil {
		f.loss = map[string]float64{}
	}
	f.loss[l.port] = p
	l.segment.applyFaults()
}

// Cut drops everything between two links of the segment, in both directions.
func (s *Segment) Cut(a, b *Link) {
	s.lab.tb.Helper()
	s.cut(a, b)
	s.applyFaults()
}

func (s *Segment) cut(a, b *Link) {
	if s.faults.cut == nil {
		s.faults.cut = map[[2]string]bool{}
	}
	s.faults.cut[[2]string{a.port, b.port}] = true
	s.faults.cut[[2]string{b.port, a.port}] = true
}

// Partition cuts the segment between groups of links. Links in none of the groups form one more group.
func (s *Segment) Partition(groups ...[]*Link) {
	s.lab.tb.Helper()
	group := map[*Link]int{}
	for i, g := range groups {
		for _, l := range g {
			group[l] = i + 1
		}
	}
	for i, a := range s.links {
		for _, b := range s.links[i+1:] {
			if group[a] != group[b] {
				s.cut(a, b)
			}
		}
	}
	s.applyFaults()
}

// Heal ends all cuts and blocks. Losses stay.
func (s *Segment) Heal() {
	s.lab.tb.Helper()
	s.faults.cut, s.faults.block = nil, nil
	s.applyFaults()
}

func (s *Segment) applyFaults() {
	s.lab.tb.Helper()
	if err := s.ns.nft(s.faults.rules); err != nil {
		s.lab.tb.Fatalf("lab: faults on %s: %v", s.name, err)
	}
}

// rules adds to c the commands that replace the table.
func (f *faults) rules(c *nftables.Conn) {
	table := &nftables.Table{Family: nftables.TableFamilyBridge, Name: faultTable}
	c.AddTable(table) // so that there is one to delete
	c.DelTable(table)
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	drop := func(exprs ...expr.Any) {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(exprs, &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	for _, pair := range slices.SortedFunc(maps.Keys(f.cut), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		drop(append(device(expr.MetaKeyIIFNAME, pair[0]), device(expr.MetaKeyOIFNAME, pair[1])...)...)
	}
	for _, b := range f.block {
		for _, match := range b.matches() {
			drop(match...)
		}
	}
	for _, port := range slices.Sorted(maps.Keys(f.loss)) {
		for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			drop(append(device(key, port), chance(f.loss[port])...)...)
		}
	}
}

// device matches the name of the device by which a packet came in or leaves.
func device(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded},
	}
}

// chance matches with probability p.
func chance(p float64) []expr.Any {
	limit := uint32(math.Round(min(max(p, 0), 1) * randomRange))
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: randomRange, Type: unix.NFT_NG_RANDOM},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binary.BigEndian.AppendUint32(nil, limit)},
	}
}

// hostOrder encodes a register value that the kernel keeps in its own byte order.
func hostOrder(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
