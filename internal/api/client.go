// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const maxAnswer = 64 << 20

// ErrNotRunning says that no daemon answers on the socket.
var ErrNotRunning = errors.New("no weft daemon is running")

// Refusal is the error that the daemon gave as its answer: it has not done what it was asked for.
type Refusal struct {
	Text string // one line, which says why, and what to do
}

func (r *Refusal) Error() string { return r.Text }

// Client talks to the daemon whose run directory it was made for. It is safe
// for concurrent use.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client; nothing is sent before the first call.
func NewClient(runDir string) *Client {
	c := &Client{path: filepath.Join(runDir, SocketName)}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", c.path)
		},
	}
	return c
}

// Status asks how the daemon is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodGet, "status", nil, &s)
}

// Peers lists the other nodes.
func (c *Client) Peers(ctx context.Context) (p []Peer, err error) {
	return p, c.call(ctx, http.MethodGet, "peers", nil, &p)
}

// Workloads lists what is attached.
func (c *Client) Workloads(ctx context.Context) (w []Workload, err error) {
	return w, c.call(ctx, http.MethodGet, "workloads", nil, &w)
}

// IPAM tells who owns how much and what is allocated.
func (c *Client) IPAM(ctx context.Context) (i IPAM, err error) {
	return i, c.call(ctx, http.MethodGet, "ipam", nil, &i)
}

// Token asks for the mesh's token.
func (c *Client) Token(ctx context.Context) (t Token, err error) {
	return t, c.call(ctx, http.MethodGet, "token", nil, &t)
}

// Attach attaches a namespace; asked again, it gives the same answer.
func (c *Client) Attach(ctx context.Context, r AttachRequest) (w Workload, err error) {
	return w, c.call(ctx, http.MethodPost, "attach", r, &w)
}

// Detach detaches a namespace; one that is not attached is no error.
func (c *Client) Detach(ctx context.Context, r DetachRequest) (d DetachResult, err error) {
	return d, c.call(ctx, http.MethodPost, "detach", r, &d)
}

// Leave takes the node out of its mesh for good. With r.Drain it waits first, and tells progress what for; the waiting
// ends when ctx does, and the node goes on as before then.
func (c *Client) Leave(ctx context.Context, r LeaveRequest, progress func(LeaveProgress)) (LeaveResult, error) {
	return follow[LeaveProgress, LeaveResult](ctx, c, "leave", r, progress)
}

// PID returns the daemon's process as this namespace of processes knows it, which
// the kernel tells; 0 if it is in another one.
func (c *Client) PID(ctx context.Context) (int, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return 0, fmt.Errorf("asking the daemon: %w", err)
	}
	defer func() { _ = conn.Close() }()
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("asking the daemon: %T is no unix socket", conn)
	}
	rc, err := uc.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("asking the daemon: %w", err)
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, fmt.Errorf("asking the daemon: %w", err)
	}
	if cerr != nil {
		return 0, fmt.Errorf("asking the daemon: %w", cerr)
	}
	return int(cred.Pid), nil
}

func (c *Client) call(ctx context.Context, method, name string, in, out any) error {
	res, err := c.send(ctx, method, name, in)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return c.brokeOff(err)
	}
	if res.StatusCode != http.StatusOK {
		return c.refusal(res, b)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the daemon's answer cannot be read: %w; are weft and its daemon of the same version?", err)
	}
	return nil
}

// send sends a request and returns the answer, whose body the caller closes.
func (c *Client) send(ctx context.Context, method, name string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("asking the daemon: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://weft/v1/"+name, body)
	if err != nil {
		return nil, fmt.Errorf("asking the daemon: %w", err)
	}
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w on this host (socket %s); start it with: weft launch, or name its --run-dir", ErrNotRunning, c.path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("socket %s may be opened by root only; run weft as root", c.path)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the request, which says nothing to anybody
		}
		return nil, fmt.Errorf("the daemon on %s ended before it answered, and has done this or not; start it if it does not run, and repeat this: %w", c.path, err)
	case err != nil:
		return nil, fmt.Errorf("asking the daemon on %s: %w", c.path, err)
	}
	return res, nil
}

func (c *Client) brokeOff(err error) error {
	return fmt.Errorf("the daemon on %s broke off its answer: %w; see its log", c.path, err)
}

// refusal is the error that an answer tells.
func (c *Client) refusal(res *http.Response, body []byte) error {
	var f failure
	if json.Unmarshal(body, &f) == nil && f.Error != "" {
		return f.err()
	}
	return fmt.Errorf("the daemon on %s answered %s; are weft and its daemon of the same version?", c.path, res.Status)
}
