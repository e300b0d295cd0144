// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"maps"
	"slices"

	"github.com/weftnet/weft/policy"
)

// spaces is what a directory knows of namespaces where a source tells all of them, beside the endpoints: the one may come before the other. An endpoint
// whose namespace is not known would be taken for one whose namespace has no labels, which is what some selectors ask for and others do not find; it is
// held back until it is.
type spaces struct {
	all     bool // the source tells all; otherwise nothing is held back, and nothing kept
	settled bool // it has told all that there were
	told    map[string]bool
	gone    map[string]bool                 // not told any more, while there are endpoints: these keep the labels
	held    map[string]map[policy.Name]bool // endpoints that wait for their namespace
	within  map[string]int                  // how many endpoints the world has
	earlier map[string]map[string]string    // labels that an earlier run has kept, until what there is was told
}

func newSpaces() spaces {
	return spaces{told: map[string]bool{}, gone: map[string]bool{}, held: map[string]map[policy.Name]bool{}, within: map[string]int{}}
}

// tellNamespace takes what the source says of a namespace; nil: there is none of that name any more.
func (d *directory) tellNamespace(name string, n *policy.Namespace) {
	s := &d.spaces
	switch {
	case n != nil:
		s.told[name] = true
		delete(s.gone, name)
		d.to.SetNamespace(*n)
		for held := range maps.Clone(s.held[name]) {
			d.refresh(held)
		}
	case s.all && s.within[name] > 0:
		delete(s.told, name)
		s.gone[name] = true
	default:
		delete(s.told, name)
		d.to.DeleteNamespace(name)
	}
}

// placed tells whether the labels of a namespace are known, as far as they will be.
func (s *spaces) placed(name string) bool {
	return !s.all || !s.settled || s.told[name] || s.gone[name]
}

// hold takes down whether an endpoint waits for its namespace, and returns that.
func (s *spaces) hold(name policy.Name, waits bool) bool {
	held := s.held[name.Namespace]
	switch {
	case waits && held == nil:
		s.held[name.Namespace] = map[policy.Name]bool{name: true}
	case waits:
		held[name] = true
	default:
		if delete(held, name); len(held) == 0 {
			delete(s.held, name.Namespace)
		}
	}
	return waits
}

// emptied lets go of a namespace that is gone, if it has no endpoint any more.
func (d *directory) emptied(name string) {
	if d.spaces.within[name] > 0 {
		return
	}
	delete(d.spaces.within, name)
	if d.spaces.gone[name] {
		delete(d.spaces.gone, name)
		d.to.DeleteNamespace(name)
	}
}

// settleSpaces takes the namespaces that were told for all that there are. What is attached here is judged whether or not there is one.
func (d *directory) settleSpaces() {
	s := &d.spaces
	s.settled = true
	if !s.all {
		return
	}
	for _, b := range d.locals {
		if b.old && !s.told[b.Namespace] && !s.gone[b.Namespace] {
			s.gone[b.Namespace] = true
			if labels, ok := s.earlier[b.Namespace]; ok {
				d.to.SetNamespace(policy.Namespace{Name: b.Namespace, Labels: labels})
			}
		}
	}
	s.earlier = nil
	var held []policy.Name
	for e := range d.world.Endpoints() {
		if !s.placed(e.Namespace) {
			held = append(held, e.Name)
		}
	}
	for name := range d.named {
		if !s.placed(name.Namespace) {
			held = append(held, name)
		}
	}
	slices.SortFunc(held, policy.Name.Compare)
	for _, name := range slices.Compact(held) {
		d.recollect(name)
		d.refresh(name)
	}
}

// spacesInUse are the labels of namespaces of what is attached here: one that is gone keeps them, over restarts too.
func (d *directory) spacesInUse() map[string]map[string]string {
	if !d.spaces.all {
		return nil
	}
	labels := map[string]map[string]string{}
	for _, b := range d.locals {
		labels[b.Namespace] = d.world.NamespaceLabels(b.Namespace)
	}
	return labels
}
