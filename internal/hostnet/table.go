// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// table is the nftables table as this package has left it.
type table struct {
	filters filters
	use     features
	rules   rules
	kept    bool  // nobody has said yet what goes by kernel paths: the elements are what an earlier run has left
	refused error // why there are no kernel paths; the next Apply tries again

	// told is how the kernel describes the table if it does so in other words than it was told, nil if in the same.
	told []string
}

// is says whether what was read of the kernel is this table, the elements aside.
func (t *table) is(have *found) bool {
	if have == nil || have.odd {
		return false
	}
	if t.told != nil {
		return slices.Equal(t.told, have.lines)
	}
	return slices.Equal(t.rules.lines(), have.lines)
}

// setTable makes the table what f and p say, with the most that the kernel can do. An intact one is left alone, whoever has made
// it; one with other elements gets the difference; any other is changed, or replaced if that cannot be. What the kernel lacks costs a
// warning; on error the table that is there stays.
func (h *Host) setTable(f filters, p Plaintext) (got features, warnings []string, err error) {
	c, err := h.ns.nftables()
	if err == nil {
		_, err = c.ListTablesOfFamily(nftables.TableFamilyINet)
	}
	switch {
	case err != nil && h.table != nil:
		return h.table.use, f.lacking(h.table.use), fmt.Errorf("reading nftables: %w", err)
	case err != nil:
		return features{}, append(f.lacking(features{}), fmt.Sprintf(
			"nftables does not work here: %v; use a kernel with nf_tables, or packets of workloads are not checked when they leave", err)), nil
	}
	have, plain := h.look()
	h.inspect(have)
	err = h.putBest(f, p, have, plain, true)
	switch {
	case err != nil && plain:
		if got = everything(); h.table != nil {
			got = h.table.use
		}
		return got, f.lacking(got), fmt.Errorf("changing the nftables table inet %s, which stays as it was: %w", tableName, err)
	case err != nil:
		h.table = nil
		return features{}, append(f.lacking(features{}), fmt.Sprintf(
			"nftables refuses Weft's rules: %v; packets of workloads are not checked when they leave", err)), nil
	}
	return h.table.use, append(f.lacking(h.table.use), blockers(c)...), nil
}

// look reads the table, nil if there is none. It says whether one with the rules of kernel paths is there, as far as is known.
func (h *Host) look() (have *found, plain bool) {
	have, err := h.read(h.ns)
	if err != nil {
		have, err = h.read(h.ns) // somebody may have changed it meanwhile
	}
	if err != nil { // something in it is none of ours
		h.log.Debug("the nftables table cannot be read", zap.Error(err))
		return &found{odd: true}, h.table != nil && h.table.use.plain
	}
	if have != nil {
		_, plain = have.elements[outSet(false).name]
	}
	return have, plain
}

// inspect notes what somebody has changed.
func (h *Host) inspect(have *found) {
	if h.table == nil {
		return
	}
	if d := h.table.damage(have); len(d) > 0 {
		h.log.Warn("nftables were changed by somebody", zap.Strings("repaired", d))
		h.repaired = append(h.repaired, d...)
	}
}

// putBest puts the table into place with the first features that the kernel accepts. If there is one with the rules of kernel paths, as plain
// says, there will not be one without them because of an error that may pass. Again has it try what was refused before.
func (h *Host) putBest(f filters, p Plaintext, have *found, plain, again bool) error {
	kept := p.Keep
	elements := p.elements()
	switch {
	case p.Keep && h.table != nil && !h.table.kept:
		kept = false
		f.port, f.devices = h.table.filters.port, h.table.filters.devices
		elements = maps.Clone(h.table.rules.elements)
	case p.Keep:
		elements = have.plain()
	}
	if own := portElement(f.port); f.port != 0 && !elements["ports"][own] { // what is kept may be of a table that has none
		elements.add("ports", own)
	}
	var refused, err error
	for _, use := range f.candidates() {
		t := &table{filters: f, use: use, rules: f.table(use, elements), kept: kept}
		if h.table != nil && h.table.filters.port == f.port && h.table.refused != nil && use.plain {
			refused = h.table.refused
			if !again || !h.takes(t) {
				continue
			}
		}
		if h.table != nil && slices.Equal(t.rules.lines(), h.table.rules.lines()) {
			t.told = h.table.told
		}
		if err = t.put(h, have); err == nil {
			if !use.plain {
				t.refused = refused
			}
			h.table = t
			return nil
		}
		if use.plain {
			if plain && (h.table != nil && h.table.use.plain || !lacks(err)) {
				h.back()
				return err
			}
			refused = unsupported(err)
		}
		have, _ = h.look() // a part may have been changed
	}
	if plain {
		h.back()
	}
	return err
}

