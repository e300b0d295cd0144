// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"time"

	"github.com/weftnet/weft/policy"
)

// MaxManifests is how many bytes of manifests are taken at once.
const MaxManifests = 16 << 20

// maxManifests bounds a request with manifests in bytes: what a file may have, as JSON text.
const maxManifests = 34 << 20

// Policies is the part of [Service] about network policies.
type Policies interface {
	// PolicyApply and PolicyDelete do all that is asked for or nothing, and return when it is on disk here. Under Kubernetes they refuse.
	PolicyApply(ctx context.Context, r PolicyApplyRequest) (PolicyChanges, error)
	PolicyDelete(ctx context.Context, r PolicyDeleteRequest) (PolicyChanges, error)
	PolicyList(ctx context.Context) (PolicyList, error)
	PolicyShow(r PolicyShowRequest) (PolicyShown, error)
	PolicyWhy(r PolicyWhyRequest) (PolicyWhy, error)
	// PolicyLog tells what has been denied and, if it is asked to, what is, as Events does.
	PolicyLog(ctx context.Context, r PolicyLogRequest, tell func(PolicyLogProgress)) (PolicyLogResult, error)
}

// PolicyObject names what a manifest is about.
type PolicyObject struct {
	Kind      string `json:"kind"` // NetworkPolicy, ClusterNetworkPolicy or Namespace
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String is KIND NAMESPACE/NAME, or KIND NAME of what is in no namespace.
func (o PolicyObject) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// PolicyApplyRequest asks to make what manifests say so.
type PolicyApplyRequest struct {
	Manifests string `json:"manifests"`           // YAML, of any number of documents, or JSON
	Namespace string `json:"namespace,omitempty"` // of policies that name none; empty: default
	DryRun    bool   `json:"dry_run,omitempty"`   // say what would be done
	// Wait is for how long to wait, at most, until what was done is in force on the host that is asked, in nanoseconds; 0: not at all. After that there is a warning.
	Wait time.Duration `json:"wait,omitempty"`
}

// PolicyDeleteRequest asks to delete objects: those that are named, and those that manifests name.
type PolicyDeleteRequest struct {
	Objects   []PolicyObject `json:"objects,omitempty"`
	Manifests string         `json:"manifests,omitempty"`
	Namespace string         `json:"namespace,omitempty"`
	// Absent tells that what is not there is no error.
	Absent bool          `json:"absent,omitempty"`
	DryRun bool          `json:"dry_run,omitempty"`
	Wait   time.Duration `json:"wait,omitempty"` // as in PolicyApplyRequest
}

// PolicyChanges is what was done, in the order of the request.
type PolicyChanges struct {
	Objects  []PolicyChange `json:"objects"`
	DryRun   bool           `json:"dry_run,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
}

// PolicyChange is what was done to one object: created, changed, unchanged, deleted or absent.
type PolicyChange struct {
	PolicyObject
	Done string `json:"done"`
}

// PolicyList is the answer of `weft policy list`.
type PolicyList struct {
	Policies   []Policy          `json:"policies"` // in the order in which they are asked
	Namespaces []PolicyNamespace `json:"namespaces,omitempty"`
	Awaits     string            `json:"awaits,omitempty"`   // what is awaited before anything is put in force
	Failure    string            `json:"failure,omitempty"`  // why what should be in force is not
	Pending    bool              `json:"pending,omitempty"`  // some of it is not in force on this host yet
	Warnings   []string          `json:"warnings,omitempty"` // what could not be told
}

// Policy is one as this node knows it.
type Policy struct {
	PolicyObject
	Tier     string          `json:"tier"`
	Priority int32           `json:"priority"`       // zero in the Network tier
	Selects  int             `json:"selects"`        // workloads of this host
	Mesh     int             `json:"selects_in_all"` // workloads of all hosts
	Allowed  uint64          `json:"allowed"`        // connections, on this host, since it counts
	Denied   uint64          `json:"denied"`
	Problems []string        `json:"problems,omitempty"`
	Manifest json.RawMessage `json:"manifest,omitempty"` // as it was applied; not under Kubernetes
}

// PolicyNamespace is a namespace for which there is a manifest.
type PolicyNamespace struct {
	Name     string            `json:"name"`
	Labels   map[string]string `json:"labels,omitempty"`
	Manifest json.RawMessage   `json:"manifest,omitempty"`
}

// PolicyShowRequest asks what policies say of a workload, which is called as in [PolicyWhyRequest]; empty: of all of this host.
type PolicyShowRequest struct {
	Workload string `json:"workload"`
}

// PolicyShown is what they say.
type PolicyShown struct {
	Workloads []policy.Summary `json:"workloads"`
}

// PolicyWhyRequest asks whether connections are allowed. From and To are addresses, names of workloads, as NAMESPACE/NAME, NAME or NAME@NODE, IDs of workloads of this
// host, or names of nodes. Port is a number, with /tcp, /udp or /sctp behind it or not, the name of a port, or icmp.
type PolicyWhyRequest struct {
	From string `json:"from"`
	To   string `json:"to"`
	Port string `json:"port"`
}

// PolicyWhy is why, for each family of addresses that both have.
type PolicyWhy struct {
	Allowed     bool                 `json:"allowed"` // all of them are
	Connections []policy.Explanation `json:"connections"`
}

// PolicyLogRequest asks what was denied.
type PolicyLogRequest struct {
	Last   int  `json:"last"`   // at most so many of the last ones; negative: all that are kept
	Follow bool `json:"follow"` // and those that come, until the request ends
}

// PolicyLogProgress is one connection that was denied, and how many before it were skipped because they came faster than they were read.
type PolicyLogProgress struct {
	Denied  *Denied `json:"denied"`
	Skipped uint64  `json:"skipped,omitempty"`
}

// PolicyLogResult comes when there are no more.
type PolicyLogResult struct{}

// Denied is a connection that was denied on this host.
type Denied struct {
	Seq      uint64     `json:"seq"` // grows by one
	Time     time.Time  `json:"time"`
	Src      netip.Addr `json:"src"`
	SrcName  string     `json:"src_name,omitempty"` // of the workload that has it, NAMESPACE/NAME
	Dst      netip.Addr `json:"dst"`
	DstName  string     `json:"dst_name,omitempty"`
	Protocol string     `json:"protocol"`
	Port     uint16     `json:"port"` // zero if the protocol has none
	// End is that at which it was denied: egress by the rules of the source, ingress by those of the destination.
	End string `json:"end"`
	// Why says which policy denied it, or which isolate the workload, as they are when it is told.
	Why      string   `json:"why"`
	Policies []string `json:"policies,omitempty"`
	Untold   uint64   `json:"untold,omitempty"` // how many like it before it were not told, as there are too many
}

// PolicyApply makes what manifests say so.
func (c *Client) PolicyApply(ctx context.Context, r PolicyApplyRequest) (p PolicyChanges, err error) {
	return p, c.call(ctx, http.MethodPost, "policy/apply", r, &p)
}

// PolicyDelete deletes objects.
func (c *Client) PolicyDelete(ctx context.Context, r PolicyDeleteRequest) (p PolicyChanges, err error) {
	return p, c.call(ctx, http.MethodPost, "policy/delete", r, &p)
}

// PolicyList lists what there is.
func (c *Client) PolicyList(ctx context.Context) (p PolicyList, err error) {
	return p, c.call(ctx, http.MethodGet, "policy/list", nil, &p)
}

// PolicyShow asks what policies say of a workload.
func (c *Client) PolicyShow(ctx context.Context, r PolicyShowRequest) (p PolicyShown, err error) {
	return p, c.call(ctx, http.MethodPost, "policy/show", r, &p)
}

// PolicyWhy asks whether a connection is allowed, and why.
func (c *Client) PolicyWhy(ctx context.Context, r PolicyWhyRequest) (p PolicyWhy, err error) {
	return p, c.call(ctx, http.MethodPost, "policy/why", r, &p)
}

// PolicyLog asks what was denied; tell is called for each. With r.Follow it goes on until ctx ends, or the daemon.
func (c *Client) PolicyLog(ctx context.Context, r PolicyLogRequest, tell func(PolicyLogProgress)) error {
	_, err := follow[PolicyLogProgress, PolicyLogResult](ctx, c, "policy/log", r, tell)
	return err
}

func servePolicies(mux *http.ServeMux, s Policies) {
	postUpTo(mux, "policy/apply", maxManifests, s.PolicyApply)
	postUpTo(mux, "policy/delete", maxManifests, s.PolicyDelete)
	get(mux, "policy/list", s.PolicyList)
	post(mux, "policy/show", func(_ context.Context, r PolicyShowRequest) (PolicyShown, error) { return s.PolicyShow(r) })
	post(mux, "policy/why", func(_ context.Context, r PolicyWhyRequest) (PolicyWhy, error) { return s.PolicyWhy(r) })
	stream(mux, "policy/log", s.PolicyLog)
}
