// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/weftnet/weft/policy"
)

// A Source is an object of a file as JSON, for whoever keeps it: what decides, the labels and the annotations, without what an API server has added.
// It is the same whatever the order of the fields was.
type Source struct {
	Kind string
	policy.Name
	JSON []byte
}

// source keeps an object that was read without a problem.
func (f *file) source(v value, n policy.Name) {
	meta := value{kind: object}
	for _, m := range []field{{"annotations", v.get("metadata").get("annotations")}, {"labels", v.get("metadata").get("labels")}, {"name", textOf(n.Name)}, {"namespace", textOf(n.Namespace)}} {
		if m.value.kind == object || m.value.kind == text && m.value.scalar != "" {
			meta.fields = append(meta.fields, m)
		}
	}
	kind := v.get("kind")
	all := value{kind: object, fields: []field{{"apiVersion", v.get("apiVersion")}, {"kind", kind}, {"metadata", meta}}}
	if spec := v.get("spec"); spec.kind == object && kind.scalar != "Namespace" {
		all.fields = append(all.fields, field{"spec", spec})
	}
	f.objects.Sources = append(f.objects.Sources, Source{Kind: kind.scalar, Name: n, JSON: all.json(nil)})
}

func textOf(s string) value { return value{kind: text, scalar: s} }

// json appends v. Of fields that are there twice, and of numbers, it takes what is written.
func (v value) json(b []byte) []byte {
	switch v.kind {
	case object:
		b = append(b, '{')
		for i, f := range slices.SortedFunc(slices.Values(v.fields), func(a, b field) int { return strings.Compare(a.key, b.key) }) {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(quoteJSON(b, f.key), ':')
			b = f.value.json(b)
		}
		return append(b, '}')
	case list:
		b = append(b, '[')
		for i, item := range v.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = item.json(b)
		}
		return append(b, ']')
	case text:
		return quoteJSON(b, v.scalar)
	case number, boolean:
		if json.Valid([]byte(v.scalar)) {
			return append(b, v.scalar...)
		}
		return quoteJSON(b, v.scalar)
	default:
		return append(b, "null"...)
	}
}

func quoteJSON(b []byte, s string) []byte {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a text always can be
	return append(b, bytes.TrimSuffix(out.Bytes(), []byte("\n"))...)
}
