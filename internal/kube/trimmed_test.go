// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weftnet/weft/internal/kube/kubetest"
)

// TestMirrorByListOrWatch follows Nodes where a watch can begin with what there is, and where that has to be listed first.
func TestMirrorByListOrWatch(t *testing.T) {
	for _, lists := range []bool{false, true} {
		t.Run(fmt.Sprint(lists), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := kubetest.New()
				srv.SetListsOnly(lists)
				for i := range 50 {
					o := nodeObject(fmt.Sprintf("192.0.2.%d", i+1))
					o["metadata"] = kubetest.Object{"annotations": kubetest.Object{AnnotationNodeID: fmt.Sprint("id-", i), "other": "x"}}
					srv.Put(fmt.Sprintf("nodes/n%d", i), o)
				}
				changes := 0
				m := newMirror(clusterOf(t, srv, "n0").nodes(), "", trimNode, func() { changes++ })
				done := make(chan struct{})
				go func() {
					defer close(done)
					m.run(t.Context())
				}()
				defer func() {
					if err := srv.Close(); err != nil {
						t.Error(err)
					}
				}()
				time.Sleep(time.Minute)
				synctest.Wait()
				all, synced := m.snapshot()
				if got := all["n7"]; !synced || len(all) != 50 || got.nodeID != "id-7" || got.addresses[0].String() != "192.0.2.8" || got.uid == "" {
					t.Fatalf("%d nodes, complete: %v, n7 is %+v", len(all), synced, got)
				}
				if listed := srv.Count(func(r kubetest.Request) bool { return r.Verb == "list" }) > 0; listed != lists {
					t.Errorf("listed: %v, want %v", listed, lists)
				}
				before, state := changes, m.state()
				srv.Edit("nodes/n7", func(o kubetest.Object) {
					o["status"].(kubetest.Object)["images"] = []any{kubetest.Object{"names": []any{"registry.example/image"}}}
				})
				time.Sleep(time.Second)
				synctest.Wait()
				if changes != before || m.state() != state {
					t.Error("a change of what is not needed is told")
				}
				srv.Edit("nodes/n7", func(o kubetest.Object) {
					o["metadata"].(kubetest.Object)["annotations"] = kubetest.Object{AnnotationNodeID: "another"}
				})
				srv.Delete("nodes/n8")
				time.Sleep(time.Second)
				synctest.Wait()
				if v, _, _ := m.get("n7"); v.nodeID != "another" || changes != before+2 || m.state() == state {
					t.Errorf("after the changes, %d of which were told, n7 is %+v", changes-before, v)
				}
				if _, ok, _ := m.get("n8"); ok {
					t.Error("n8 was deleted, and is there")
				}
				if all["n7"].nodeID != "id-7" || len(all) != 50 {
					t.Error("a snapshot changed after it was taken")
				}
			})
		})
	}
}

// listNodes reads a list of Nodes.
func listNodes(text string) (runtime.Object, error) {
	return listTrimmed(trimNode)(strings.NewReader(text))
}

func TestListRefused(t *testing.T) {
	for _, x := range []struct{ text, want string }{
		{"", "unexpected EOF"},
		{"[]", "reading a list: [ where { should be"},
		{`{"items":7}`, "reading the items of a list: 7 where an array should begin"},
		{`{"items":[{"metadata":{}}`, "reading the items of a list: unexpected EOF"},
		{`{"items":[]`, "unexpected EOF"},
		{`{"items":[{"metadata":7}]}`, "reading the items of a list: json: cannot unmarshal number into Go struct field node.metadata of type v1.ObjectMeta"},
		{`{"metadata":[]}`, "reading the metadata of a list: json: cannot unmarshal array into Go value of type v1.ListMeta"},
	} {
		if _, err := listNodes(x.text); err == nil || err.Error() != x.want {
			t.Errorf("%s: %v, want %s", x.text, err, x.want)
		}
	}
}

func FuzzList(f *testing.F) {
	for _, s := range []string{
		`{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"7","continue":"x"},"items":[{"metadata":{"name":"a","uid":"u","annotations":{"weftnet.dev/node-id":"1"}},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}},{}]}`,
		`{"items":null}`, `{"items":[null]}`, `{"items":[],"items":[{}]}`, `[]`, `{`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := listNodes(text)
		var whole list[node]
		oracle := json.Unmarshal([]byte(text), &whole)
		if err != nil || oracle != nil || strings.Count(strings.ToLower(text), "items") > 1 || strings.Count(strings.ToLower(text), "metadata\":") > 1+strings.Count(text, "uid") {
			return // what is behind the list, and keys that come twice, are read in other ways
		}
		all, ok := o.(*trimmedList[machine])
		if !ok {
			t.Fatalf("a %T was read", o)
		}
		items, err := meta.ExtractList(all)
		if err != nil || len(items) != len(whole.Items) || all.ResourceVersion != whole.ResourceVersion {
			if strings.Contains(text, `"items"`) && strings.Contains(text, `"metadata"`) {
				t.Fatalf("%d items of version %q, want %d of %q (%v)", len(items), all.ResourceVersion, len(whole.Items), whole.ResourceVersion, err)
			}
			return // keys in another case
		}
		for i := range items {
			got, ok := items[i].(*trimmed[machine])
			if want := trimNode(&whole.Items[i]); !ok || !reflect.DeepEqual(got.value, want) || got.Name != want.name {
				t.Errorf("item %d is %+v, want %+v", i, got, want)
			}
		}
	})
}
