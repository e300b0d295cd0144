// SPDX-License-Identifier: Apache-2.0

// Package netlock sees to it that one network namespace has one daemon.
//
// The lock is a listening unix socket with an abstract name (unix(7)): such
// names belong to the network namespace, as Weft's devices do, and vanish with
// the process, however it ends. Whoever finds the lock taken connects to it and
// reads who holds it. Anybody in the namespace may take an abstract name, so a
// holder of another user is no daemon, and is reported as what it is.
// internal/node imports the package, and nothing else.
package netlock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	name    = "@weft/daemon"
	timeout = 2 * time.Second
)

// Holder says who holds the lock.
type Holder struct {
	PID    int    `json:"pid"`
	Socket string `json:"socket"` // its control socket
}

// TakenError says that another daemon runs in the network namespace.
type TakenError struct{ Holder Holder }

func (e *TakenError) Error() string {
	return fmt.Sprintf("a weft daemon already runs in this network namespace (pid %d, socket %s); stop it (weft stop) or use it", e.Holder.PID, e.Holder.Socket)
}

// Lock is a lock held. Close gives it up.
type Lock struct {
	ln   net.Listener
	done sync.WaitGroup
}

// Take takes the lock of the network namespace of the calling thread for h. It
// fails with *TakenError if another daemon has it; one that is just being killed
// it gives two seconds to be gone.
func Take(ctx context.Context, h Holder) (*Lock, error) { return take(ctx, name, h) }

func take(ctx context.Context, name string, h Holder) (*Lock, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", name)
	for end := time.Now().Add(timeout); errors.Is(err, syscall.EADDRINUSE); ln, err = lc.Listen(ctx, "unix", name) {
		if err := taken(ctx, name); !ends(err) || time.Now().After(end) || ctx.Err() != nil {
			return nil, err
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return nil, fmt.Errorf("taking the lock of the network namespace: %w", err)
	}
	answer, err := json.Marshal(h)
	if err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("taking the lock of the network namespace: %w", err)
	}
	l := &Lock{ln: ln}
	l.done.Go(func() { l.serve(answer) })
	return l, nil
}

// serve tells everyone who asks who holds the lock, one after the other.
func (l *Lock) serve(answer []byte) {
	for {
		c, err := l.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond) // out of descriptors, say
			continue
		}
		_ = c.SetDeadline(time.Now().Add(timeout))
		_, _ = c.Write(answer)
		_ = c.Close()
	}
}

// Close gives up the lock and waits for its goroutine.
func (l *Lock) Close() error {
	err := l.ln.Close()
	l.done.Wait()
	if err != nil {
		return fmt.Errorf("giving up the lock of the network namespace: %w", err)
	}
	return nil
}

// ends tells whether the holder seems to be a process that is just ending, as after a kill -9.
func ends(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrUnexpectedEOF)
}

func taken(ctx context.Context, name string) error {
	dialer := net.Dialer{Timeout: timeout}
	c, err := dialer.DialContext(ctx, "unix", name)
	if err != nil {
		return fmt.Errorf("another process holds the lock of this network namespace, and does not answer: %w; look for it with: ss -xlp", err)
	}
	defer func() { _ = c.Close() }()
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return errors.New("another process holds the lock of this network namespace")
	}
	cred, err := peerCredentials(uc)
	if err != nil {
		return fmt.Errorf("another process holds the lock of this network namespace: %w", err)
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d holds the abstract socket %s that only a weft daemon should hold; end that process", cred.Pid, cred.Uid, name)
	}
	_ = c.SetDeadline(time.Now().Add(timeout))
	var h Holder
	b, err := io.ReadAll(io.LimitReader(c, 4096))
	if err == nil && len(b) == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = json.Unmarshal(b, &h)
	}
	if err != nil {
		return fmt.Errorf("process %d holds the lock of this network namespace, and does not say what it is: %w; end that process", cred.Pid, err)
	}
	return &TakenError{h}
}

func peerCredentials(c *net.UnixConn) (*unix.Ucred, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("asking who it is: %w", err)
	}
	var cred *unix.Ucred
	var serr error
	if err := rc.Control(func(fd uintptr) {
		cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, fmt.Errorf("asking who it is: %w", err)
	}
	if serr != nil {
		return nil, fmt.Errorf("asking who it is: %w", serr)
	}
	return cred, nil
}
