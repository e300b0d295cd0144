// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/policy"
)

// maxTold is how many problems of one policy are told by Events.
const maxTold = 4

// found is what was found in a policy that could not be understood.
type found struct {
	policy     policy.PolicyKey
	uid        string
	generation int64
	problems   []string // none: there are none any more
}

// problems are the policies that could not be understood, until they were told of or others tell of them. It is safe for concurrent use.
type problems struct {
	mu   sync.Mutex
	all  map[policy.PolicyKey]found
	open map[policy.PolicyKey]bool // nobody has decided yet who tells of them
}

func newProblems() *problems {
	return &problems{all: map[policy.PolicyKey]found{}, open: map[policy.PolicyKey]bool{}}
}

// note takes what was found, which is to be told once for each generation of an object.
func (p *problems) note(n found) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, is := p.all[n.policy]
	switch {
	case len(n.problems) == 0:
		delete(p.all, n.policy)
		delete(p.open, n.policy)
	case !is || before.uid != n.uid || before.generation != n.generation || !slices.Equal(before.problems, n.problems):
		p.all[n.policy], p.open[n.policy] = n, true
	}
}

// take returns those of which self is to tell, and leaves the others to the nodes that rank before it.
func (p *problems) take(self string, nodes map[string]machine) (mine []found) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.open) == 0 {
		return nil
	}
	var others []string
	for name, m := range nodes {
		if name != self && m.ready {
			others = append(others, name)
		}
	}
	for key := range p.open {
		if rank(self, fmt.Sprint("problems of ", key.Kind, key.Namespace, "/", key.Name.Name), others) == 0 {
			mine = append(mine, p.all[key])
		}
	}
	clear(p.open)
	return mine
}

// onPolicy tells what could not be understood in a policy.
func (r *recorder) onPolicy(f found) {
	about := objectReference{Kind: "NetworkPolicy", APIVersion: "networking.k8s.io/v1", Namespace: f.policy.Namespace, Name: f.policy.Name.Name, UID: types.UID(f.uid)}
	in := about.Namespace
	if f.policy.Kind != policy.Network {
		about.Kind, about.APIVersion, in = "ClusterNetworkPolicy", "policy.networking.k8s.io/"+versionCluster, metav1.NamespaceDefault
	}
	lines := f.problems
	if more := len(lines) - maxTold; more > 0 {
		lines = append(slices.Clone(lines[:maxTold]), fmt.Sprintf("and %d more problems, which weft status names on every node", more))
	}
	for _, line := range lines {
		r.add(about, in, warning, "NotUnderstood", line)
	}
}
