// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"maps"
	"unicode/utf8"

	"github.com/weftnet/weft/policy"
)

// How much is read, in bytes: an API server takes objects of 1.5 MiB.
const (
	MaxFile     = 16 << 20
	MaxDocument = 1 << 20
	// MaxDocuments is how many there may be in a file.
	MaxDocuments = 50_000

	maxFaults = 100
)

const (
	versionNetwork = "networking.k8s.io/v1"
	versionCluster = "policy.networking.k8s.io/v1alpha2"

	// labelName is the label by which every namespace can be selected.
	labelName = "kubernetes.io/metadata.name"
)

// Objects are what a file holds, in its order.
type Objects struct {
	Policies   []*policy.Policy
	Namespaces []policy.Namespace
	Sources    []Source // of all of them
}

// An Error says why a file is refused.
type Error struct {
	// Faults are the problems, at most 20 of each object, and about 100 of a file; there is one at least.
	Faults []Fault
}

// A Fault is a problem in a file.
type Fault struct {
	Document int    // from 1
	Object   string // as NetworkPolicy default/web; empty: not known
	Problem         // Line is that of the file
}

// String is a line.
func (f Fault) String() string {
	s := fmt.Sprintf("line %d (document %d", f.Line, f.Document)
	if f.Object != "" {
		s += ", " + f.Object
	}
	return s + "): " + f.Problem.String()
}

// Error is a line: the first fault, and how many there are.
func (e *Error) Error() string {
	s := e.Faults[0].String()
	if more := len(e.Faults) - 1; more > 0 {
		s += fmt.Sprintf(" (and %d more)", more)
	}
	return s
}

// Read reads a file of manifests: YAML, of any number of documents, or JSON. They are NetworkPolicies, ClusterNetworkPolicies, Namespaces, and Lists of
// them. A NetworkPolicy without a namespace is in the one given. If anything in it is not understood, the error is an [*Error], and there
// are no objects. What it returns does not refer to text.
func Read(text []byte, namespace string) (Objects, error) {
	f := file{namespace: namespace, policies: map[policy.PolicyKey]int{}, namespaces: map[string]int{}}
	switch {
	case len(text) > MaxFile:
		return Objects{}, single(fmt.Sprintf("the file has %d bytes, and more than %d are not read; make several of it", len(text), MaxFile))
	case !utf8.Valid(text):
		return Objects{}, single("the file is not UTF-8")
	}
	all := documents(text, MaxDocuments)
	if len(all) > MaxDocuments {
		return Objects{}, single(fmt.Sprintf("the file has more than %d documents; make several of it", MaxDocuments))
	}
	q := quick{words: words{}}
	for i, d := range all {
		f.document = i
		if d.blank() {
			continue
		}
		if len(f.faults) >= maxFaults {
			break
		}
		if len(d.text) > MaxDocument {
			f.refuse("", value{line: d.line}, "it has %d bytes, and more than %d are not read", len(d.text), MaxDocument)
			continue
		}
		v, line, err := q.parseYAML(d)
		if err != nil {
			f.refuse("", value{line: line}, "%v", err)
			continue
		}
		if v.kind != absent {
			f.object("", v, false)
		}
	}
	if len(f.faults) > 0 {
		return Objects{}, &Error{Faults: f.faults}
	}
	return f.objects, nil
}

func single(text string) error {
	return &Error{Faults: []Fault{{Document: 1, Problem: Problem{Line: 1, Text: text}}}}
}

// file is what has been read of one.
type file struct {
	namespace string
	objects   Objects
	faults    []Fault
	document  int

	policies   map[policy.PolicyKey]int // lines, by what is there
	namespaces map[string]int
	scratch    []byte
}

func (f *file) refuse(what string, v value, format string, args ...any) {
	f.faults = append(f.faults, Fault{Document: f.document + 1, Object: what, Problem: Problem{Line: max(v.line, 1), Text: fmt.Sprintf(format, args...)}})
}

