// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Object is one as JSON has it.
type Object = map[string]any

// Fate is what becomes of a request.
type Fate int

// The fates of a request.
const (
	Pass   Fate = iota
	Refuse      // the connection breaks before it takes effect
	Lose        // the connection breaks after it took effect
	Forbid      // it is answered 403
)

// Request is one as it is counted.
type Request struct {
	Agent    string // User-Agent
	Verb     string // get, list, watch, create, patch
	Resource string // plural
	Name     string // of the object, if there is one
}

// change is an event of a watch.
type change struct {
	version int
	kind    string // ADDED, MODIFIED, DELETED
	path    string
	object  []byte // JSON
}

// Server is an API server. Its methods are safe for concurrent use.
type Server struct {
	http *http.Server
	mem  *listener

	mu      sync.Mutex
	objects map[string][]byte // JSON, by path: namespace/plural/name, without a namespace where there is none
	version int
	history []change
	news    chan struct{} // closed and made anew at every change
	fate    func(Request) Fate
	down    bool
	lists   bool            // no watch begins with what there is
	unknown map[string]bool // plurals that are not served
	oldest  int             // version; what is older is gone
	counts  map[Request]int // without names
	watches atomic.Int64    // open
}

// New starts a server, which has no objects.
func New() *Server {
	s := &Server{objects: map[string][]byte{}, news: make(chan struct{}), counts: map[Request]int{}, mem: newListener()}
	s.http = &http.Server{Handler: http.HandlerFunc(s.serve)} //nolint:gosec // G112: only tests are its clients
	go func() { _ = s.http.Serve(s.mem) }()
	return s
}

// Handler answers as the server does.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// Listen serves a port of this host as well, and returns its address.
func (s *Server) Listen() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() { _ = s.http.Serve(ln) }()
	return ln.Addr().String(), nil
}

// Close ends the server and all connections.
func (s *Server) Close() error { return s.http.Close() }

// Dial connects to the server, whatever the address.
func (s *Server) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	return s.mem.dial(ctx)
}

// SetDown takes the server off the network, with all connections, or back.
func (s *Server) SetDown(down bool) {
	s.mu.Lock()
	s.down = down
	s.wake()
	s.mu.Unlock()
}

// SetListsOnly has the server refuse watches that begin with what there is, as those do that do not know them: what there is has to be listed.
func (s *Server) SetListsOnly(only bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists = only
}

// SetFate has f decide about each request from now on.
func (s *Server) SetFate(f func(Request) Fate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fate = f
}

// SetServed says whether there is a resource, as one of a CustomResourceDefinition may not be.
func (s *Server) SetServed(plural string, served bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unknown == nil {
		s.unknown = map[string]bool{}
	}
	s.unknown[plural] = !served
}

// Forget has the server know no more than what there is now: who wants to go on from earlier is told to begin anew.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history, s.oldest = nil, s.version
}

// Watches is how many watches are open.
func (s *Server) Watches() int { return int(s.watches.Load()) }

// Count is how many requests there were for which f is true.
func (s *Server) Count(f func(Request) bool) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, c := range s.counts {
		if f(r) {
			n += c
		}
	}
	return n
}

// Put creates an object, or replaces one, as something else in the cluster would. Path is [NAMESPACE/]PLURAL/NAME.
func (s *Server) Put(path string, o Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(path, o)
}

// Load is Put of an object that is complete and in JSON already, with its name and a version: one of very many.
func (s *Server) Load(path string, object []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := "ADDED"
	if _, ok := s.objects[path]; ok {
		kind = "MODIFIED"
	}
	s.version++
	s.objects[path] = object
	s.history = append(s.history, change{version: s.version, kind: kind, path: path, object: object})
	s.wake()
}

// Edit changes an object if it is there.
func (s *Server) Edit(path string, edit func(o Object)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := decode(s.objects[path]); o != nil {
		edit(o)
		s.put(path, o)
	}
}

// Delete removes an object.
func (s *Server) Delete(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := decode(s.objects[path]); o != nil {
		delete(s.objects, path)
		s.tell("DELETED", path, o)
	}
}

// Get returns an object, nil if it is not there.
func (s *Server) Get(path string) Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return decode(s.objects[path])
}

// List returns the objects whose path begins like this.
func (s *Server) List(prefix string) (all []Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, path := range slices.Sorted(maps.Keys(s.objects)) {
		if strings.HasPrefix(path, prefix) {
			all = append(all, decode(s.objects[path]))
		}
	}
	return all
}

// put stores an object under a new version. The caller has the lock.
func (s *Server) put(path string, o Object) {
	kind := "MODIFIED"
	before := decode(s.objects[path])
	if before == nil {
		kind = "ADDED"
	}
	o = decode(encode(o))
	meta := metaOf(o)
	parts := strings.Split(path, "/")
	meta["name"] = parts[len(parts)-1]
	if len(parts) == 3 {
		meta["namespace"] = parts[0]
	}
	meta["uid"] = fmt.Sprintf("uid-%d", s.version+1)
	if before != nil {
		meta["uid"] = metaOf(before)["uid"]
	}
	o["apiVersion"], o["kind"] = kindOf(parts[len(parts)-2])
	s.tell(kind, path, o)
}

func (s *Server) tell(kind, path string, o Object) {
	s.version++
	meta := metaOf(o)
	meta["resourceVersion"] = strconv.Itoa(s.version)
	if meta["generation"] == nil {
		meta["generation"] = 1
	}
	object := encode(o)
	if kind != "DELETED" {
		s.objects[path] = object
	}
	s.history = append(s.history, change{version: s.version, kind: kind, path: path, object: object})
	s.wake()
}

func (s *Server) wake() {
	close(s.news)
	s.news = make(chan struct{})
}

func metaOf(o Object) Object {
	m, ok := o["metadata"].(Object)
	if !ok {
		m = Object{}
		o["metadata"] = m
	}
	return m
}

func encode(o Object) []byte {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err) // an object of a test that JSON does not know
	}
	return b
}

func decode(b []byte) (o Object) {
	if b == nil {
		return nil
	}
	if err := json.Unmarshal(b, &o); err != nil {
		panic(err) // as above
	}
	return o
}

func kindOf(plural string) (apiVersion, kind string) {
	switch plural {
	case "nodes":
		return "v1", "Node"
	case "secrets":
		return "v1", "Secret"
	case "configmaps":
		return "v1", "ConfigMap"
	case "services":
		return "v1", "Service"
	case "events":
		return "v1", "Event"
	case "daemonsets":
		return "apps/v1", "DaemonSet"
	case "pods":
		return "v1", "Pod"
	case "namespaces":
		return "v1", "Namespace"
	case "networkpolicies":
		return "networking.k8s.io/v1", "NetworkPolicy"
	case "clusternetworkpolicies":
		return "policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"
	case "servicecidrs":
		return "networking.k8s.io/v1", "ServiceCIDR"
	}
	panic("kubetest knows no " + plural)
}

// listener accepts connections in memory.
type listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newListener() *listener {
	return &listener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *listener) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, io.EOF
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }
