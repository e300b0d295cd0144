// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"encoding/json"
	"maps"
	"net/netip"
	"reflect"
	"testing"

	"github.com/weftnet/weft/policy"
)

func TestEndpoint(t *testing.T) {
	const pod = `{"metadata":{"name":"a","namespace":"ns","uid":"u","labels":{"app":"x"},"annotations":{"what":"ever"},"managedFields":[{}]},
		"spec":{"nodeName":"n","containers":[{"name":"c","ports":[{"name":"web","containerPort":80},{"containerPort":81},{"name":"dns","protocol":"UDP","containerPort":53}]},
			{"name":"d","ports":[{"name":"web","containerPort":8080},{"name":"odd","protocol":"ICMP","containerPort":1},{"name":"big","containerPort":70000}]}],
			"initContainers":[{"ports":[{"name":"once","containerPort":1}]},{"restartPolicy":"Always","ports":[{"name":"side","protocol":"SCTP","containerPort":9}]}]},
		"status":{"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"::ffff:10.0.0.1"},{"ip":"10.0.0.2"},{"ip":"what"},{"ip":"fd00::1"}]}}`
	want := policy.Endpoint{
		Name: policy.Name{Namespace: "ns", Name: "a"}, ID: "u", Node: "n", Labels: map[string]string{"app": "x"},
		Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		Ports: []policy.NamedPort{{Name: "web", Protocol: policy.TCP, Port: 80}, {Name: "dns", Protocol: policy.UDP, Port: 53}, {Name: "side", Protocol: policy.SCTP, Port: 9}},
	}
	for name, tt := range map[string]struct {
		edit func(p *Pod)
		want func(e *policy.Endpoint) bool // false: it is none
	}{
		"running":      {func(*Pod) {}, func(*policy.Endpoint) bool { return true }},
		"host network": {func(p *Pod) { p.Spec.HostNetwork = true }, func(*policy.Endpoint) bool { return false }},
		"succeeded":    {func(p *Pod) { p.Status.Phase = "Succeeded" }, func(*policy.Endpoint) bool { return false }},
		"failed":       {func(p *Pod) { p.Status.Phase = "Failed" }, func(*policy.Endpoint) bool { return false }},
		"no addresses yet": {func(p *Pod) { p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = "Pending", "", nil }, func(e *policy.Endpoint) bool {
			e.Addrs = nil
			return true
		}},
		"one address": {func(p *Pod) { p.Status.PodIPs = nil }, func(e *policy.Endpoint) bool {
			e.Addrs = e.Addrs[:1]
			return true
		}},
		"static": {func(p *Pod) { p.Metadata.Annotations.Hash, p.Metadata.Annotations.Mirror = "h", "h" }, func(e *policy.Endpoint) bool {
			e.ID = "h"
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var p Pod
			if err := json.Unmarshal([]byte(pod), &p); err != nil {
				t.Fatal(err)
			}
			tt.edit(&p)
			w := want
			e, ok := p.Endpoint()
			if is := tt.want(&w); is != ok || ok && !reflect.DeepEqual(e, w) {
				t.Errorf("%+v, %v", e, ok)
			}
			if ok {
				if err := e.Check(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestNamespace(t *testing.T) {
	for labels, want := range map[string]map[string]string{
		`{}`:                                  {labelName: "a"},
		`null`:                                {labelName: "a"},
		`{"x":"y"}`:                           {labelName: "a", "x": "y"},
		`{"kubernetes.io/metadata.name":"a"}`: {labelName: "a"},
		`{"kubernetes.io/metadata.name":"b"}`: {labelName: "a"},
	} {
		var n Namespace
		if err := json.Unmarshal([]byte(`{"metadata":{"name":"a","labels":`+labels+`}}`), &n); err != nil {
			t.Fatal(err)
		}
		if got := n.Namespace(); got.Name != "a" || !maps.Equal(got.Labels, want) {
			t.Errorf("%s: %v", labels, got)
		}
	}
}
