// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"hash/maphash"
	"maps"
	"reflect"
	"slices"

	"github.com/weftnet/weft/policy"
)

// A space is a namespace that endpoints are in.
type space struct {
	name   string
	labels map[string]string
	refs   int  // label sets
	stale  bool // its labels have changed since the last commit
}

// A labelSet stands for all endpoints of one namespace that have the same labels: selectors are tried once for all of them.
type labelSet struct {
	space  *space
	labels map[string]string
	ports  []policy.NamedPort // of one of the endpoints, for others that have the same
	next   *labelSet          // another one of the same hash
	refs   int                // endpoints
	peers  []uint32           // the peers in use that they are, sorted
	fresh  bool               // peers has never been worked out
	moved  bool               // peers has changed in this commit
}

// fits says whether the endpoints are what a selector pair means in a policy of namespace home.
func (s *labelSet) fits(home string, namespaces, pods *policy.Selector) bool {
	if namespaces == nil {
		if s.space.name != home {
			return false
		}
	} else if !namespaces.Fits(s.space.labels) {
		return false
	}
	return pods == nil || pods.Fits(s.labels)
}

// A pair is a label, in the namespace home, or with home empty in any. For labels of namespaces it is empty.
type pair struct{ home, key, value string }

// labelSets are all label sets there are.
type labelSets struct {
	seed   maphash.Seed
	byHash map[uint64]*labelSet
	byMap  map[mapKey]*labelSet
	spaces map[string]*space
	fresh  []*labelSet // since the last commit
}

// A mapKey tells a set by the map that all its endpoints have as their labels.
type mapKey struct {
	namespace string
	labels    uintptr
}

func keyOf(namespace string, labels map[string]string) mapKey {
	return mapKey{namespace, reflect.ValueOf(labels).Pointer()}
}

// of returns the set of an endpoint that is in the world.
func (l *labelSets) of(e policy.Endpoint) *labelSet { return l.byMap[keyOf(e.Namespace, e.Labels)] }

// intern returns the set for these labels, with a reference to it.
func (l *labelSets) intern(w *policy.World, namespace string, labels map[string]string) *labelSet {
	h := maphash.String(l.seed, namespace)
	for k, v := range labels {
		h += maphash.Comparable(l.seed, pair{key: k, value: v})
	}
	for s := l.byHash[h]; s != nil; s = s.next {
		if s.space.name == namespace && maps.Equal(s.labels, labels) {
			s.refs++
			return s
		}
	}
	sp := l.spaces[namespace]
	if sp == nil {
		sp = &space{name: namespace, labels: w.NamespaceLabels(namespace)}
		l.spaces[namespace] = sp
	}
	sp.refs++
	s := &labelSet{space: sp, labels: labels, next: l.byHash[h], refs: 1, fresh: true}
	l.byHash[h] = s
	l.byMap[keyOf(namespace, labels)] = s
	l.fresh = append(l.fresh, s)
	return s
}

// release gives a reference back.
func (l *labelSets) release(s *labelSet) {
	if s.refs--; s.refs > 0 {
		return
	}
	delete(l.byMap, keyOf(s.space.name, s.labels))
	h := maphash.String(l.seed, s.space.name)
	for k, v := range s.labels {
		h += maphash.Comparable(l.seed, pair{key: k, value: v})
	}
	if l.byHash[h] == s {
		if s.next == nil {
			delete(l.byHash, h)
		} else {
			l.byHash[h] = s.next
		}
	} else {
		for at := l.byHash[h]; at != nil; at = at.next {
			if at.next == s {
				at.next = s.next
			}
		}
	}
	if s.space.refs--; s.space.refs == 0 {
		delete(l.spaces, s.space.name)
	}
}

// all calls f for every set.
func (l *labelSets) all(f func(*labelSet)) {
	for _, s := range l.byHash {
		for ; s != nil; s = s.next {
			f(s)
		}
	}
}

// An index finds the selectors that may fit a set without trying them all: each is filed under one of the labels that it asks for.
type index struct {
	pods   map[pair][]*peer   // a label that it asks of the endpoint
	spaces map[pair][]*peer   // else one that it asks of the namespace
	homes  map[string][]*peer // else the namespace that it is about
	rest   []*peer
}

// newIndex returns one of these peers.
func newIndex(peers []*peer) index {
	x := index{pods: map[pair][]*peer{}, spaces: map[pair][]*peer{}, homes: map[string][]*peer{}}
	for _, p := range peers {
		x.add(p)
	}
	return x
}

// add files p.
func (x *index) add(p *peer) {
	file := func(m map[pair][]*peer, home string, s *policy.Selector) bool {
		r := asked(s)
		if r == nil {
			return false
		}
		for i, v := range r.Values {
			if !slices.Contains(r.Values[:i], v) {
				k := pair{home, r.Key, v}
				m[k] = append(m[k], p)
			}
		}
		return true
	}
	home := ""
	if p.namespaces == nil {
		home = p.home
	}
	switch {
	case file(x.pods, home, p.pods):
	case p.namespaces == nil:
		x.homes[p.home] = append(x.homes[p.home], p)
	case !file(x.spaces, "", p.namespaces):
		x.rest = append(x.rest, p)
	}
}

// asked returns the requirement that asks for one of the fewest values of a label, nil if there is none.
func asked(s *policy.Selector) *policy.Requirement {
	if s == nil {
		return nil
	}
	var best *policy.Requirement
	for i := range *s {
		if r := &(*s)[i]; r.Operator == policy.In && len(r.Values) <= 64 && (best == nil || len(r.Values) < len(best.Values)) {
			best = r
		}
	}
	return best
}

// match returns the peers that the endpoints of s are, sorted, appended to to.
func (x *index) match(s *labelSet, to []uint32) []uint32 {
	from := len(to)
	try := func(peers []*peer) {
		for _, p := range peers {
			if s.fits(p.home, p.namespaces, p.pods) {
				to = append(to, p.id)
			}
		}
	}
	if len(x.pods) > 0 {
		for k, v := range s.labels {
			try(x.pods[pair{s.space.name, k, v}])
			try(x.pods[pair{"", k, v}])
		}
	}
	if len(x.spaces) > 0 {
		for k, v := range s.space.labels {
			try(x.spaces[pair{"", k, v}])
		}
	}
	try(x.homes[s.space.name])
	try(x.rest)
	slices.Sort(to[from:])
	return to
}
