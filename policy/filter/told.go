// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"golang.org/x/sys/unix"
)

// Whoever tries all ports must not keep what others are denied from being told: there is a limit for each source, and one for all of them. Sources are
// elements of sets which the packets themselves make, and which end by themselves; only what is denied looks them up. A source for which there is no room is not told of.
const (
	setTold = "told" // address of a source -> its limit

	sourceRate  = 20 // of a source, in packets a second
	sourceBurst = 40
	toldSources = 8192      // of a family
	toldFor     = 10 * 1000 // how long one is kept in mind after its last packet, in milliseconds: longer than until its limit is as good as new
)

// toldSet is that of a family.
func (f family) toldSet() setKind {
	kind := uint32(typeV4)
	if f.size == 16 {
		kind = typeV6
	}
	return setKind{name: f.set(setTold), keyType: kind, keyLen: f.size, flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, timeout: toldFor, size: toldSources}
}

// dynamic says whether packets make the elements of a set. Nobody else does, nor reads them.
func (k setKind) dynamic() bool { return k.flags&unix.NFT_SET_EVAL != 0 }

// tell adds the rules that tell of a packet, as far as the limits allow.
func (l layout) tell(c *chain, d end) {
	for _, f := range families() {
		c.add(f.is(), f.address(true), limitedBy(f.set(setTold), sourceRate, sourceBurst), limit(logRate, logBurst), tell(l.group, logBytes, logPrefix+d.name))
	}
}

// limitedBy goes on for so many packets a second, and burst beyond that, of those with the same key.
func limitedBy(set string, rate uint64, burst uint32) expression {
	return express("dynset", func(b *buffer) {
		b.text(unix.NFTA_DYNSET_SET_NAME, set)
		b.word(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE)
		b.word(unix.NFTA_DYNSET_SREG_KEY, register(0).name())
		b.expression(unix.NFTA_DYNSET_EXPR, limit(rate, burst))
	})
}
