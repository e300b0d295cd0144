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
	JSON   []byte
	Policy *policy.Policy // what [NetworkPolicy] or [ClusterNetworkPolicy] makes of JSON; nil of a Namespace
}

// source keeps an object that was read without a problem. Its fields are sorted by that.
func (f *file) source(v value, n policy.Name, p *policy.Policy) {
	meta, kind := v.get("metadata"), v.get("kind")
	b := v.get("apiVersion").json(append(f.scratch[:0], `{"apiVersion":`...))
	b = kind.json(append(b, `,"kind":`...))
	b = append(b, `,"metadata":`...)
	begin := byte('{')
	for _, m := range []field{{"annotations", meta.get("annotations")}, {"labels", meta.get("labels")}, {"name", textOf(n.Name)}, {"namespace", textOf(n.Namespace)}} {
		if m.value.kind == object || m.value.kind == text && m.value.scalar != "" {
			b = m.value.json(append(quoteJSON(append(b, begin), m.key), ':'))
			begin = ','
		}
	}
	b = append(b, '}')
	if spec := v.get("spec"); spec.kind == object && kind.scalar != "Namespace" {
		b = spec.json(append(b, `,"spec":`...))
	}
	f.scratch = append(b, '}')
	f.objects.Sources = append(f.objects.Sources, Source{Kind: kind.scalar, Name: n, JSON: bytes.Clone(f.scratch), Policy: p})
}

func textOf(s string) value { return value{kind: text, scalar: s} }

// json appends v, and sorts its fields. Of fields that are there twice, and of numbers, it takes what is written.
func (v value) json(b []byte) []byte {
	switch v.kind {
	case object:
		b = append(b, '{')
		slices.SortFunc(v.fields, func(a, b field) int { return strings.Compare(a.key, b.key) })
		for i, f := range v.fields {
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
	plain := true
	for i := range len(s) {
		plain = plain && s[i] >= ' ' && s[i] <= '~' && s[i] != '"' && s[i] != '\\'
	}
	if plain {
		return append(append(append(b, '"'), s...), '"')
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a text always can be
	return append(b, bytes.TrimSuffix(out.Bytes(), []byte("\n"))...)
}
