// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bytes"
	"testing"
)

// What is kept is the same whatever it was written like, and reads as the same again.
func TestSources(t *testing.T) {
	file := []byte(`apiVersion: v1
kind: Namespace
metadata: {name: shop, uid: 17b, labels: {team: "a"}, annotations: {note: "<1>"}}
status: {phase: Active}
---
kind: NetworkPolicy
metadata:
  resourceVersion: "7"
  name: db
spec:
  policyTypes: [Ingress]
  podSelector: {matchLabels: {app: db}}
  ingress:
  - ports: [{port: 5432, endPort: 5440}, {port: http, protocol: TCP}]
    from: [{podSelector: {}}]
apiVersion: networking.k8s.io/v1
`)
	o, err := Read(file, "shop")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`{"apiVersion":"v1","kind":"Namespace","metadata":{"annotations":{"note":"<1>"},"labels":{"team":"a"},"name":"shop"}}`,
		`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"db","namespace":"shop"},"spec":{` +
			`"ingress":[{"from":[{"podSelector":{}}],"ports":[{"endPort":5440,"port":5432},{"port":"http","protocol":"TCP"}]}],` +
			`"podSelector":{"matchLabels":{"app":"db"}},"policyTypes":["Ingress"]}}`,
	}
	if len(o.Sources) != len(want) {
		t.Fatalf("%d sources", len(o.Sources))
	}
	for i, s := range o.Sources {
		if string(s.JSON) != want[i] {
			t.Errorf("%s %s:\n%s\nwant\n%s", s.Kind, s.Name, s.JSON, want[i])
		}
		again, err := Read(s.JSON, "other")
		if err != nil || len(again.Sources) != 1 || !bytes.Equal(again.Sources[0].JSON, s.JSON) || again.Sources[0].Name != s.Name {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
	p, err := NetworkPolicy(o.Sources[1].JSON)
	if err != nil || len(p.Problems) > 0 || p.PolicyKey != o.Policies[0].PolicyKey {
		t.Errorf("%+v, %v", p, err)
	}
}
