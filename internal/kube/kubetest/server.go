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
	object  Object
}

// Server is an API server. Its methods are safe for concurrent use.
type Server struct {
	http *http.Server
	mem  *listener

	mu      sync.Mutex
	objects map[string]Object // by path: namespace/plural/name, without a namespace where there is none
	version int
	history []change
	news    chan struct{} // closed and made anew at every change
	fate    func(Request) Fate
	down    bool
	counts  map[Request]int // without names
	watches atomic.Int64    // open
}

// New starts a server, which has no objects.
func New() *Server {
	s := &Server{objects: map[string]Object{}, news: make(chan struct{}), counts: map[Request]int{}, mem: newListener()}
	s.http = &http.Server{Handler: http.HandlerFunc(s.serve)} //nolint:gosec // G112: only tests are its clients
	go func() { _ = s.http.Serve(s.mem) }()
	return s
}

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

// SetFate has f decide about each request from now on.
func (s *Server) SetFate(f func(Request) Fate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fate = f
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

// Edit changes an object if it is there.
func (s *Server) Edit(path string, edit func(o Object)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.objects[path]; ok {
		o = clone(o)
		edit(o)
		s.put(path, o)
	}
}

// Delete removes an object.
func (s *Server) Delete(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.objects[path]; ok {
		delete(s.objects, path)
		s.tell("DELETED", path, o)
	}
}

// Get returns an object, nil if it is not there.
func (s *Server) Get(path string) Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return clone(s.objects[path])
}

// List returns the objects whose path begins like this.
func (s *Server) List(prefix string) (all []Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, path := range slices.Sorted(maps.Keys(s.objects)) {
		if strings.HasPrefix(path, prefix) {
			all = append(all, clone(s.objects[path]))
		}
	}
	return all
}

// put stores an object under a new version. The caller has the lock.
func (s *Server) put(path string, o Object) {
	kind := "MODIFIED"
	before, ok := s.objects[path]
	if !ok {
		kind = "ADDED"
	}
	o = clone(o)
	meta := metaOf(o)
	parts := strings.Split(path, "/")
	meta["name"] = parts[len(parts)-1]
	if len(parts) == 3 {
		meta["namespace"] = parts[0]
	}
	meta["uid"] = fmt.Sprintf("uid-%d", s.version+1)
	if ok {
		meta["uid"] = metaOf(before)["uid"]
	}
	o["apiVersion"], o["kind"] = kindOf(parts[len(parts)-2])
	s.objects[path] = o
	s.tell(kind, path, o)
}

func (s *Server) tell(kind, path string, o Object) {
	s.version++
	o = clone(o)
	metaOf(o)["resourceVersion"] = strconv.Itoa(s.version)
	if kind != "DELETED" {
		s.objects[path] = o
	}
	s.history = append(s.history, change{version: s.version, kind: kind, path: path, object: o})
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

// clone is a deep copy, in the types that JSON has.
func clone(o Object) Object {
	if o == nil {
		return nil
	}
	b, err := json.Marshal(o)
	if err != nil {
		panic(err) // an object of a test that JSON does not know
	}
	var c Object
	if err := json.Unmarshal(b, &c); err != nil {
		panic(err)
	}
	return c
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
