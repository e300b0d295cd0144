// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// The file is a checksum (CRC-32C, 4 bytes) and one item of CBOR: a file. Addresses are 4 or 16 bytes; policies are named by their place, from 1, in
// Policies, and verdicts by their place, from 0, in Verdicts.

const fileVersion = 1

var errFile = errors.New("malformed")

type file struct {
	Version  uint8       `cbor:"1,keyasint"`
	Boot     string      `cbor:"2,keyasint"`
	Policies []fileKey   `cbor:"3,keyasint"`
	Tables   []fileTable `cbor:"4,keyasint"`
	Sides    []fileSide  `cbor:"5,keyasint"`
	Addrs    []fileAddr  `cbor:"6,keyasint"`
	Blocks   []fileBlock `cbor:"7,keyasint"`
	Locals   []fileLocal `cbor:"8,keyasint"`
	Selves   []fileAddr  `cbor:"9,keyasint"`

	Verdicts []fileVerdict `cbor:"10,keyasint"`

	Spaces []fileSpace `cbor:"11,keyasint,omitempty"`
}

type fileKey struct {
	_         struct{} `cbor:",toarray"`
	Kind      uint8
	Namespace string
	Name      string
}

type fileVerdict struct {
	_         struct{} `cbor:",toarray"`
	Allow     bool
	Reason    uint8
	Policy    uint32 // 0: none
	Rule      uint32
	Isolating []uint32
}

type fileCell struct {
	_           struct{} `cbor:",toarray"`
	Identity    uint32
	Protocol    uint8
	First, Last uint16
	Verdict     uint32
}

type fileTable struct {
	_       struct{} `cbor:",toarray"`
	ID      uint64
	Default uint32
	Cells   []fileCell
}

type fileSide struct {
	_         struct{} `cbor:",toarray"`
	Addr      []byte
	Direction uint8
	Table     uint64
}

type fileAddr struct {
	_        struct{} `cbor:",toarray"`
	Addr     []byte
	Identity uint32
}

type fileBlock struct {
	_        struct{} `cbor:",toarray"`
	Addr     []byte
	Bits     uint8
	Identity uint32
}

type fileLocal struct {
	_         struct{} `cbor:",toarray"`
	Namespace string
	Name      string
	ID        string
	Labels    map[string]string
	Ports     []filePort
}

// fileSpace is a namespace with its labels.
type fileSpace struct {
	_      struct{} `cbor:",toarray"`
	Name   string
	Labels map[string]string
}

type filePort struct {
	_        struct{} `cbor:",toarray"`
	Name     string
	Protocol uint8
	Port     uint16
}

// takeDown makes a file of what is to be kept.
func takeDown(boot string, s saved) *file {
	f := &file{Version: fileVersion, Boot: boot}
	places := map[policy.PolicyKey]uint32{}
	place := func(k policy.PolicyKey) uint32 {
		if k == (policy.PolicyKey{}) {
			return 0
		}
		at, ok := places[k]
		if !ok {
			f.Policies = append(f.Policies, fileKey{Kind: uint8(k.Kind), Namespace: k.Namespace, Name: k.Name.Name})
			at = uint32(len(f.Policies))
			places[k] = at
		}
		return at
	}
	verdicts := map[compile.Verdict]uint32{}
	verdict := func(v compile.Verdict) uint32 {
		at, ok := verdicts[v]
		if !ok {
			out := fileVerdict{Allow: v.Allow, Reason: uint8(v.By.Reason), Policy: place(v.By.Policy), Rule: uint32(v.By.Rule)}
			for _, k := range v.By.Isolating {
				out.Isolating = append(out.Isolating, place(k))
			}
			at = uint32(len(f.Verdicts))
			f.Verdicts, verdicts[v] = append(f.Verdicts, out), at
		}
		return at
	}
	for _, t := range s.state.Tables {
		ft := fileTable{ID: uint64(t.ID), Default: verdict(t.Default), Cells: make([]fileCell, 0, len(t.Cells))}
		for c, v := range t.Cells {
			ft.Cells = append(ft.Cells, fileCell{Identity: uint32(c.Identity), Protocol: uint8(c.Protocol), First: c.First, Last: c.Last, Verdict: verdict(v)})
		}
		f.Tables = append(f.Tables, ft)
	}
	for side, t := range s.state.Sides {
		f.Sides = append(f.Sides, fileSide{Addr: side.Addr.AsSlice(), Direction: uint8(side.Direction), Table: uint64(t)})
	}
	f.Addrs, f.Selves = fileAddrs(s.state.Identities), fileAddrs(s.state.Selves)
	for p, id := range s.state.Blocks {
		f.Blocks = append(f.Blocks, fileBlock{Addr: p.Addr().AsSlice(), Bits: uint8(p.Bits()), Identity: uint32(id)})
	}
	for _, l := range s.locals {
		fl := fileLocal{Namespace: l.Namespace, Name: l.Name.Name, ID: l.ID, Labels: l.Labels}
		for _, p := range l.Ports {
			fl.Ports = append(fl.Ports, filePort{Name: p.Name, Protocol: uint8(p.Protocol), Port: p.Port})
		}
		f.Locals = append(f.Locals, fl)
	}
	for _, name := range slices.Sorted(maps.Keys(s.spaces)) {
		f.Spaces = append(f.Spaces, fileSpace{Name: name, Labels: s.spaces[name]})
	}
	return f
}

func fileAddrs(of map[netip.Addr]compile.Identity) (list []fileAddr) {
	for a, id := range of {
		list = append(list, fileAddr{Addr: a.AsSlice(), Identity: uint32(id)})
	}
	return list
}

func (f *file) encode() ([]byte, error) {
	b, err := cbor.Marshal(f)
	if err != nil {
		return nil, err
	}
	return append(sum(b), b...), nil
}

