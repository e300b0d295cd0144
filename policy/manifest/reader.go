// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/weftnet/weft/policy"
)

const (
	// maxProblems is how many problems of one object are told, and maxQuoted how many bytes of what was written there.
	maxProblems = 20
	maxQuoted   = 80
)

// A Problem is something in an object that could not be understood, or that cannot be so.
type Problem struct {
	Line int    // in its document, from 1; 0: not known
	Path string // of the field, as spec.ingress[0].from[1]; empty: the object
	Text string // what is wrong with it, and what to write
	// Instead is how the policy is enforced nevertheless; empty if it is not.
	Instead string
}

// String is a line without its number.
func (p Problem) String() string {
	s := p.Text
	if p.Path != "" {
		s = p.Path + ": " + s
	}
	if p.Instead != "" {
		s += "; " + p.Instead
	}
	return s
}

// reader gathers the problems of one object.
type reader struct {
	exact    bool // what an API server tolerates, but should not, is a problem
	count    int  // of all problems
	problems []Problem
}

func (r *reader) fault(at string, v value, format string, args ...any) {
	r.count++
	if len(r.problems) < maxProblems {
		r.problems = append(r.problems, Problem{Line: v.line, Path: at, Text: fmt.Sprintf(format, args...)})
	}
}

// instead says how it is enforced in spite of the problems since there were that many.
func (r *reader) instead(since int, how string) {
	if r.exact {
		return
	}
	for i := since; i < len(r.problems); i++ {
		if r.problems[i].Instead == "" {
			r.problems[i].Instead = how
		}
	}
}

// lines are all problems as policy.Policy has them.
func (r *reader) lines() []string {
	var lines []string
	for _, p := range r.problems {
		lines = append(lines, p.String())
	}
	if more := r.count - len(r.problems); more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more problems", more))
	}
	return lines
}

func at(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// quote is what was written, of bounded length.
func quote(s string) string {
	if len(s) > maxQuoted {
		return strconv.QuoteToASCII(s[:maxQuoted]) + "..."
	}
	return strconv.QuoteToASCII(s)
}

// expect tells whether a value is of a kind. One that is absent is of none, which is no problem.
func (r *reader) expect(path string, v value, k kind) bool {
	switch v.kind {
	case k:
		return true
	case absent:
	case strange:
		r.fault(path, v, "%s", v.scalar)
	default:
		hint := ""
		if k == text && (v.kind == number || v.kind == boolean) {
			hint = ": put " + quote(v.scalar) + " in quotes"
		}
		r.fault(path, v, "it must be %s, and is %s%s", k, v.kind, hint)
	}
	return false
}

// only finds the fields of an object that are not among those known, or there twice, and tells whether it is an object. With one that is absent it
// has nothing to say.
func (r *reader) only(path string, v value, known ...string) bool {
	if !r.expect(path, v, object) {
		return false
	}
	if v.among(known) {
		return true
	}
	seen := make(map[string]bool, len(known))
	for _, f := range v.fields {
		switch {
		case seen[f.key]:
			r.fault(at(path, name(f.key)), f.value, "it is there twice")
		case !slices.Contains(known, f.key):
			hint := ""
			if c := closest(f.key, known); c != "" {
				hint = "; is " + c + " meant?"
			}
			r.fault(at(path, name(f.key)), f.value, "such a field is not known here%s", hint)
		}
		seen[f.key] = true
	}
	return true
}

// among says whether all fields are among those known, and none is there twice.
func (v value) among(known []string) bool {
	if len(v.fields) > len(known) {
		return false
	}
	for i, f := range v.fields {
		if !slices.Contains(known, f.key) || slices.ContainsFunc(v.fields[:i], func(o field) bool { return o.key == f.key }) {
			return false
		}
	}
	return true
}

// name is a field's name in a path: quoted unless it looks like one.
func name(key string) string {
	if key == "" || len(key) > maxQuoted || strings.ContainsFunc(key, func(c rune) bool { return c < '-' || c > 'z' }) {
		return quote(key)
	}
	return key
}

// each calls f for the items of a list, and returns how many there are. What is absent has none.
func (r *reader) each(path string, v value, f func(path string, v value)) int {
	if !r.expect(path, v, list) {
		return 0
	}
	for i, item := range v.items {
		if p := index(path, i); r.present(p, item) {
			f(p, item)
		}
	}
	return len(v.items)
}

// present finds an item of a list that is none.
func (r *reader) present(path string, v value) bool {
	if v.kind == absent {
		r.fault(path, v, "there is nothing after the dash; for something without restrictions write {}")
	}
	return v.kind != absent
}

// rules reads a list of rules. In the place of one that is none, and of a list that is none, it puts lost.
func (r *reader) rules(path string, v value, lost policy.Rule, how string, read func(path string, v value) policy.Rule) []policy.Rule {
	told := len(r.problems)
	if !r.expect(path, v, list) {
		if v.kind == absent {
			return nil
		}
		r.instead(told, how)
		return []policy.Rule{lost}
	}
	var rules []policy.Rule
	for i, item := range v.items {
		told := len(r.problems)
		if p := index(path, i); r.present(p, item) {
			rules = append(rules, read(p, item))
		} else {
			rules = append(rules, lost)
		}
		r.instead(told, how)
	}
	return rules
}

// text returns a text, empty if it is absent.
func (r *reader) text(path string, v value) string {
	if !r.expect(path, v, text) {
		return ""
	}
	return v.scalar
}

// integer returns a number between the two.
func (r *reader) integer(path string, v value, least, most int64) int64 {
	if v.kind == text {
		if _, err := strconv.ParseInt(v.scalar, 10, 64); err == nil {
			r.fault(path, v, "it must be a number, and is a text: write %s without quotes", v.scalar)
			return 0
		}
	}
	if !r.expect(path, v, number) {
		return 0
	}
	n, err := strconv.ParseInt(v.scalar, 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != v.scalar || n < least || n > most {
		r.fault(path, v, "%s is no number from %d to %d", quote(v.scalar), least, most)
		return 0
	}
	return n
}

// closest returns that of the known words which was meant, if one is near.
func closest(s string, known []string) string {
	best, least := "", 3
	for _, k := range known {
		if len(s) > len(k)+2 {
			continue
		}
		if d := distance(strings.ToLower(s), strings.ToLower(k)); d < least && d*2 < len(k) {
			best, least = k, d
		}
	}
	return best
}

// distance is how many letters have to be changed, added, removed, or swapped with the next one.
func distance(a, b string) int {
	var above, row []int // for the letters of a before the last one, and before that
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row = make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := last[j]
			if a[i] != b[j] {
				cost++
			}
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				cost = min(cost, above[j-1]+1)
			}
			row[j+1] = min(cost, row[j]+1, last[j+1]+1)
		}
		above, last = last, row
	}
	return last[len(b)]
}
