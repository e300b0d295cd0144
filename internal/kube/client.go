// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// requestPatience bounds one request; watches last longer.
	requestPatience = 10 * time.Second
	// steadyRate and burst bound what one node asks of the API server, in requests per second.
	steadyRate = 5
	burst      = 20
	// ahead is how many bytes of an answer the API server may send before they are read. What it sends of 30,000 pods would be 4 MiB ahead otherwise.
	ahead = 256 << 10
)

// versionCluster is that of ClusterNetworkPolicy.
const versionCluster = "v1alpha2"

// A Cluster is the API server of the cluster, and who asks it. Its methods are safe for concurrent use.
type Cluster struct {
	host                             string
	core, apps, networking, policies *rest.RESTClient
}

// Connect prepares a client of the API server: by the file kubeconfig, or as the service account of the pod that this runs in if that is
// empty. It sends nothing yet. agent is how the API server's log names it.
func Connect(kubeconfig, agent string) (*Cluster, error) {
	var config *rest.Config
	var err error
	if kubeconfig == "" {
		if config, err = rest.InClusterConfig(); errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("this is no pod of a Kubernetes cluster (KUBERNETES_SERVICE_HOST is not set); run it in one, or give --kubeconfig")
		}
	} else {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("finding the Kubernetes API server: %w", err)
	}
	config.UserAgent = agent
	return connect(config)
}

// ConnectTo prepares a client of the API server that dial leads to, without encryption or credentials.
func ConnectTo(dial func(ctx context.Context, network, address string) (net.Conn, error), agent string) (*Cluster, error) {
	return connect(&rest.Config{Host: "http://kubernetes", Dial: dial, UserAgent: agent})
}

func connect(config *rest.Config) (*Cluster, error) {
	config.QPS, config.Burst = steadyRate, burst
	config.WarningHandler = rest.NoWarnings{}
	config.ContentType = runtime.ContentTypeJSON
	config.Wrap(func(t http.RoundTripper) http.RoundTripper {
		if of, ok := t.(*http.Transport); ok && of.HTTP2 == nil {
			of.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: ahead}
		}
		return t
	})
	codecs := serializer.NewCodecFactory(objects()).WithoutConversion()
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("preparing the connection to the Kubernetes API server: %w", err)
	}
	c := &Cluster{host: config.Host}
	for _, g := range []struct {
		to      **rest.RESTClient
		group   string
		version string
		apiPath string
	}{
		{&c.core, "", "v1", "/api"},
		{&c.apps, "apps", "v1", "/apis"},
		{&c.networking, "networking.k8s.io", "v1", "/apis"},
		{&c.policies, "policy.networking.k8s.io", versionCluster, "/apis"},
	} {
		of := rest.CopyConfig(config)
		of.APIPath, of.GroupVersion, of.NegotiatedSerializer = g.apiPath, &schema.GroupVersion{Group: g.group, Version: g.version}, codecs
		if *g.to, err = rest.RESTClientForConfigAndClient(of, transport); err != nil {
			return nil, fmt.Errorf("preparing the connection to the Kubernetes API server: %w", err)
		}
	}
	return c, nil
}

// resource names objects of one kind.
type resource struct {
	client    *rest.RESTClient
	namespace string // empty: they have none
	plural    string
}

func (c *Cluster) nodes() resource               { return resource{c.core, "", "nodes"} }
func (c *Cluster) secrets(ns string) resource    { return resource{c.core, ns, "secrets"} }
func (c *Cluster) configMaps(ns string) resource { return resource{c.core, ns, "configmaps"} }
func (c *Cluster) services(ns string) resource   { return resource{c.core, ns, "services"} }
func (c *Cluster) events(ns string) resource     { return resource{c.core, ns, "events"} }
func (c *Cluster) daemonSets(ns string) resource { return resource{c.apps, ns, "daemonsets"} }
func (c *Cluster) serviceCIDRs() resource        { return resource{c.networking, "", "servicecidrs"} }
func (c *Cluster) namespaces() resource          { return resource{c.core, "", "namespaces"} }
func (c *Cluster) pods() resource                { return resource{c.core, "", "pods"} }
func (c *Cluster) networkPolicies() resource     { return resource{c.networking, "", "networkpolicies"} }

func (c *Cluster) clusterNetworkPolicies() resource {
	return resource{c.policies, "", "clusternetworkpolicies"}
}

func (r resource) on(q *rest.Request) *rest.Request {
	return q.NamespaceIfScoped(r.namespace, r.namespace != "").Resource(r.plural)
}

func (r resource) get(ctx context.Context, name string, into runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, requestPatience)
	defer cancel()
	return said(r.on(r.client.Get()).Name(name).Do(ctx).Into(into))
}

