// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
)

// podSource is an API server that has nothing but pods, which it makes up while it writes them, so that they take no memory.
type podSource struct {
	http *http.Server
	ln   *pipes
	pods int
	old  bool // it knows no watch that begins with what there is
	sent atomic.Int64
}

func newPodSource(pods int, old bool) *podSource {
	s := &podSource{ln: &pipes{conns: make(chan net.Conn), done: make(chan struct{})}, pods: pods, old: old}
	s.http = &http.Server{Handler: s}
	go func() { _ = s.http.Serve(s.ln) }()
	return s
}

func (s *podSource) Close() error { return s.http.Close() }

func (s *podSource) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case s.ln.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pod is one of 2 KiB, half of what they are with their volumes, probes and managed fields.
func (s *podSource) pod(i int) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"deployment-%d-7d4b9c8f6d-%05d","namespace":"namespace-%d","uid":"5f0c7e1a-0000-4000-8000-%012d","resourceVersion":"%d",`+
		`"labels":{"app.kubernetes.io/name":"app-%d","app.kubernetes.io/part-of":"shop","pod-template-hash":"7d4b9c8f6d"},"managedFields":[{"fieldsV1":{"f:metadata":"%s"}}]},`+
		`"spec":{"nodeName":"node-%d","containers":[{"name":"main","image":"%s","ports":[{"name":"http","containerPort":8080,"protocol":"TCP"}]}]},`+
		`"status":{"phase":"Running","podIPs":[{"ip":"10.%d.%d.%d"}]}}`,
		i/10, i, i/300, i, i+1, i/10, strings.Repeat("f", 800), i/30, strings.Repeat("i", 500), 32+i>>16, i>>8&255, i&255)
}

func (s *podSource) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	pods := 0
	if strings.HasSuffix(r.URL.Path, "/pods") {
		pods = s.pods
	}
	w.Header().Set("Content-Type", "application/json")
	say := func(format string, args ...any) {
		n, _ := fmt.Fprintf(w, format, args...)
		s.sent.Add(int64(n))
	}
	switch {
	case q.Get("watch") == "":
		limit, _ := strconv.Atoi(q.Get("limit"))
		from, _ := strconv.Atoi(q.Get("continue"))
		to := min(from+limit, pods)
		next := ""
		if to < pods {
			next = strconv.Itoa(to)
		}
		say(`{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"%d","continue":%q},"items":[`, s.pods+1, next)
		for i := from; i < to; i++ {
			if i > from {
				say(",")
			}
			say("%s", s.pod(i))
		}
		say("]}")
		return
	case q.Get("sendInitialEvents") != "" && s.old:
		w.WriteHeader(http.StatusUnprocessableEntity)
		say(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422,"message":"sendInitialEvents is forbidden"}`)
		return
	case q.Get("sendInitialEvents") != "":
		for i := range pods {
			say(`{"type":"ADDED","object":%s}`, s.pod(i))
		}
		say(`{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"%d","annotations":{"k8s.io/initial-events-end":"true"}}}}`, s.pods+1)
	}
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	<-r.Context().Done()
}

// pipes accepts connections in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, io.EOF
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.done:
		return errors.New("closed twice")
	default:
		close(p.done)
		return nil
	}
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }
