// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"strings"
	"testing"
)

// manyPolicies is a file of n of them, of a usual form.
func manyPolicies(n int) []byte {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p%d, namespace: ns%d}\n"+
			"spec: {podSelector: {matchLabels: {app: a%d}}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {team: t%d}}, "+
			"podSelector: {matchLabels: {app: a%d}}}, {ipBlock: {cidr: 172.16.%d.0/24}}], ports: [{port: %d}, {port: 53, protocol: UDP}]}]}\n", i, i%10, i%5, i%7, i%3, i%256, 1000+i)
	}
	return []byte(b.String())
}

// To read a policy, from a file or from what was kept of it, takes few allocations: most of what it takes to put many in force was that once.
func TestReadingAllocatesLittle(t *testing.T) {
	const n = 500
	text := manyPolicies(n)
	var o Objects
	got := testing.AllocsPerRun(3, func() {
		var err error
		if o, err = Read(text, "default"); err != nil {
			t.Fatal(err)
		}
	})
	if most := 80.0 * n; got > most {
		t.Errorf("reading %d policies allocates %.0f times, more than %.0f", n, got, most)
	}
	p := NewParser()
	got = testing.AllocsPerRun(3, func() {
		for _, s := range o.Sources {
			if _, err := p.NetworkPolicy(s.JSON); err != nil {
				t.Fatal(err)
			}
		}
	})
	if most := 70.0 * n; got > most {
		t.Errorf("reading %d policies of JSON allocates %.0f times, more than %.0f", n, got, most)
	}
	t.Logf("%.1f allocations a policy", got/n)
}

func BenchmarkRead(b *testing.B) {
	text := manyPolicies(10_000)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Read(text, "default"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNetworkPolicy(b *testing.B) {
	o, err := Read(manyPolicies(10_000), "default")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		p := NewParser()
		for _, s := range o.Sources {
			if _, err := p.NetworkPolicy(s.JSON); err != nil {
				b.Fatal(err)
			}
		}
	}
}
