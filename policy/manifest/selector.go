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
	for k, v := range r.labels(at(path, "matchLabels"), v.get("matchLabels")) {
		s = append(s, policy.Requirement{Key: k, Operator: policy.In, Values: []string{v}})
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
	for _, f := range v.fields {
		p, since := path+"["+quote(f.key)+"]", r.count
		if _, twice := labels[f.key]; twice {
			r.fault(p, f.value, "it is there twice")
		}
		r.key(p, value{kind: text, line: f.value.line, scalar: f.key})
		if f.value.kind != absent && r.expect(p, f.value, text) { // absent: empty, as for Kubernetes
			r.labelValue(p, f.value)
		}
		if r.count == since {
			labels[f.key] = f.value.scalar
		}
	}
	return labels
}

// key finds what no label can be called. It is empty at worst in what an API server has checked, which fits nothing.
func (r *reader) key(path string, v value) {
	prefix, last, ok := strings.Cut(v.scalar, "/")
	if !ok {
		prefix, last = "", v.scalar
	}
	switch {
	case v.scalar == "":
		r.fault(path, v, "a label's key is missing")
	case !r.exact:
	case last == "" || !wordLike(last) || ok && !isDomain(prefix):
		r.fault(path, v, "%s is no key that a label can have", quote(v.scalar))
	}
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
