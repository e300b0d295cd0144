// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/policy"
)

const goodFile = `# two policies, and a namespace
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, annotations: {what: ever}, odd: 1}
spec:
  podSelector:
    matchLabels:
      app: db
      since: 2020-01-01
  ingress:
  - from:
    - podSelector: {matchLabels: {app: web}}
    ports:
    - port: 5432
---
---
kind: Namespace
apiVersion: v1
metadata:
  name: shop
  labels: {team: blue}
spec: {finalizers: [kubernetes]}
...
--- # a list
{"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [
  {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "no"},
   "spec": {"tier": "Admin", "priority": 3, "subject": {"namespaces": {}}, "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]}, "status": {"conditions": []}},
  {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "db", "namespace": "shop"}, "spec": {}}
]}
`

func TestRead(t *testing.T) {
	for _, text := range []string{goodFile, strings.ReplaceAll(goodFile, "\n", "\r\n")} {
		o, err := Read([]byte(text), "default")
		if err != nil {
			t.Fatal(err)
		}
		var keys []policy.PolicyKey
		for _, p := range o.Policies {
			keys = append(keys, p.PolicyKey)
			if len(p.Problems) > 0 {
				t.Error(p.Problems)
			}
		}
		want := []policy.PolicyKey{
			{Kind: policy.Network, Name: policy.Name{Namespace: "default", Name: "db"}},
			{Kind: policy.Admin, Name: policy.Name{Name: "no"}},
			{Kind: policy.Network, Name: policy.Name{Namespace: "shop", Name: "db"}},
		}
		if !slices.Equal(keys, want) {
			t.Errorf("read %v", keys)
		}
		if p := o.Policies[0]; len(*p.Pods) != 2 || (*p.Pods)[1].Values[0] != "2020-01-01" || p.Rules[policy.Ingress][0].Ports[0].First != 5432 {
			t.Error(show(p))
		}
		if len(o.Namespaces) != 1 || o.Namespaces[0].Name != "shop" || !maps.Equal(o.Namespaces[0].Labels, map[string]string{"team": "blue", "kubernetes.io/metadata.name": "shop"}) {
			t.Error(o.Namespaces)
		}
	}
	for _, empty := range []string{"", "\n", "---\n---\n", "# nothing\n", "...\n"} {
		if o, err := Read([]byte(empty), "default"); err != nil || len(o.Policies)+len(o.Namespaces) > 0 {
			t.Errorf("%q: %v, %v", empty, o, err)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	const np = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
	const cnp = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\n"
	deep := strings.Repeat("[", 60) + strings.Repeat("]", 60)
	for name, tt := range map[string]struct{ text, want string }{
		"unknown field": {np + "metadata: {name: a}\nspec:\n  ingres: []\n", "line 5 (document 1, NetworkPolicy default/a): spec.ingres: such a field is not known here; is ingress meant?"},
		"several": {
			"\n---\n" + np + "metadata: {name: a}\nspec:\n  ingres: []\n  ingress:\n  - to: []\n  - from:\n    -\n",
			"line 7 (document 2, NetworkPolicy default/a): spec.ingres: such a field is not known here; is ingress meant? (and 2 more)",
		},
		"of another namespace":  {np + "metadata: {name: a, namespace: x}\nspec: {egress: [{to: [{}]}]}\n", "line 4 (document 1, NetworkPolicy x/a): spec.egress[0].to[0]: it says nobody: give it a podSelector, a namespaceSelector, both of them, or an ipBlock"},
		"in a list":             {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod}\n", `line 4 (document 1): items[0]: "Pod" of "v1" is not known here; there are NetworkPolicy (networking.k8s.io/v1), ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2) and Namespace (v1)`},
		"list in a list":        {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List}\n", `line 4 (document 1): items[0]: "List" of "v1" is not known here; there are NetworkPolicy (networking.k8s.io/v1), ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2) and Namespace (v1)`},
		"the predecessor":       {"apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\n", `line 1 (document 1): "AdminNetworkPolicy" of "policy.networking.k8s.io/v1alpha1" is not known here; there are NetworkPolicy (networking.k8s.io/v1), ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2) and Namespace (v1)`},
		"no kind":               {"a: b\n", "line 1 (document 1): it has no kind; there are NetworkPolicy, ClusterNetworkPolicy and Namespace"},
		"no object":             {"- a\n", "line 1 (document 1): it must be an object with apiVersion and kind, and is a list"},
		"no name":               {np + "spec: {}\n", "line 1 (document 1, NetworkPolicy default/): metadata.name: it is missing"},
		"odd name":              {np + "metadata: {name: A_b}\n", `line 3 (document 1, NetworkPolicy default/A_b): metadata.name: "A_b" is no name that an object can have: that is small letters, digits, and -. between them`},
		"name that is a number": {np + "metadata: {name: 7}\n", `line 3 (document 1, NetworkPolicy default/): metadata.name: it must be a text, and is a number: put "7" in quotes`},
		"odd namespace":         {np + "metadata: {name: a, namespace: a.b}\n", `line 3 (document 1, NetworkPolicy default/a): metadata.namespace: "a.b" is no name that a namespace can have: that is small letters, digits, and - between them`},
		"namespace of none":     {cnp[:len(cnp)-2] + ", namespace: a}\nspec: {tier: Admin, priority: 0, subject: {namespaces: {}}}\n", "line 3 (document 1, ClusterNetworkPolicy c): metadata.namespace: such an object is in no namespace"},
		"no spec":               {cnp, "line 1 (document 1, ClusterNetworkPolicy c): spec: it is missing (and 3 more)"},
		"domain names":          {cnp + "spec: {tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [{action: Accept, to: [{domainNames: [a.example]}]}]}", "line 4 (document 1, ClusterNetworkPolicy c): spec.egress[0].to[0].domainNames: names of domains are not supported; write networks"},
		"long rule name":        {cnp + "spec: {tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [{action: Accept, name: " + strings.Repeat("x", 101) + ", to: [{namespaces: {}}]}]}", "line 4 (document 1, ClusterNetworkPolicy c): spec.egress[0].name: it is longer than 100 bytes"},
		"there twice":           {np + "metadata: {name: a}\n---\n" + np + "metadata: {name: a, namespace: default}\n", "line 5 (document 2, NetworkPolicy default/a): it is there twice: first at line 1"},
		"namespace there twice": {"kind: Namespace\napiVersion: v1\nmetadata: {name: a}\n---\nkind: Namespace\napiVersion: v1\nmetadata: {name: a}\n", "line 5 (document 2, Namespace a): it is there twice: first at line 1"},
		"field there twice":     {np + "metadata: {name: a}\nspec:\n  ingress: [{}]\n  ingress: []\n", "line 6 (document 1, NetworkPolicy default/a): spec.ingress: it is there twice"},
		"label there twice":     {np + "metadata: {name: a}\nspec: {podSelector: {matchLabels: {a: b, a: c}}}\n", `line 4 (document 1, NetworkPolicy default/a): spec.podSelector.matchLabels["a"]: it is there twice`},
		"odd label":             {np + "metadata: {name: a}\nspec: {podSelector: {matchLabels: {a b: c}}}\n", `line 4 (document 1, NetworkPolicy default/a): spec.podSelector.matchLabels["a b"]: "a b" is no key that a label can have`},
		"odd prefix of a label": {np + "metadata: {name: a}\nspec: {podSelector: {matchLabels: {A/b: c}}}\n", `line 4 (document 1, NetworkPolicy default/a): spec.podSelector.matchLabels["A/b"]: "A/b" is no key that a label can have`},
		"odd value of a label":  {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {b: c d}}\n", `line 3 (document 1, Namespace a): metadata.labels["b"]: "c d" is no value that a label can have`},
		"zeros in an address":   {np + "metadata: {name: a}\nspec: {ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]}\n", `line 4 (document 1, NetworkPolicy default/a): spec.ingress[0].from[0].ipBlock.cidr: "010.0.0.0/8" is no CIDR, as 192.0.2.0/24 or 2001:db8::/32 is`},
		"octal":                 {np + "metadata: {name: a}\nspec: {ingress: [{ports: [{port: 0x50}]}]}\n", `line 4 (document 1, NetworkPolicy default/a): spec.ingress[0].ports[0].port: "0x50" is no number from 1 to 65535`},
		"half a port":           {np + "metadata: {name: a}\nspec: {ingress: [{ports: [{port: 80.5}]}]}\n", `line 4 (document 1, NetworkPolicy default/a): spec.ingress[0].ports[0].port: "80.5" is no number from 1 to 65535`},
		"alias":                 {np + "metadata: {name: a}\nspec: {ingress: &x [], egress: *x}\n", "line 4 (document 1, NetworkPolicy default/a): spec.egress: is an alias: write out what it stands for"},
		"merge":                 {np + "metadata: &m {name: a}\nspec: {<<: *m}\n", `line 4 (document 1, NetworkPolicy default/a): spec.<<: such a field is not known here`},
		"tag":                   {np + "metadata: {name: a}\nspec: !mine {}\n", `line 4 (document 1, NetworkPolicy default/a): spec: has a tag that is not known here, "!mine"`},
		"tag of a scalar":       {np + "metadata: {name: a}\nspec: {ingress: !!binary aGk=}\n", `line 4 (document 1, NetworkPolicy default/a): spec.ingress: has a tag that is not known here, "!!binary"`},
		"deep":                  {np + "metadata: {name: a}\nspec: {ingress: [{from: [{podSelector: {matchExpressions: [{values: " + deep + "}]}}]}]}\n", `line 4 (document 1, NetworkPolicy default/a): spec.ingress[0].from[0].podSelector.matchExpressions[0].key: a label's key is missing (and 2 more)`},
		"no YAML":               {"\n---\n{", "line 3 (document 2): this is not YAML: did not find expected node content"},
		"two documents in one":  {"a: b\r---\rc: d\n", "line 1 (document 1): there is a second document in it, without a line --- before it"},
		"directive":             {"%YAML 1.1\n---\na: b\n", "line 1 (document 1): this is not YAML: did not find expected <document start> (and 1 more)"},
		"not UTF-8":             {"\xff\xfea\x00", "line 1 (document 1): the file is not UTF-8"},
		"large document":        {"---\na: " + strings.Repeat("x", MaxDocument) + "\n", fmt.Sprintf("line 1 (document 2): it has %d bytes, and more than %d are not read", MaxDocument+8, MaxDocument)},
		"many values":           {"[" + strings.Repeat("a,", maxParts) + "]", fmt.Sprintf("line 1 (document 1): there may be %d values in it, and more than %d are not read; make several of it", maxParts+1, maxParts)},
		"many documents":        {strings.Repeat("---\n", MaxDocuments), fmt.Sprintf("line 1 (document 1): the file has more than %d documents; make several of it", MaxDocuments)},
		"large file":            {strings.Repeat("\n", MaxFile+1), fmt.Sprintf("line 1 (document 1): the file has %d bytes, and more than %d are not read; make several of it", MaxFile+1, MaxFile)},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := Read([]byte(tt.text), "default")
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("read as %+v, %v", o, err)
			}
			if len(o.Policies)+len(o.Namespaces) > 0 {
				t.Errorf("there is something: %+v", o)
			}
			if err.Error() != tt.want {
				t.Errorf("refused by\n%v\nnot\n%s", err, tt.want)
			}
		})
	}
}

