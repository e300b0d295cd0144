// SPDX-License-Identifier: Apache-2.0

package ring

import (
	"errors"
	"math"
	"testing"
)

// Every write against every state that it does not start from. What it does to those that it starts from is compared with
// the oracle in TestLawsOverReachableRings.
func TestWritesAreRefused(t *testing.T) {
	reg := func(epoch, count uint32, owner, from Owner) Register {
		return Register{Version{epoch, count}, owner, from}
	}
	claimed, pending, unknown := reg(0, 3, 1, 0), reg(0, 4, 2, 1), Register{}
	n := &naive{slots: slots{
		claimed, claimed, pending, pending, unknown, unknown,
		reg(0, math.MaxUint32, 1, 0), reg(0, math.MaxUint32, 2, 1), reg(math.MaxUint32, 7, 3, 0), reg(0, 7, 4, 0),
	}, log: []Retirement{{Dead: 4, Heir: 3, By: 1}, {Dead: 3, Heir: 1, By: 1}}}
	whole := n.ring(t)
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"grant of another's":        {whole.Grant(2, 3, Interval{0, 1}), "ring: not the owner: part of [0,1] is owned by 0000000000000001, not by 0000000000000002"},
		"grant of partly others'":   {whole.Grant(1, 3, Interval{1, 2}), "ring: not the owner: part of [1,2] is granted by 0000000000000001 to 0000000000000002, not for 0000000000000001 to write"},
		"grant of what is pending":  {whole.Grant(2, 3, Interval{2, 2}), "ring: not the owner: part of [2,2] is granted by 0000000000000001 to 0000000000000002, not for 0000000000000002 to write"},
		"grant of the unknown":      {whole.Grant(1, 3, Interval{4, 4}), "ring: not the owner: part of [4,4] is owned by 0000000000000000, not by 0000000000000001"},
		"grant by nobody":           {whole.Grant(0, 3, Interval{4, 4}), "ring: 0000000000000000 cannot grant to 0000000000000003"},
		"grant to nobody":           {whole.Grant(1, 0, Interval{0, 0}), "ring: 0000000000000001 cannot grant to 0000000000000000"},
		"grant to itself":           {whole.Grant(1, 1, Interval{0, 0}), "ring: 0000000000000001 cannot grant to 0000000000000001"},
		"grant, counted out":        {whole.Grant(1, 2, Interval{6, 6}), "ring: a slot of 0000000000000001 has been written as often as can be counted"},
		"grant behind the end":      {whole.Grant(1, 2, Interval{9, 10}), "ring: [9,10] is not within the 10 slots of the ring"},
		"grant of a backward range": {whole.Grant(1, 2, Interval{1, 0}), "ring: [1,0] is not within the 10 slots of the ring"},
		"claim of what is claimed":  {whole.Claim(1, Interval{0, 0}), "ring: not the owner: part of [0,0] is owned by 0000000000000001, and no grant to 0000000000000001"},
		"claim by the granter":      {whole.Claim(1, Interval{2, 3}), "ring: not the owner: part of [2,3] is granted by 0000000000000001 to 0000000000000002, not for 0000000000000001 to write"},
		"claim of the unknown":      {whole.Claim(0, Interval{4, 5}), "ring: not the owner: part of [4,5] is owned by 0000000000000000, and no grant to 0000000000000000"},
		"claim, counted out":        {whole.Claim(2, Interval{7, 7}), "ring: a slot of 0000000000000002 has been written as often as can be counted"},
		"revoking what is claimed":  {whole.Revoke(1, Interval{0, 0}), "ring: not the owner: part of [0,0] is owned by 0000000000000001, and no grant by 0000000000000001"},
		"revoking by nobody":        {whole.Revoke(0, Interval{0, 0}), "ring: not the owner: part of [0,0] is owned by 0000000000000001, and no grant by 0000000000000000"},
		"revoking by the recipient": {whole.Revoke(2, Interval{2, 3}), "ring: not the owner: part of [2,3] is granted by 0000000000000001 to 0000000000000002, not for 0000000000000002 to write"},
		"revoking, counted out":     {whole.Revoke(1, Interval{7, 7}), "ring: a slot of 0000000000000002 has been written as often as can be counted"},
		"adopting another's":        {whole.Adopt(2, 5, Interval{0, 0}), "ring: not the owner: part of [0,0] is owned by 0000000000000001, not by 0000000000000002"},
		"adopting what is pending":  {whole.Adopt(2, 5, Interval{2, 2}), "ring: not the owner: part of [2,2] is granted by 0000000000000001 to 0000000000000002, not for 0000000000000002 to write"},
		"adopting the unknown":      {whole.Adopt(0, 5, Interval{4, 4}), "ring: 0000000000000005 cannot adopt what is 0000000000000000's"},
		"adopting for nobody":       {whole.Adopt(1, 0, Interval{0, 0}), "ring: 0000000000000000 cannot adopt what is 0000000000000001's"},
		"adopting one's own":        {whole.Adopt(1, 1, Interval{0, 0}), "ring: 0000000000000001 cannot adopt what is 0000000000000001's"},
		"taking from the living":    {whole.TakeOver(1, Interval{0, 0}), "ring: not the owner: part of [0,0] is owned by 0000000000000001, not by 0000000000000001"},
		"taking what is pending":    {whole.TakeOver(1, Interval{2, 2}), "ring: not the owner: part of [2,2] is granted by 0000000000000001 to 0000000000000002, not for 0000000000000001 to write"},
		"taking by an earlier heir": {whole.TakeOver(3, Interval{9, 9}), "ring: not the owner: 0000000000000003 is not who takes over"},
		"taking before any death":   {New(4).TakeOver(0, Interval{0, 0}), "ring: not the owner: 0000000000000000 is not who takes over"},
		"taking, counted out":       {whole.TakeOver(1, Interval{8, 8}), "ring: a slot of 0000000000000003 has been taken over as often as can be counted"},
		"taking the unknown":        {whole.TakeOver(1, Interval{4, 4}), "ring: not the owner: part of [4,4] is owned by 0000000000000000, not by 0000000000000001"},
		"no slots":                  {New(0).Grant(1, 2, Interval{0, 0}), "ring: [0,0] is not within the 0 slots of the ring"},
	} {
		if c.err == nil || c.err.Error() != c.want {
			t.Errorf("%s: error %v, want %s", name, c.err, c.want)
		}
	}
	check(t, whole, n)
	if err := whole.Claim(1, Interval{0, 0}); !errors.Is(err, ErrNotOwner) {
		t.Errorf("not for errors.Is: %v", err)
	}
}

// The last heir takes over from everybody who is retired, by whatever way it was theirs.
func TestTakeOver(t *testing.T) {
	log := []Retirement{{Dead: 1, Heir: 2, By: 2}, {Dead: 5, Heir: 6, By: 3}, {Dead: 2, Heir: 3, By: 3}}
	for name, c := range map[string]struct{ reg, want Register }{
		"claimed":           {Register{Version{0, 9}, 1, 0}, Register{Version{3, 1}, 3, 0}},
		"taken over before": {Register{Version{1, 1}, 2, 0}, Register{Version{3, 1}, 3, 0}},
		"granted to one":    {Register{Version{2, 10}, 1, 7}, Register{Version{3, 1}, 3, 0}},
		"granted by one":    {Register{Version{2, 10}, 7, 1}, Register{Version{3, 1}, 3, 0}},
		"by another log":    {Register{Version{3, 3}, 5, 0}, Register{Version{4, 1}, 3, 0}}, // than ours
	} {
		n := &naive{slots: slots{c.reg, {Version{0, 1}, 4, 0}}, log: log}
		r := n.ring(t)
		if err := r.TakeOver(3, Interval{0, 0}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		n.slots[0] = c.want
		check(t, r, n)
	}
}
