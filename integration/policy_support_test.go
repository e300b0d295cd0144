// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
	"github.com/weftnet/weft/policy"
)

// policyList is what the tests read of `weft policy list --json`.
type policyList struct {
	Policies []struct {
		Kind      string   `json:"kind"`
		Namespace string   `json:"namespace"`
		Name      string   `json:"name"`
		Allowed   uint64   `json:"allowed"`
		Denied    uint64   `json:"denied"`
		Problems  []string `json:"problems"`
	} `json:"policies"`
	Awaits  string `json:"awaits"`
	Failure string `json:"failure"`
	Pending bool   `json:"pending"`
}

// names are those of all policies.
func (l policyList) names() (out []string) {
	for _, p := range l.Policies {
		out = append(out, strings.TrimPrefix(p.Namespace+"/"+p.Name, "/"))
	}
	return out
}

// whyAnswer is what the tests read of `weft policy why --json`.
type whyAnswer struct {
	Allowed     bool `json:"allowed"`
	Connections []struct {
		Allowed bool   `json:"allowed"`
		Egress  whyEnd `json:"egress"`
		Ingress whyEnd `json:"ingress"`
	} `json:"connections"`
}

type whyEnd struct {
	Allowed bool   `json:"allowed"`
	Decided string `json:"decided"`
	Rule    *struct {
		Policy string `json:"policy"`
		Number int    `json:"number"`
	} `json:"rule"`
	Isolated []string `json:"isolated"`
}

// String is what has decided.
func (e whyEnd) String() string {
	switch {
	case e.Rule != nil:
		return fmt.Sprintf("%v by %s, rule %d", e.Allowed, e.Rule.Policy, e.Rule.Number)
	case len(e.Isolated) > 0:
		return fmt.Sprintf("%v by isolation: %s", e.Allowed, strings.Join(e.Isolated, ", "))
	}
	return fmt.Sprintf("%v by none", e.Allowed)
}

// verdictWords is what whyEnd.String is of a verdict.
func verdictWords(v policy.Verdict) string {
	switch v.Reason {
	case policy.ByRule:
		return fmt.Sprintf("%v by %s, rule %d", v.Allowed, v.Policy, v.Rule+1)
	case policy.Isolated:
		var all []string
		for _, k := range v.Isolating {
			all = append(all, k.String())
		}
		return fmt.Sprintf("%v by isolation: %s", v.Allowed, strings.Join(all, ", "))
	}
	return fmt.Sprintf("%v by none", v.Allowed)
}

// enforces tells whether a host has in force what it knows of policies, and these are exactly those, as NAMESPACE/NAME or NAME.
func enforces(h *lab.Host, want ...string) error {
	var l policyList
	if err := h.Query(&l, "policy", "list"); err != nil {
		return err
	}
	got := l.names()
	slices.Sort(got)
	slices.Sort(want)
	switch {
	case l.Pending || l.Awaits != "" || l.Failure != "":
		return fmt.Errorf("%s: pending %v, awaits %q, failure %q", h.Name(), l.Pending, l.Awaits, l.Failure)
	case !slices.Equal(got, want):
		return fmt.Errorf("%s has the policies %q, not %q", h.Name(), got, want)
	}
	for _, p := range l.Policies {
		if len(p.Problems) > 0 {
			return fmt.Errorf("%s: %s/%s has problems: %q", h.Name(), p.Namespace, p.Name, p.Problems)
		}
	}
	return nil
}

// inForce waits until the hosts have in force exactly those policies.
func inForce(t *testing.T, hosts []*lab.Host, names ...string) {
	t.Helper()
	for _, h := range hosts {
		eventually(t, patience, func() error { return enforces(h, names...) })
	}
}

// enact makes a text of manifests, applied on the first of the hosts, and nothing else what is in force on all of them. It names the policies in the text, and returns
// the names of all that there are then: those, and one that selects nobody, by which a host tells that it knows the rest.
func enact(t *testing.T, hosts []*lab.Host, text string, names ...string) []string {
	t.Helper()
	h := hosts[0]
	var before policyList
	if err := h.Query(&before, "policy", "list"); err != nil {
		t.Fatal(err)
	}
	for _, p := range before.Policies {
		if slices.Contains(names, strings.TrimPrefix(p.Namespace+"/"+p.Name, "/")) {
			continue
		}
		args := []string{"policy", "delete", p.Kind + "/" + p.Name}
		if p.Namespace != "" {
			args = append(args, "-n", p.Namespace)
		}
		done(t, h.Weft(args...))
	}
	marker := fmt.Sprint("marker-", time.Now().UnixNano())
	text += manifests(t, keys{
		"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": keys{"name": marker, "namespace": "nobody"}, "spec": keys{"podSelector": keys{}},
	})
	done(t, h.Weft("policy", "apply", "-f", h.File("policies.yaml", text, 0o600)))
	names = append(slices.Clone(names), "nobody/"+marker)
	inForce(t, hosts, names...)
	return names
}

// labelled waits until the hosts know a workload by those labels.
func labelled(t *testing.T, hosts []*lab.Host, name policy.Name, labels map[string]string) {
	t.Helper()
	for _, h := range hosts {
		eventually(t, patience, func() error {
			var shown struct {
				Workloads []struct {
					Labels map[string]string `json:"labels"`
				} `json:"workloads"`
			}
			if err := h.Query(&shown, "policy", "show", name.String()); err != nil {
				return err
			}
			if len(shown.Workloads) != 1 || fmt.Sprint(shown.Workloads[0].Labels) != fmt.Sprint(labels) {
				return fmt.Errorf("%s has %v as %+v, not with %v", h.Name(), name, shown.Workloads, labels)
			}
			return nil
		})
	}
}

// hostsOf makes n hosts on one switch whose daemons form a mesh.
func hostsOf(t *testing.T, n int, flags ...string) (*lab.Net, []*lab.Host) {
	t.Helper()
	m := lab.Mesh(t, n, lab.PerHost(0), lab.Flags(flags...))
	return m, m.Hosts()
}

// ownAddrs returns the host's own addresses on the mesh.
func ownAddrs(t *testing.T, h *lab.Host) []netip.Addr {
	t.Helper()
	return ask[status](t, h, "status").Addresses
}

// expect is a connection and whether it should come to be.
type expect struct {
	policy.Connection
	allowed bool
}

// all tries connections, many at a time, and returns what is not as it should be.
func (w *town) all(tries []expect) error {
	var mu sync.Mutex
	var wrong []error
	var trying sync.WaitGroup
	slots := make(chan struct{}, 48)
	for _, x := range tries {
		trying.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			within := silence
			if x.allowed {
				within = patience
			}
			got, err := w.reaches(x.Connection, within)
			if err == nil && got != x.allowed {
				err = fmt.Errorf("it comes to be: %v", got)
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				wrong = append(wrong, fmt.Errorf("%v to %v, %v %d, allowed %v: %w", x.Src, x.Dst, x.Protocol, x.Port, x.allowed, err))
			}
		})
	}
	trying.Wait()
	return errors.Join(wrong...)
}
