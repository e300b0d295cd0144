// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// What a dial to another node can end in. They come wrapped in a [*DialError],
// whose text is "<address> <one of these>".
var (
	ErrWrongToken  = errors.New("has another token: run `weft token` on a node of that mesh and use the token that it prints")
	ErrSelf        = errors.New("is this node itself")
	ErrClone       = errors.New("knows another living node with this node's id: its data directory is a copy; run `weft reset` on one of them")
	ErrNoUniverse  = errors.New("waits to join a mesh itself: give one of the nodes a founder to join, or start one without --peer")
	ErrNotWeft     = errors.New("answers, but not as weft: does another program use that port?")
	ErrVersion     = errors.New("speaks another version of the protocol: run the same release of weft on both")
	ErrUnreachable = errors.New("cannot be reached")
	errRefused     = fmt.Errorf("refused the connection: is weft running there?%w", quiet{ErrUnreachable})
	errNoAnswer    = fmt.Errorf("does not answer: is the host up, and the port open for TCP and UDP?%w", quiet{ErrUnreachable})
	errNoRoute     = fmt.Errorf("has no route from here: is the network up?%w", quiet{ErrUnreachable})
	errClosedEarly = fmt.Errorf("closed the connection at once: is it overloaded or stopping?%w", quiet{ErrUnreachable})
)

// What Send and SetRecord can refuse.
var (
	ErrUnknownNode = errors.New("no such node in the mesh")
	ErrQueueFull   = errors.New("too many messages wait for that node: is it reachable?")
	ErrTooLarge    = errors.New("larger than the mesh carries in one piece")
	ErrNotRunning  = errors.New("the mesh is not running")
)

// quiet joins an error to another one's chain without adding to its text.
type quiet struct{ error }

func (quiet) Error() string   { return "" }
func (q quiet) Unwrap() error { return q.error }

// DialError says what happened to a connection to Addr. Err is one of the
// sentinels above or another cause; errors.Is(err, ErrUnreachable) holds where
// nobody answered there at all.
type DialError struct {
	Addr netip.AddrPort
	Err  error
}

// Error returns "<address> <what happened, and what to do>".
func (e *DialError) Error() string { return e.Addr.String() + " " + e.Err.Error() }

// Unwrap returns Err.
func (e *DialError) Unwrap() error { return e.Err }

// UniverseMismatchError refuses to join two meshes of different universe.
type UniverseMismatchError struct {
	Host         string // the other node, by name or address
	Mine, Theirs UniverseInfo
}

// Error names both meshes and what to do.
func (e *UniverseMismatchError) Error() string {
	return fmt.Sprintf("this node belongs to %v, %s to %v: run `weft reset` here to join it, or remove --peer", e.Mine, e.Host, e.Theirs)
}

// dialError gives the operating system's answers plain names.
func dialError(addr netip.AddrPort, err error) error {
	var mismatch *UniverseMismatchError
	var ne net.Error
	switch {
	case errors.As(err, &mismatch):
		mismatch.Host = addr.String()
		return mismatch
	case errors.Is(err, syscall.ECONNREFUSED):
		err = errRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.ENETDOWN):
		err = errNoRoute
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT),
		errors.As(err, &ne) && ne.Timeout():
		err = errNoAnswer
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		errors.Is(err, io.ErrClosedPipe), errors.Is(err, net.ErrClosed):
		err = errClosedEarly
	}
	return &DialError{Addr: addr, Err: err}
}