// takes says whether the kernel would take a table, which needs not be in its place for that.
func (h *Host) takes(t *table) bool {
	c, err := h.writer()
	return err == nil && t.rules.try(c) == nil
}

// back puts the last table into its place again, of which an attempt at another one may have changed a part.
func (h *Host) back() {
	if h.table == nil {
		return
	}
	have, _ := h.look()
	if err := h.table.put(h, have); err != nil {
		h.log.Warn("nftables cannot be put right; the next attempt is in half a minute", zap.Error(err))
	}
}

// lacks says whether an error is how the kernel says that it does not have something.
func lacks(err error) bool {
	return slices.ContainsFunc([]error{unix.EOPNOTSUPP, unix.ENOENT, unix.EINVAL, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ENOSYS},
		func(e error) bool { return errors.Is(err, e) })
}

// put makes what is there the table.
func (t *table) put(h *Host, have *found) error {
	c, err := h.writer()
	if err != nil {
		return err
	}
	if t.is(have) {
		del, add := difference(have.elements, t.rules.elements)
		switch {
		case len(del)+len(add) == 0:
			return nil
		case !slow(del, t.rules.elements):
			return change(c, del, add)
		}
	}
	done, err := t.rules.reform(h.writer, have)
	if !done || err != nil {
		err = t.rules.send(c, tableName)
	}
	if err != nil {
		return err
	}
	now, err := h.read(h.ns)
	if err != nil { // the kernel has taken it all the same
		h.log.Debug("the nftables table cannot be read", zap.Error(err))
		return nil
	}
	if t.told = nil; !t.is(now) && now != nil {
		t.told = now.lines
	}
	return nil
}

// setPlain sends the difference to what went by kernel paths so far. If the kernel does not have what it should have, the whole is
// put right.
func (h *Host) setPlain(p Plaintext) error {
	f := h.table.filters
	f.port, f.devices = p.VXLANPort, p.Devices
	if f.same(h.table.filters) {
		if h.table.refused != nil {
			return h.table.refused
		}
		want := f.table(h.table.use, p.elements())
		del, add := difference(h.table.rules.elements, want.elements)
		if len(del)+len(add) == 0 || !slow(del, want.elements) && h.change(del, add) == nil {
			h.table.rules, h.table.kept = want, false
			return nil
		}
	}
	have, plain := h.look()
	h.inspect(have)
	if err := h.putBest(f, p, have, plain, false); err != nil {
		return fmt.Errorf("changing what may go by kernel paths: %w", err)
	}
	return h.table.refused
}

// slow says whether it takes longer to delete elements than to make the whole table anew: the kernel compares each of them with those
// of its set that stay, which takes some microseconds.
func slow(del, rest contents) bool {
	const most = 200_000 // comparisons, as of three peers of 500, or fifty of 100
	n := 0
	for set, elements := range del {
		n += len(elements) * (len(elements) + len(rest[set]))
	}
	return n > most
}

func (h *Host) change(del, add contents) error {
	c, err := h.writer()
	if err != nil {
		return err
	}
	return change(c, del, add)
}

// damage says what somebody has changed of the table, and that it will be put right.
func (t *table) damage(have *found) (lines []string) {
	const whose = "nftables table inet " + tableName
	switch {
	case have == nil:
		return []string{whose + " was removed by somebody; made again"}
	case !t.is(have):
		return []string{whose + " was changed by somebody; made again"}
	}
	del, add := difference(have.elements, t.rules.elements)
	for _, set := range slices.Sorted(maps.Keys(have.elements)) {
		if lost, strange := len(add[set]), len(del[set]); lost+strange > 0 {
			lines = append(lines, fmt.Sprintf("set %s of %s was changed by somebody: %d elements lost, %d added; put right", set, whose, lost, strange))
		}
	}
	return lines
}

// difference returns what is to be deleted from and added to sets.
func difference[T any](have map[string]map[element]T, want contents) (del, add contents) {
	del, add = contents{}, contents{}
	for set, elements := range have {
		for e := range elements {
			if !want[set][e] {
				del.add(set, e)
			}
		}
	}
	for set, elements := range want {
		for e := range elements {
			if _, ok := have[set][e]; !ok {
				add.add(set, e)
			}
		}
	}
	return del, add
}
