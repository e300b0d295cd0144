// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/dirs"
)

const (
	maxBody         = 64 << 10
	shutdownTimeout = 2 * time.Second
)

// Server answers the requests that come by one socket.
type Server struct {
	ln   net.Listener
	path string
	made dirs.Made
	svc  Service
	log  *zap.Logger

	handling sync.WaitGroup // requests
}

// Listen makes the socket in runDir, which is made with mode 0700 if it is not
// there; the socket has mode 0600. A socket left by a daemon that is gone is
// replaced; one that answers is not.
func Listen(ctx context.Context, runDir string, svc Service, log *zap.Logger) (*Server, error) {
	path := filepath.Join(runDir, SocketName)
	if len(path) > 107 { // sun_path, unix(7)
		return nil, fmt.Errorf("socket path %s is longer than the 107 bytes that a unix socket may have; choose a shorter --run-dir", path)
	}
	made, err := dirs.Make(runDir)
	if err != nil {
		return nil, fmt.Errorf("run %w; choose another with --run-dir", err)
	}
	ln, err := listen(ctx, runDir, path)
	if err != nil {
		made.Remove()
		return nil, err
	}
	return &Server{ln: ln, path: path, svc: svc, log: log, made: made}, nil
}

func listen(ctx context.Context, runDir, path string) (net.Listener, error) {
	dialer := net.Dialer{Timeout: time.Second}
	if c, err := dialer.DialContext(ctx, "unix", path); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("another daemon answers on %s; stop it (weft stop --run-dir %s) or choose another --run-dir", path, runDir)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket %s cannot be replaced: %w; choose another --run-dir", path, err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket %s cannot be made: %w; choose another --run-dir", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("socket %s cannot be closed to other users: %w", path, err)
	}
	return ln, nil
}

// Path is the socket's path.
func (s *Server) Path() string { return s.path }

// Run serves until ctx ends, lets running requests finish for two seconds, and
// removes the socket, and the directory if it was made for it.
func (s *Server) Run(ctx context.Context) error {
	mux := s.handler()
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.handling.Add(1)
			defer s.handling.Done()
			mux.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          zap.NewStdLog(s.log),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(s.ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("control socket %s: %w", s.path, err)
	case <-ctx.Done():
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(sctx); err != nil {
		_ = srv.Close()
	}
	err := <-done
	s.handling.Wait()
	s.made.Remove()
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket %s: %w", s.path, err)
	}
	return nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	get(mux, "status", func(context.Context) (Status, error) { return s.svc.Status(), nil })
	get(mux, "peers", func(context.Context) ([]Peer, error) { return s.svc.Peers(), nil })
	get(mux, "workloads", func(context.Context) ([]Workload, error) { return s.svc.Workloads(), nil })
	get(mux, "ipam", func(context.Context) (IPAM, error) { return s.svc.IPAM(), nil })
	get(mux, "token", func(context.Context) (Token, error) { return s.svc.Token() })
	post(mux, "attach", s.svc.Attach)
	post(mux, "detach", s.svc.Detach)
	stream(mux, "leave", s.svc.Leave)
	stream(mux, "forget", s.svc.Forget)
	stream(mux, "rotate", s.svc.Rotate)
	stream(mux, "revoke-old", s.svc.RevokeOld)
	post(mux, "explain", func(_ context.Context, r ExplainRequest) (Explanation, error) { return s.svc.Explain(r) })
	post(mux, "gc", func(_ context.Context, r GCRequest) (GCResult, error) { return s.svc.GC(r) })
	serveWireGuard(mux, s.svc)
	serveTargets(mux, s.svc)
	serveCNI(mux, s.svc)
	serveLabels(mux, s.svc)
	servePolicies(mux, s.svc)
	post(mux, "path", s.svc.Path)
	post(mux, "stop", func(_ context.Context, r StopRequest) (StopResult, error) { return s.svc.Stop(r), nil })
	stream(mux, "bench", s.svc.Bench)
	stream(mux, "events", s.svc.Events)
	return mux
}

func get[R any](mux *http.ServeMux, name string, f func(context.Context) (R, error)) {
	mux.HandleFunc("GET /v1/"+name, func(w http.ResponseWriter, r *http.Request) {
		res, err := f(r.Context())
		answer(w, res, err)
	})
}

func post[Q, R any](mux *http.ServeMux, name string, f func(context.Context, Q) (R, error)) {
	postUpTo(mux, name, maxBody, f)
}

// postUpTo is post for bodies of so many bytes.
func postUpTo[Q, R any](mux *http.ServeMux, name string, limit int64, f func(context.Context, Q) (R, error)) {
	mux.HandleFunc("POST /v1/"+name, func(w http.ResponseWriter, r *http.Request) {
		var q Q
		if !decode(w, r, name, limit, &q) {
			return
		}
		_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, limit)) // as in stream
		res, err := f(r.Context(), q)
		answer(w, res, err)
	})
}

// decode reads a request's body, or answers that it cannot be read.
func decode(w http.ResponseWriter, r *http.Request, name string, limit int64, into any) bool {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	if !strings.HasPrefix(name, "cni/") { // a plugin may be newer than the daemon, as that runs on while it is installed
		dec.DisallowUnknownFields()
	}
	if err := dec.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		w.WriteHeader(http.StatusBadRequest)
		encode(w, failure{Error: fmt.Sprintf("request %s cannot be read: %v; are weft and its daemon of the same version?", name, err)})
		return false
	}
	return true
}

// failure is the answer in place of a result. Requests of the plugin have a code for the runtime, and the end of the text, which says what
// to do, by itself.
type failure struct {
	Error   string `json:"error"`
	Code    uint   `json:"code,omitempty"`
	Details string `json:"details,omitempty"`
}

func failed(err error) failure {
	f := failure{Error: err.Error()}
	var ce *cni.Error
	if errors.As(err, &ce) {
		f.Code, f.Details = ce.Code, ce.Details
	}
	return f
}

// err is the error that was told.
func (f failure) err() error {
	if f.Code != 0 {
		return &cni.Error{Code: f.Code, Msg: strings.TrimSuffix(f.Error, "; "+f.Details), Details: f.Details}
	}
	return &Refusal{Text: f.Error}
}

func answer(w http.ResponseWriter, res any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusConflict)
		encode(w, failed(err))
		return
	}
	encode(w, res)
}

// encode writes to a client that may have gone: there is nobody to tell.
func encode(w io.Writer, v any) { _ = json.NewEncoder(w).Encode(v) }
