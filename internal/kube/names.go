// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"iter"

	"github.com/weftnet/weft/policy"
)

// names is a set of names. There may be tens of thousands in a few namespaces, which are kept once.
type names struct {
	in    map[string]map[string]struct{}
	count int
}

func newNames() *names { return &names{in: map[string]map[string]struct{}{}} }

func (s *names) add(n policy.Name) {
	of := s.in[n.Namespace]
	if of == nil {
		of = map[string]struct{}{}
		s.in[n.Namespace] = of
	}
	before := len(of)
	of[n.Name] = struct{}{}
	s.count += len(of) - before
}

func (s *names) remove(n policy.Name) {
	of := s.in[n.Namespace]
	before := len(of)
	delete(of, n.Name)
	s.count -= before - len(of)
	if len(of) == 0 {
		delete(s.in, n.Namespace)
	}
}

func (s *names) has(n policy.Name) bool {
	_, is := s.in[n.Namespace][n.Name]
	return is
}

// all are the names, in no order.
func (s *names) all() iter.Seq[policy.Name] {
	return func(yield func(policy.Name) bool) {
		for namespace, of := range s.in {
			for name := range of {
				if !yield(policy.Name{Namespace: namespace, Name: name}) {
					return
				}
			}
		}
	}
}