// object reads what is one, or a List of several, but for one within another.
func (f *file) object(path string, v value, within bool) {
	r := &reader{exact: true}
	version, kind := r.text(at(path, "apiVersion"), v.get("apiVersion")), r.text(at(path, "kind"), v.get("kind"))
	what := kind
	switch {
	case v.kind != object:
		r.fault(path, v, "it must be an object with apiVersion and kind, and is %s", v.kind)
	case version == "v1" && kind == "List" && !within:
		r.only(path, v, "apiVersion", "kind", "metadata", "items")
		r.each(at(path, "items"), v.get("items"), func(path string, v value) { f.object(path, v, true) })
	case version == versionNetwork && kind == "NetworkPolicy":
		n := r.names(path, v, f.namespace)
		what += " " + n.Namespace + "/" + n.Name
		f.add(r, v, r.networkPolicy(path, v, n))
	case version == versionCluster && kind == "ClusterNetworkPolicy":
		n := r.names(path, v, "")
		what += " " + n.Name
		f.add(r, v, r.clusterPolicy(path, v, n))
	case version == "v1" && kind == "Namespace":
		n := r.names(path, v, "")
		what += " " + n.Name
		f.addNamespace(r, v, namespaceOf(n.Name, r.labels(at(path, "metadata.labels"), v.get("metadata").get("labels"))))
	case kind == "":
		r.fault(path, v, "it has no kind; there are NetworkPolicy, ClusterNetworkPolicy and Namespace")
	default:
		what = ""
		r.fault(path, v, "%s of %s is not known here; there are NetworkPolicy (%s), ClusterNetworkPolicy (%s) and Namespace (v1)",
			quote(kind), quote(version), versionNetwork, versionCluster)
	}
	for _, p := range r.problems {
		f.faults = append(f.faults, Fault{Document: f.document + 1, Object: bounded(what), Problem: p})
	}
}

// names reads what an object is called, and where it is: in that namespace unless it says so, or in none if that is empty.
func (r *reader) names(path string, v value, namespace string) policy.Name {
	meta := v.get("metadata")
	path = at(path, "metadata")
	r.expect(path, meta, object)
	name, in := meta.get("name"), meta.get("namespace")
	n := policy.Name{Namespace: namespace, Name: r.text(at(path, "name"), name)}
	switch {
	case name.kind == absent:
		r.fault(at(path, "name"), name, "it is missing")
	case name.kind == text && !isDomain(n.Name):
		r.fault(at(path, "name"), name, "%s is no name that an object can have: that is small letters, digits, and -. between them", quote(n.Name))
	}
	switch is := r.text(at(path, "namespace"), in); {
	case in.kind != text:
	case namespace == "":
		r.fault(at(path, "namespace"), in, "such an object is in no namespace")
	case !isLabel(is):
		r.fault(at(path, "namespace"), in, "%s is no name that a namespace can have: that is small letters, digits, and - between them", quote(is))
	default:
		n.Namespace = is
	}
	return n
}

func (f *file) add(r *reader, v value, p *policy.Policy) {
	if line, twice := f.policies[p.PolicyKey]; twice && r.count == 0 {
		r.fault("", v, "it is there twice: first at line %d", line)
	}
	if r.count == 0 {
		if err := p.Check(); err != nil {
			r.fault("", v, "%v", err)
		}
	}
	f.policies[p.PolicyKey] = v.line
	f.objects.Policies = append(f.objects.Policies, p)
	f.source(v, p.Name, p)
}

func (f *file) addNamespace(r *reader, v value, n policy.Namespace) {
	if line, twice := f.namespaces[n.Name]; twice && r.count == 0 {
		r.fault("", v, "it is there twice: first at line %d", line)
	}
	f.namespaces[n.Name] = v.line
	f.objects.Namespaces = append(f.objects.Namespaces, n)
	f.source(v, policy.Name{Name: n.Name}, nil)
}

// namespaceOf is a namespace with its labels, the one that bears its name among them.
func namespaceOf(name string, labels map[string]string) policy.Namespace {
	n := policy.Namespace{Name: name, Labels: map[string]string{}}
	maps.Copy(n.Labels, labels)
	n.Labels[labelName] = name
	return n
}

func bounded(s string) string {
	if len(s) > 4*maxQuoted {
		return s[:4*maxQuoted] + "..."
	}
	return s
}