// TestReadIsBounded measures what the files cost at worst.
func TestReadIsBounded(t *testing.T) {
	np := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec:\n"
	fill := func(s string) string {
		return strings.Repeat(s, min((MaxDocument-1000)/len(s), (maxParts-1000)/document{text: []byte(s)}.parts()))
	}
	for name, text := range map[string]string{
		"items":     np + " ingress: [" + fill("0,") + "0]\n",
		"fields":    np + " {" + fill("a,") + "a}\n",
		"lists":     np + " ingress: " + fill("["),
		"ports":     np + " ingress: [{ports: [" + fill("{port: 1},") + "{}]}]\n",
		"values":    np + " podSelector: {matchExpressions: [{key: a, operator: In, values: [" + fill("x,") + "x]}]}\n",
		"aliases":   "a: &a " + strings.Repeat("x", 500000) + "\nb: [" + strings.Repeat("*a,", 150000) + "]\n",
		"dashes":    strings.Repeat("---\n", MaxFile/4),
		"documents": strings.Repeat("---\na\n", MaxDocuments-1),
		"indents":   np + fill(" - - - a\n"),
		"names":     np + " " + strings.Repeat("x", MaxDocument-1000) + ": 1\n",
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Read([]byte(text), "default")
			runtime.ReadMemStats(&after)
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			all := (after.TotalAlloc - before.TotalAlloc) >> 20
			t.Logf("%d KiB take %d MiB: %v", len(text)>>10, all, err)
			if all > 512 {
				t.Errorf("%d MiB were allocated", all)
			}
		})
	}
}