// decode reads a file. What it allocates is proportional to b, and what it returns is sound: sides lead to tables, and what is masked is.
func decode(b []byte) (boot string, s saved, err error) {
	if len(b) < 4 || len(b) > maxFile || !bytes.Equal(b[:4], sum(b[4:])) {
		return "", saved{}, fmt.Errorf("it is damaged: %w", errFile)
	}
	mode, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxNestedLevels: 8, MaxArrayElements: 1 << 22, MaxMapPairs: 1 << 20,
		IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden, UTF8: cbor.UTF8RejectInvalid,
	}.DecMode()
	if err != nil {
		return "", saved{}, err
	}
	var f file
	if err := mode.Unmarshal(b[4:], &f); err != nil {
		return "", saved{}, fmt.Errorf("it cannot be read: %w", err)
	}
	if f.Version != fileVersion {
		return "", saved{}, fmt.Errorf("it is of version %d, and this is %d: %w", f.Version, fileVersion, errFile)
	}
	r := reader{policies: make([]policy.PolicyKey, 0, len(f.Policies))}
	for _, k := range f.Policies {
		r.check(k.Kind <= uint8(policy.Network))
		r.policies = append(r.policies, policy.PolicyKey{Kind: policy.Tier(k.Kind), Name: policy.Name{Namespace: k.Namespace, Name: k.Name}})
	}
	for _, v := range f.Verdicts {
		r.verdicts = append(r.verdicts, r.verdict(v))
	}
	s = saved{state: r.state(&f), locals: r.locals(f.Locals)}
	for _, n := range f.Spaces {
		if s.spaces == nil {
			s.spaces = map[string]map[string]string{}
		}
		s.spaces[n.Name] = n.Labels
	}
	if r.bad {
		return "", saved{}, fmt.Errorf("it makes no sense: %w", errFile)
	}
	return f.Boot, s, nil
}

// reader makes sense of a file. It goes on after the first thing that makes none.
type reader struct {
	policies []policy.PolicyKey
	verdicts []compile.Verdict
	bad      bool
}

func (r *reader) check(ok bool) { r.bad = r.bad || !ok }

func (r *reader) state(f *file) *compile.State {
	s := compile.NewState()
	for _, ft := range f.Tables {
		t := &compile.Table{ID: compile.TableID(ft.ID), Default: r.at(ft.Default), Cells: make(map[compile.Cell]compile.Verdict, len(ft.Cells))}
		for _, c := range ft.Cells {
			r.check(c.First <= c.Last && (c.Protocol != 0 || c.Last == 0))
			cell := compile.Cell{Identity: compile.Identity(c.Identity), Protocol: policy.Protocol(c.Protocol), First: c.First, Last: c.Last}
			t.Cells[cell] = r.at(c.Verdict)
		}
		s.Tables[t.ID] = t
	}
	for _, side := range f.Sides {
		r.check(s.Tables[compile.TableID(side.Table)] != nil && side.Direction <= uint8(policy.Egress))
		s.Sides[compile.Side{Addr: r.addr(side.Addr), Direction: policy.Direction(side.Direction)}] = compile.TableID(side.Table)
	}
	for _, a := range f.Addrs {
		s.Identities[r.addr(a.Addr)] = compile.Identity(a.Identity)
	}
	for _, a := range f.Selves {
		s.Selves[r.addr(a.Addr)] = compile.Identity(a.Identity)
	}
	for _, b := range f.Blocks {
		p := netip.PrefixFrom(r.addr(b.Addr), int(b.Bits))
		r.check(p.IsValid() && p == p.Masked())
		s.Blocks[p] = compile.Identity(b.Identity)
	}
	for _, t := range s.Tables {
		for c := range t.Cells { // World has none of those
			r.check(c.Identity != compile.World || c.Protocol != 0)
		}
	}
	r.check(len(s.Tables) == len(f.Tables) && len(s.Sides) == len(f.Sides) && len(s.Identities) == len(f.Addrs) && len(s.Blocks) == len(f.Blocks) &&
		len(s.Selves) == len(f.Selves))
	return s
}

func (r *reader) addr(b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	r.check(ok && !a.Is4In6())
	return a
}

func (r *reader) key(place uint32) policy.PolicyKey {
	if place == 0 || int64(place) > int64(len(r.policies)) {
		r.check(place == 0)
		return policy.PolicyKey{}
	}
	return r.policies[place-1]
}

func (r *reader) verdict(v fileVerdict) compile.Verdict {
	r.check(v.Reason <= uint8(policy.Beyond) && v.Rule <= 1<<20)
	by := &policy.Verdict{Allowed: v.Allow, Reason: policy.Reason(v.Reason), Policy: r.key(v.Policy), Rule: int(v.Rule)}
	for _, place := range v.Isolating {
		by.Isolating = append(by.Isolating, r.key(place))
	}
	return compile.Verdict{Allow: v.Allow, By: by}
}

// at returns the verdict of a place.
func (r *reader) at(place uint32) compile.Verdict {
	if int64(place) >= int64(len(r.verdicts)) {
		r.bad = true
		return compile.Verdict{By: &policy.Verdict{}}
	}
	return r.verdicts[place]
}

func (r *reader) locals(list []fileLocal) (locals []policy.Endpoint) {
	for _, l := range list {
		e := policy.Endpoint{Name: policy.Name{Namespace: l.Namespace, Name: l.Name}, ID: l.ID, Labels: l.Labels}
		for _, p := range l.Ports {
			e.Ports = append(e.Ports, policy.NamedPort{Name: p.Name, Protocol: policy.Protocol(p.Protocol), Port: p.Port})
		}
		locals = append(locals, e)
	}
	return locals
}
