// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// asParsed checks that a document is read quickly as it is by the parser, if it is.
func asParsed(t *testing.T, text string) (quickly bool) {
	t.Helper()
	if n := (document{text: []byte(text)}).parts(); n > maxParts {
		return false
	}
	q := quick{words: words{}}
	for _, d := range documents([]byte(text), 10) {
		v, ok := q.read(d)
		if !ok {
			continue
		}
		quickly = true
		want, _, err := slowYAML(d)
		if err != nil || !reflect.DeepEqual(v, want) {
			t.Errorf("%q:\n%+v, not\n%+v, %v", d.text, v, want, err)
		}
	}
	return quickly
}

func TestQuickYAML(t *testing.T) {
	for _, text := range []string{
		"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p7, namespace: ns3}\n" +
			"spec: {podSelector: {matchLabels: {app: a1}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: \"2001:db8::/64\", except: [172.16.0.0/24]}}], ports: [{port: 1007, endPort: 2000}, {port: 0, protocol: UDP}]}]}\n",
		"# a comment\n\n  # and one more\na:\n  b:\n    c: d\n\n  e: 'f: \"g\" # h'\n\ni: \"j, {k}\"\n",
		"a:\n- b\n-   c: d\n    e:\n    - f\n    - - g\n      - h: i\n  \n-\n  j: k\nl: {}\nm: []\nn: [ a , { b: c } , [ ] ]   \no: 10.0.0.0/8\np: 2001:db8::/32\nq: x:y\n",
		"- {\"a b\": 'c'}\n- 'quoted: ': d\n- [1, 2]\n", "  a: b\n  c: d", "--- \n\n{a: b, b: [c]}", "---\n[]", "a.b/c-d_e: True2\nNullable: nulls\ny: no\nn: on\n", "a: ''\nb: \"\"\n'': c\n",
	} {
		if !asParsed(t, text) {
			t.Errorf("%q is left to the parser", text)
		}
	}
	deep := func(levels int) string {
		var b strings.Builder
		for i := range levels {
			fmt.Fprintf(&b, "%sa:\n%s- b:\n", strings.Repeat(" ", 4*i), strings.Repeat(" ", 4*i))
		}
		return b.String() + strings.Repeat(" ", 4*levels) + "c: d\n"
	}
	if text := deep(6); !asParsed(t, text) {
		t.Errorf("%s is left to the parser", text)
	}
	for _, text := range []string{
		deep(9), deep(16), deep(30), "", "---", "a", "a: ", "a:\n\nb: c", "a: b # c", "a: b\n  c", "a: b\n  c: d", " a: b\nc: d", "a: &x b", "a: *x", "a: !!str 1", "a: |\n  b", "a: >-\n  b", "? a\n: b", "a: {b}", "a: {b: c,}", "a: [b,]",
		"a: [b c]", "a: [b\n, c]", "a: {b:c}", "a: {b:}", "a: [b: c]", "a: 'it''s'", "a: \"\\n\"", "a: \"b", "a: 'b'c", "a: true", "a: Null", "a: FALSE", "false: a", "1: a", "a: ~", "a: .5", "a: -1", "a: +1", "a: 1.5",
		"a: 1e3", "a: 0x1f", "a: 017", "a: 1_000", "a: 2020-01-01", "a: 10.0.0.1", "a: 12345678901234567890", "a: b: c", "a: b:", "a:\tb", "a: b\r\n", "a: ä", "a:\n  b", "- a\nb: c", "a:\n- b\n c: d", "- - a\n b", "<<: {a: b}",
		"<<: a", "%YAML 1.2", "--- a: b", "--- {a: b}", "a: @b", "a: `b", "a: {b: c}}", "a: [b]]", "a: [", "a: {", "a: {b: [}", "-", "- ", "- -", "-a: b", "a: " + strings.Repeat("[", 30) + strings.Repeat("]", 30),
		strings.Repeat("k", 300) + ": a",
	} {
		if asParsed(t, text) {
			t.Errorf("%q is read quickly", text)
		}
	}
}

// Documents of what matters to YAML, put together at random, are read as the parser does, and enough of them.
func TestQuickYAMLAtRandom(t *testing.T) {
	pieces := []string{
		"a", "b", "c", "a: ", "b: ", "c:", "- ", "-", ": ", ":", "\n", "\n", "\n  ", "\n    ", "\n- ", "\n  - ", " ", "{", "}", "[", "]", "{a: b}", "[a, b]", ", ", ",", "\"", "'", "'b'", "\"c\"", "#", " # ", "\n# ",
		"1", "0", "8080", "1.5", "10.0.0.0/8", "2001:db8::/32", "2020-01-01", "true", "null", "~", "*", "&a ", "!", "|", ">", "?", "%", "@", "\\", "\t", "ä", "...", "---", "<<",
	}
	s, quickly := rand.New(rand.NewPCG(1, 2)), 0
	const documents = 10_000
	for range documents {
		var b strings.Builder
		b.WriteString([]string{"", "a: ", "a:\n", "- ", "---\n"}[s.IntN(5)])
		few := 1 + s.IntN(len(pieces))
		for range 1 + s.IntN(12) {
			b.WriteString(pieces[s.IntN(few)])
		}
		if asParsed(t, b.String()) {
			quickly++
		}
	}
	if quickly < documents/50 {
		t.Errorf("%d are read quickly", quickly)
	}
}

func FuzzQuickYAML(f *testing.F) {
	f.Add(goodFile)
	f.Add("a:\n- b\n-   c: d\n    e:\n    - f\n    - - g\n      - h: i\n-\n  j: k\nl: {}\nn: [ a , { b: c } ]\np: 2001:db8::/32\n'q': \"r\" \n")
	f.Fuzz(func(t *testing.T, text string) { asParsed(t, text) })
}

func FuzzQuickJSON(f *testing.F) {
	f.Add(`{"a": [1, "b", true, null, {}], "status": {"c": [ ]}, "metadata": {"managedFields": 1, "d": {"status": 0}}} `)
	f.Add(` [{"a":"\u0041"}, -1, 1.5, 00, "ä"]`)
	p := NewParser()
	f.Fuzz(func(t *testing.T, text string) {
		v, ok := p.quickJSON([]byte(text))
		if !ok {
			return
		}
		want, err := slowJSON([]byte(text))
		if err != nil || !reflect.DeepEqual(v, want) {
			t.Errorf("%q:\n%+v, not\n%+v, %v", text, v, want, err)
		}
	})
}
