// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

// serve answers on a socket until the test ends, each connection by f; it returns the run directory.
func serve(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	dir := t.TempDir()
	ln, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				f(c)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return dir
}

// saying answers every request with text.
func saying(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = c.Read(make([]byte, 64<<10))
		_, _ = io.WriteString(c, text)
	}
}

// TestControlSocket speaks to the server of the daemon.
func TestControlSocket(t *testing.T) {
	daemon := &apitest.Daemon{}
	dir := apitest.Serve(t, daemon)
	d := connect(dir)
	r := cni.Request{Key: cni.Key{ContainerID: "c1", IfName: "eth0"}, Network: "n", Netns: "/n", IPs: []netip.Addr{netip.MustParseAddr("10.32.0.9")}, Pod: cni.Pod{Name: "ä<>&"}}
	got, err := d.Attach(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want, err := api.NewClient(dir).CNIAttach(t.Context(), r) // which the daemon refuses if it read another request before
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v, %v", got, want, err)
	}
	check := cni.CheckRequest{Key: r.Key, Network: "n", Netns: "/n", Want: got}
	if err := d.Check(t.Context(), check); err != nil {
		t.Error(err)
	}
	check.Want.Addresses = []netip.Addr{netip.MustParseAddr("10.32.0.10")}
	var refused *cni.Error
	if err := d.Check(t.Context(), check); !errors.As(err, &refused) || *refused != (cni.Error{Code: cni.CodeDiffers, Msg: "it has [10.32.0.9], not [10.32.0.10]", Details: "make it anew"}) {
		t.Errorf("got %+v, %v", refused, err)
	}
	many := cni.Release{Network: "n"} // all containers of a large host
	for i := range 5000 {
		many.Valid = append(many.Valid, cni.Key{ContainerID: strings.Repeat("0", 120) + strconv.Itoa(i), IfName: "eth0"})
	}
	if err := d.Detach(t.Context(), many); err != nil {
		t.Error(err)
	}
	if err := d.Check(t.Context(), cni.CheckRequest{Key: r.Key, Network: "n"}); !errors.As(err, &refused) || refused.Code != cni.CodeUnknown {
		t.Errorf("GC has not released it: %v", err)
	}
	daemon.Refuse = "not now"
	if err := d.Detach(t.Context(), cni.Release{}); !errors.As(err, &refused) || *refused != (cni.Error{Code: cni.CodeFailed, Msg: "not now"}) {
		t.Errorf("got %v", err)
	}
}

