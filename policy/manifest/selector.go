// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"cmp"
	"slices"
	"strings"

	"github.com/weftnet/weft/policy"
)

// selector reads a label selector. With problems it fits at least what the one that was meant does. It is never nil, so that no encoding takes
// an empty one, which fits everything, for none.
func (r *reader) selector(path string, v value) policy.Selector {
	since := r.count
	if !r.only(path, v, "matchLabels", "matchExpressions") || r.count > since {
		return policy.Selector{} // a field that is not known may widen as well as narrow
	}
	s := policy.Selector{}
	for _, f := range r.pairs(at(path, "matchLabels"), v.get("matchLabels")) {
		s = append(s, policy.Requirement{Key: f.key, Operator: policy.In, Values: []string{f.value.scalar}})
	}
	r.each(at(path, "matchExpressions"), v.get("matchExpressions"), func(path string, v value) {
		since := r.count
		if q := r.requirement(path, v); r.count == since {
			s = append(s, q)
		}
	})
	slices.SortFunc(s, compareRequirements)
	return slices.CompactFunc(s, func(a, b policy.Requirement) bool { return compareRequirements(a, b) == 0 })
}

func compareRequirements(a, b policy.Requirement) int {
	return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Operator, b.Operator), slices.Compare(a.Values, b.Values))
}

// requirement reads one of matchExpressions, which must all hold.
func (r *reader) requirement(path string, v value) policy.Requirement {
	var q policy.Requirement
	if !r.only(path, v, "key", "operator", "values") {
		return q
	}
	key, operator, values := v.get("key"), v.get("operator"), v.get("values")
	q.Key = r.text(at(path, "key"), key)
	r.key(at(path, "key"), key)
	r.each(at(path, "values"), values, func(path string, v value) {
		if r.expect(path, v, text) {
			r.labelValue(path, v)
			q.Values = append(q.Values, v.scalar)
		}
	})
	slices.Sort(q.Values)
	q.Values = slices.Compact(q.Values)
	needs := false
	switch o := r.text(at(path, "operator"), operator); o {
	case "In":
		q.Operator, needs = policy.In, true
	case "NotIn":
		q.Operator, needs = policy.NotIn, true
	case "Exists":
		q.Operator = policy.Exists
	case "DoesNotExist":
		q.Operator = policy.DoesNotExist
	default:
		r.fault(at(path, "operator"), operator, "%s is no operator that is known here; there are In, NotIn, Exists and DoesNotExist", quote(o))
		return q
	}
	switch {
	case needs && len(values.items) == 0:
		r.fault(at(path, "values"), values, "%s needs at least one", operator.scalar)
	case !needs && len(values.items) > 0:
		r.fault(at(path, "values"), values, "%s takes none", operator.scalar)
	}
	return q
}

// labels reads a map of labels, but for those with a problem.
func (r *reader) labels(path string, v value) map[string]string {
	if !r.expect(path, v, object) {
		return nil
	}
	labels := make(map[string]string, len(v.fields))
	for _, f := range r.pairs(path, v) {
		labels[f.key] = f.value.scalar
	}
	return labels
}

// pairs are the fields of a map of labels, but for those with a problem. Values are texts, or absent: empty, as for Kubernetes.
func (r *reader) pairs(path string, v value) []field {
	switch {
	case !r.expect(path, v, object):
		return nil
	case r.sound(v.fields):
		return v.fields
	}
	var pairs []field
	seen := make(map[string]bool, len(v.fields))
	for _, f := range v.fields {
		p, since := path+"["+quote(f.key)+"]", r.count
		if seen[f.key] {
			r.fault(p, f.value, "it is there twice")
		}
		r.key(p, value{kind: text, line: f.value.line, scalar: f.key})
		if f.value.kind != absent && r.expect(p, f.value, text) {
			r.labelValue(p, f.value)
		}
		if r.count == since {
			pairs, seen[f.key] = append(pairs, f), true
		}
	}
	return pairs
}

// sound says of few labels whether they are without a problem, as nearly all are.
func (r *reader) sound(labels []field) bool {
	const few = 8
	for i, l := range labels {
		key, is := l.key, l.value
		if i == few || is.kind != text || key == "" || slices.ContainsFunc(labels[:i], func(o field) bool { return o.key == key }) ||
			r.exact && (!isKey(key) || is.scalar != "" && !wordLike(is.scalar)) {
			return false
		}
	}
	return true
}

// key finds what no label can be called. It is empty at worst in what an API server has checked, which fits nothing.
func (r *reader) key(path string, v value) {
	switch {
	case v.scalar == "":
		r.fault(path, v, "a label's key is missing")
	case r.exact && !isKey(v.scalar):
		r.fault(path, v, "%s is no key that a label can have", quote(v.scalar))
	}
}

// isKey tells whether s can be a label's key: it may have a domain and a slash before it.
func isKey(s string) bool {
	prefix, last, ok := strings.Cut(s, "/")
	return !ok && wordLike(s) || ok && wordLike(last) && isDomain(prefix)
}

func (r *reader) labelValue(path string, v value) {
	if r.exact && v.scalar != "" && !wordLike(v.scalar) {
		r.fault(path, v, "%s is no value that a label can have", quote(v.scalar))
	}
}

// wordLike tells whether s is like a label's value: at most 63 letters, digits, and -_. between them.
func wordLike(s string) bool {
	return len(s) <= 63 && s != "" && alphanumeric(rune(s[0])) && alphanumeric(rune(s[len(s)-1])) &&
		!strings.ContainsFunc(s, func(c rune) bool { return !alphanumeric(c) && !strings.ContainsRune("-_.", c) })
}

func alphanumeric(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// isDomain tells whether s can name an object: a domain name in small letters (RFC 1123).
func isDomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !isLabel(part) {
			return false
		}
	}
	return true
}

// isLabel tells whether s is a label of a domain name in small letters.
func isLabel(s string) bool {
	return len(s) <= 63 && s != "" && s[0] != '-' && s[len(s)-1] != '-' &&
		!strings.ContainsFunc(s, func(c rune) bool { return c != '-' && (!alphanumeric(c) || c >= 'A' && c <= 'Z') })
}
