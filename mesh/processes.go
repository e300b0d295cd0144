// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"iter"
	"net/netip"
	"slices"
	"time"
)

// processes are those of one node, hardly ever more than one.
type processes struct {
	first process    // boot is 0 if there is none
	rest  *[]process // nil: there are no others
}

type process struct {
	boot uint64 // not 0
	addr netip.AddrPort
}

// all yields the processes in the order in which they came.
func (ps *processes) all() iter.Seq[process] {
	return func(yield func(process) bool) {
		if ps.first.boot == 0 || !yield(ps.first) || ps.rest == nil {
			return
		}
		for _, p := range *ps.rest {
			if !yield(p) {
				return
			}
		}
	}
}

func (ps *processes) len() int {
	switch {
	case ps.first.boot == 0:
		return 0
	case ps.rest == nil:
		return 1
	}
	return 1 + len(*ps.rest)
}

func (ps *processes) has(boot uint64) bool {
	return ps.at(boot) != nil
}

// at returns a process, nil if there is no such one.
func (ps *processes) at(boot uint64) *process {
	switch {
	case boot == 0:
		return nil
	case ps.first.boot == boot:
		return &ps.first
	case ps.rest != nil:
		if i := slices.IndexFunc(*ps.rest, func(p process) bool { return p.boot == boot }); i >= 0 {
			return &(*ps.rest)[i]
		}
	}
	return nil
}

// addr returns where a process is; not valid if there is no such process.
func (ps *processes) addr(boot uint64) netip.AddrPort {
	if p := ps.at(boot); p != nil {
		return p.addr
	}
	return netip.AddrPort{}
}

func (ps *processes) set(boot uint64, addr netip.AddrPort) {
	switch p := ps.at(boot); {
	case p != nil:
		p.addr = addr
	case ps.first.boot == 0:
		ps.first = process{boot, addr}
	case ps.rest == nil:
		ps.rest = &[]process{{boot, addr}}
	default:
		*ps.rest = append(*ps.rest, process{boot, addr})
	}
}

func (ps *processes) remove(boot uint64) {
	all := slices.DeleteFunc(slices.Collect(ps.all()), func(p process) bool { return p.boot == boot })
	*ps = processes{}
	for _, p := range all {
		ps.set(p.boot, p.addr)
	}
}

// moment is a time in nanoseconds since the mesh was made, a third of the size of a time.Time. 0: never.
type moment int64

// momentOf returns t, and never 0.
func (m *Mesh) momentOf(t time.Time) moment { return momentSince(m.started, t) }

func momentSince(began, t time.Time) moment {
	if d := t.Sub(began); d != 0 {
		return moment(d)
	}
	return 1
}

// time returns the moment as a time to compare others with; the zero one: never. What the clock shows at that time it does not tell, if
// the clock was set since the mesh was made.
func (at moment) time(began time.Time) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return began.Add(time.Duration(at))
}