// TestErrors holds how each way not to get an answer is told to cni, and to the runtime.
func TestErrors(t *testing.T) {
	huge := "HTTP/1.0 200 OK\r\n\r\n" + strings.Repeat(" ", maxAnswer)
	for name, c := range map[string]struct {
		answer string
		is     error
		want   string
	}{
		"nothing":            {"", cni.ErrBrokenOff, "the weft daemon ended before it answered (socket SOCKET): the answer is not complete"},
		"half a head":        {"HTTP/1.0 200 OK\r\nConte", cni.ErrBrokenOff, ""},
		"half an answer":     {"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n{\"mtu\":1", cni.ErrBrokenOff, ""},
		"no HTTP":            {"SSH-2.0-x\r\n\r\n", nil, "the daemon on SOCKET does not speak HTTP; are weft-cni and the daemon of the same version?"},
		"no status":          {"HTTP/1.0 OK\r\n\r\n", nil, "the daemon on SOCKET does not speak HTTP; are weft-cni and the daemon of the same version?"},
		"no length":          {"HTTP/1.0 200 OK\r\nContent-Length: -1\r\n\r\n", nil, "the daemon on SOCKET does not speak HTTP; are weft-cni and the daemon of the same version?"},
		"huge":               {huge, nil, "the daemon on SOCKET gave an answer of more than 1048576 bytes; are weft-cni and the daemon of the same version?"},
		"no JSON":            {"HTTP/1.1 200 OK\r\n\r\n<html>", nil, "the daemon on SOCKET gave an answer that cannot be read: invalid character '<' looking for beginning of value; are weft-cni and the daemon of the same version?"},
		"an older daemon":    {"HTTP/1.0 404 Not Found\r\n\r\n404 page not found\n", nil, "the daemon on SOCKET answered with status 404; are weft-cni and the daemon of the same version?"},
		"a newer plugin":     {"HTTP/1.0 400 Bad Request\r\n\r\n{\"error\":\"request cni/attach cannot be read\"}", nil, "the daemon on SOCKET does not understand the plugin: request cni/attach cannot be read"},
		"a refusal":          {"HTTP/1.0 409 Conflict\r\nContent-Length: 67\r\n\r\n{\"error\":\"no address is free; see x\",\"code\":11,\"details\":\"see x\"}\n  ", nil, "no address is free; see x"},
		"a refusal of old":   {"HTTP/1.0 409 Conflict\r\n\r\n{\"error\":\"no address is free; see x\"}", nil, "no address is free; see x"},
		"no text of refusal": {"HTTP/1.0 409 Conflict\r\n\r\n{}", nil, "the daemon on SOCKET answered with status 409; are weft-cni and the daemon of the same version?"},
	} {
		dir := serve(t, saying(c.answer))
		_, err := connect(dir).Attach(t.Context(), cni.Request{})
		if err == nil || c.is != nil && !errors.Is(err, c.is) || c.is == nil && (errors.Is(err, cni.ErrBrokenOff) || errors.Is(err, cni.ErrNotRunning)) {
			t.Errorf("%s: got %v, want %v", name, err, c.is)
			continue
		}
		if want := strings.ReplaceAll(c.want, "SOCKET", filepath.Join(dir, socketName)); want != "" && err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", name, err, want)
		}
		var refused *cni.Error
		if errors.As(err, &refused) != strings.HasPrefix(name, "a refusal") {
			t.Errorf("%s: a refusal, or none: %v", name, err)
		}
		if name == "a refusal" && *refused != (cni.Error{Code: 11, Msg: "no address is free", Details: "see x"}) {
			t.Errorf("got %+v", *refused)
		}
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, socketName)
	want := "no weft daemon is running on this host (socket " + path + ")"
	if err := connect(dir).Check(t.Context(), cni.CheckRequest{}); !errors.Is(err, cni.ErrNotRunning) || err.Error() != want {
		t.Errorf("no socket: got %v, want %s", err, want)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if err := connect(dir).Detach(t.Context(), cni.Release{}); !errors.Is(err, cni.ErrNotRunning) || err.Error() != want {
		t.Errorf("a socket that nobody listens on: got %v, want %s", err, want)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := connect(dir).Check(t.Context(), cni.CheckRequest{}); !errors.Is(err, cni.ErrNotRunning) {
		t.Errorf("no socket, but a file: %v", err)
	}
}

// TestHungDaemon: the end of the context is the end of the waiting.
func TestHungDaemon(t *testing.T) {
	dir := serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := connect(dir).Check(ctx, cni.CheckRequest{})
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, cni.ErrBrokenOff) {
		t.Errorf("got %v", err)
	}
}

// TestBusyDaemon: one that does not get round to accepting is waited for.
func TestBusyDaemon(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, socketName)}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("unix", filepath.Join(dir, socketName)) // the queue is full with it
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := connect(dir).Check(ctx, cni.CheckRequest{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- connect(dir).Check(t.Context(), cni.CheckRequest{}) }()
	for range 2 {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = unix.Write(c, []byte("HTTP/1.0 200 OK\r\n\r\n{}"))
		_ = unix.Shutdown(c, unix.SHUT_WR)
		defer func() { _ = unix.Close(c) }()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRequestLargerThanTheServerReads(t *testing.T) {
	dir := serve(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 100))
		_, _ = io.WriteString(c, "HTTP/1.0 400 Bad Request\r\n\r\n{\"error\":\"too large\"}")
	})
	r := cni.Release{Valid: make([]cni.Key, 100_000)}
	err := connect(dir).Detach(t.Context(), r)
	if err == nil || !strings.Contains(err.Error(), "does not understand the plugin: too large") && !errors.Is(err, cni.ErrBrokenOff) { // which of the two is the kernel's choice
		t.Errorf("got %v", err)
	}
}

// FuzzAnswer compares with Go's own client: where it finds an answer, so is this one.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("HTTP/1.0 409 Conflict\r\nContent-Type: application/json\r\n\r\n{\"error\":\"x\"}\n"))
	f.Add([]byte("HTTP/1.1 200\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		status, content, err := parseAnswer(b)
		if err != nil {
			return
		}
		if status < 200 || status > 599 || len(content) > len(b) {
			t.Errorf("status %d, %d bytes of %d", status, len(content), len(b))
		}
		res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
		if err != nil || len(res.TransferEncoding) > 0 || status == http.StatusNoContent || status == http.StatusNotModified {
			return // laxer than it, or what the daemon does not send
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err == nil && (res.StatusCode != status || !bytes.Equal(body, content)) {
			t.Errorf("%q: %d and %q, want %s and %q", b, status, content, strconv.Itoa(res.StatusCode), body)
		}
	})
}
