// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weftnet/weft/ipam/ring"
)

// MaxSeeds is the most owners that a seed names.
const MaxSeeds = 1024

const (
	seedFormat = 1
	seedBit    = 1 << 63 // set in seed names' owners, clear in every node's
)

// Seed says who owns the universe at the beginning, in the order in which it is split: the founding node, or the names
// of --seed. All nodes of a mesh have the same one.
type Seed struct{ Owners []ring.Owner }

// SeedNames returns the seed that splits the universe among names. The order of the names does not matter. It is an
// error if a name is empty or occurs twice, or there is none, or more than MaxSeeds.
func SeedNames(names []string) (Seed, error) {
	if len(names) == 0 || len(names) > MaxSeeds {
		return Seed{}, fmt.Errorf("a seed of %d names; give 1 to %d", len(names), MaxSeeds)
	}
	sorted := slices.Sorted(slices.Values(names))
	var s Seed
	for i, name := range sorted {
		if strings.TrimSpace(name) == "" {
			return Seed{}, errors.New("the seed has an empty name; list the names of the seeding nodes, separated by commas")
		}
		if i > 0 && name == sorted[i-1] {
			return Seed{}, fmt.Errorf("the seed names %s twice; list every seeding node once", name)
		}
		s.Owners = append(s.Owners, NameOwner(name))
	}
	return s, nil
}

// NameOwner returns the owner that stands for a seed name until the node of that name adopts its share. Its top bit is
// set, so that it is never a node's.
func NameOwner(name string) ring.Owner {
	sum := sha256.Sum256([]byte("weft seed 1\x00" + name))
	return ring.Owner(binary.BigEndian.Uint64(sum[:8]) | seedBit)
}

// Encode returns the seed's binary form.
func (s Seed) Encode() []byte {
	b := []byte{seedFormat}
	for _, o := range s.Owners {
		b = binary.BigEndian.AppendUint64(b, uint64(o))
	}
	return b
}

// DecodeSeed parses what Encode returned. It refuses forms that it does not know, owners that are 0 or occur twice, and
// more than MaxSeeds of them.
func DecodeSeed(b []byte) (Seed, error) {
	if len(b) == 0 || b[0] != seedFormat || len(b)%8 != 1 || len(b) < 9 || len(b)/8 > MaxSeeds {
		return Seed{}, fmt.Errorf("seed of %d bytes is malformed or written by a later version; upgrade this node", len(b))
	}
	var s Seed
	for o := range slices.Chunk(b[1:], 8) {
		owner := ring.Owner(binary.BigEndian.Uint64(o))
		if owner == 0 || slices.Contains(s.Owners, owner) {
			return Seed{}, fmt.Errorf("seed of %d bytes is malformed: owner %016x is 0 or occurs twice", len(b), uint64(owner))
		}
		s.Owners = append(s.Owners, owner)
	}
	return s, nil
}
