// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/weftnet/weft/cni"
)

const (
	socketName  = "weft.sock"            // in the run directory, as internal/api has it
	requestLine = "POST /v1/%s HTTP/1.0" // so that the answer has no chunks, and ends with the connection
	maxAnswer   = 1 << 20                // bytes
	busyPause   = 5 * time.Millisecond
)

// client is the daemon, by its control socket, of which it speaks what the plugin needs: one request, one answer. It is safe for concurrent use.
type client struct{ path string }

func connect(runDir string) cni.Daemon { return client{filepath.Join(runDir, socketName)} }

func (c client) Attach(ctx context.Context, r cni.Request) (a cni.Attachment, err error) {
	return a, c.call(ctx, "cni/attach", r, &a)
}

func (c client) Check(ctx context.Context, r cni.CheckRequest) error {
	return c.call(ctx, "cni/check", r, &struct{}{})
}

func (c client) Detach(ctx context.Context, r cni.Release) error {
	return c.call(ctx, "cni/detach", r, &struct{}{})
}

// call sends a request, and decodes the answer into out.
func (c client) call(ctx context.Context, name string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("asking the daemon: %w", err)
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	head := fmt.Sprintf(requestLine+"\r\nHost: weft\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", name, len(body))
	_, werr := conn.Write(append([]byte(head), body...))
	// Also where not all could be written there may be an answer: why not.
	answer, rerr := io.ReadAll(io.LimitReader(conn, maxAnswer+1))
	status, content, err := parseAnswer(answer)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("asking the daemon on %s: %w", c.path, context.Cause(ctx))
	case errors.Is(err, errCut):
		return fmt.Errorf("%w (socket %s): %w", cni.ErrBrokenOff, c.path, errors.Join(werr, rerr, err))
	case err != nil:
		return fmt.Errorf("the daemon on %s %w; are weft-cni and the daemon of the same version?", c.path, err)
	case status != 200:
		return c.refusal(status, content)
	}
	if err := json.Unmarshal(content, out); err != nil {
		return fmt.Errorf("the daemon on %s gave an answer that cannot be read: %w; are weft-cni and the daemon of the same version?", c.path, err)
	}
	return nil
}

// dial connects; it waits while others keep the daemon too busy to.
func (c client) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", c.path)
		switch {
		case err == nil:
			return conn, nil
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("%w on this host (socket %s)", cni.ErrNotRunning, c.path)
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("socket %s may be opened by root only: the runtime has to run the plugin as root", c.path)
		case !errors.Is(err, syscall.EAGAIN):
			return nil, fmt.Errorf("asking the daemon on %s: %w", c.path, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("asking the daemon on %s: %w", c.path, context.Cause(ctx))
		case <-time.After(busyPause):
		}
	}
}

// refusal is the error that an answer tells.
func (c client) refusal(status int, content []byte) error {
	var f struct {
		Text    string `json:"error"`
		Code    uint   `json:"code"`
		Details string `json:"details"`
	}
	if json.Unmarshal(content, &f) != nil || f.Text == "" {
		return fmt.Errorf("the daemon on %s answered with status %d; are weft-cni and the daemon of the same version?", c.path, status)
	}
	if status == 400 && f.Code == 0 { // it has not looked at what it is about: so DEL keeps it for later
		return fmt.Errorf("the daemon on %s does not understand the plugin: %s", c.path, f.Text)
	}
	return &cni.Error{Code: f.Code, Msg: strings.TrimSuffix(f.Text, "; "+f.Details), Details: f.Details}
}

// errCut says that an answer ends before its end.
var errCut = errors.New("the answer is not complete")

// parseAnswer takes an answer of HTTP apart. The error completes a sentence about the daemon, or is errCut.
func parseAnswer(b []byte) (status int, content []byte, err error) {
	if len(b) > maxAnswer {
		return 0, nil, fmt.Errorf("gave an answer of more than %d bytes", maxAnswer)
	}
	head, content, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	if !ok {
		return 0, nil, errCut
	}
	first, fields, _ := strings.Cut(string(head), "\r\n")
	proto, rest, _ := strings.Cut(first, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err = strconv.Atoi(code)
	plain := bytes.Count(head, []byte("\n")) == bytes.Count(head, []byte("\r\n")) // other ends of lines would be read in more ways than one
	if !plain || !strings.HasPrefix(proto, "HTTP/1.") || err != nil || status < 200 || status > 599 {
		return 0, nil, errors.New("does not speak HTTP")
	}
	for line := range strings.SplitSeq(fields, "\r\n") {
		key, value, _ := strings.Cut(line, ":")
		if !strings.EqualFold(key, "Content-Length") {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 31)
		switch {
		case err != nil:
			return 0, nil, errors.New("does not speak HTTP")
		case uint64(len(content)) < n:
			return 0, nil, errCut
		}
		content = content[:n]
	}
	return status, content, nil
}