func (r resource) list(ctx context.Context, into runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, requestPatience)
	defer cancel()
	return said(r.on(r.client.Get()).Do(ctx).Into(into))
}

func (r resource) create(ctx context.Context, o runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, requestPatience)
	defer cancel()
	return said(r.on(r.client.Post()).Body(o).Do(ctx).Error())
}

// patch changes fields of an object, or of its subresource if one is named.
func (r resource) patch(ctx context.Context, name, subresource string, kind types.PatchType, change any) error {
	ctx, cancel := context.WithTimeout(ctx, requestPatience)
	defer cancel()
	body, err := json.Marshal(change)
	if err != nil {
		return fmt.Errorf("writing a patch of %s %s: %w", r.plural, name, err)
	}
	q := r.on(r.client.Patch(kind)).Name(name)
	if subresource != "" {
		q = q.SubResource(subresource)
	}
	return said(q.Body(body).Do(ctx).Error())
}

// lister lists and watches the objects of a resource, or the one that is named, and tells heard what became of each try. It is used by one
// goroutine at a time.
type lister struct {
	of    resource
	name  string // empty: all
	list  func(io.Reader) (runtime.Object, error)
	heard func(error)

	begun time.Time     // the last watch
	wait  time.Duration // before the next one, if that did not last
}

const (
	// A watch that ended within lasting has not lasted: the next one waits, from firstWait on up to lastWait, and up to half of that more.
	lasting   = 10 * time.Second
	firstWait = 250 * time.Millisecond
	lastWait  = 30 * time.Second
)

// pace keeps watches apart. The reflector does so where it notices an error; where the server, or what is in front of it, accepts connections only
// to close them, it notices none.
func (l *lister) pace(ctx context.Context) error {
	if l.begun.IsZero() || time.Since(l.begun) > l.wait+lasting {
		l.wait = 0
	} else {
		l.wait = min(max(2*l.wait, firstWait), lastWait)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(l.wait + rand.N(l.wait/2)):
		}
	}
	l.begun = time.Now()
	return nil
}

func (l *lister) options(o metav1.ListOptions) *metav1.ListOptions {
	if l.name != "" {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, l.name).String()
	}
	return &o
}

func (l *lister) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	body, err := l.of.on(l.of.client.Get()).VersionedParams(l.options(o), metav1.ParameterCodec).Stream(ctx)
	var all runtime.Object
	if err == nil {
		all, err = l.list(body)
		err = errors.Join(err, body.Close())
	}
	l.heard(said(err))
	if err != nil {
		return nil, err //nolint:wrapcheck // the reflector looks at what it is
	}
	return all, nil
}

func (l *lister) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	if err := l.pace(ctx); err != nil {
		return nil, err
	}
	o.Watch = true
	w, err := l.of.on(l.of.client.Get()).VersionedParams(l.options(o), metav1.ParameterCodec).Watch(ctx)
	if err != nil {
		l.heard(said(err))
		return nil, err //nolint:wrapcheck // the reflector looks at what it is
	}
	return w, nil
}

// List and Watch are what the interface of a lister had before it knew contexts.
func (l *lister) List(o metav1.ListOptions) (runtime.Object, error) {
	return l.ListWithContext(context.Background(), o)
}

// Watch is like List.
func (l *lister) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return l.WatchWithContext(context.Background(), o)
}

// What the API server answers that is looked at.
var (
	errMissing  = errors.New("there is no such object")
	errExists   = errors.New("there is such an object already")
	errConflict = errors.New("the object has changed meanwhile")
	errRights   = errors.New("the service account lacks the right to do so; apply the manifest again, whose ClusterRole and Role grant it")
)

// said brings an error of the API server into one line, which wraps one of the errors above where it is one of them.
func said(err error) error {
	var op *net.OpError
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w (%s)", errMissing, brief(err))
	case apierrors.IsAlreadyExists(err):
		return fmt.Errorf("%w (%s)", errExists, brief(err))
	case apierrors.IsConflict(err):
		return fmt.Errorf("%w (%s)", errConflict, brief(err))
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w (%s)", errRights, brief(err))
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("the API server does not answer in time")
	case errors.As(err, &op):
		return fmt.Errorf("the API server cannot be reached: %w", op)
	}
	return errors.New(brief(err))
}

// brief is an error's text as one bounded line.
func brief(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	const most = 300
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// unmet tells whether an object could not be changed as it is not the one that was read.
func unmet(err error) bool {
	return errors.Is(err, errConflict) || errors.Is(err, errExists) || errors.Is(err, errMissing)
}
