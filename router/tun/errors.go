// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// What can be the matter with a device; test with errors.Is on an *Error.
var (
	// ErrName means that the kernel allows no device of that name.
	ErrName = errors.New("bad device name")
	// ErrMissing means that the host has no /dev/net/tun.
	ErrMissing = errors.New("no /dev/net/tun")
	// ErrPermission means that this process may not make network devices.
	ErrPermission = errors.New("no permission")
	// ErrBusy means that another process has the device open.
	ErrBusy = errors.New("device busy")
	// ErrKind means that a device of that name exists that is not a
	// multi-queue TUN device.
	ErrKind = errors.New("device of another kind")
	// ErrUnsupported means that the kernel lacks what Open needs, unless that is asked for a portable device.
	ErrUnsupported = errors.New("not supported by the kernel")
)

// Error is what Open and Delete return. Its text is one line: what happened, to which
// device, and what to do.
type Error struct {
	// Name is the device.
	Name string
	// Kind is one of the sentinels of this package, or nil if none fits.
	Kind error
	// Err is what the kernel said, or nil.
	Err error

	text string
}

// Error returns the line.
func (e *Error) Error() string { return e.text }

// Unwrap returns Kind and Err, as far as they are there.
func (e *Error) Unwrap() []error {
	var all []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

func newError(name string, kind, err error, format string, args ...any) *Error {
	return &Error{Name: name, Kind: kind, Err: err, text: fmt.Sprintf(format, args...)}
}

// cloneError explains why the clone device could not be opened.
func cloneError(name string, err error) *Error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return newError(name, ErrMissing, err,
			"%s is missing: load the tun module (modprobe tun) or, in a container, pass --device %s", clonePath, clonePath)
	case errors.Is(err, fs.ErrPermission):
		return newError(name, ErrPermission, err,
			"opening %s is not allowed: run as root or, in a container, pass --device %s", clonePath, clonePath)
	}
	return newError(name, nil, err, "opening %s for %s: %v", clonePath, name, err)
}

// attachError explains why TUNSETIFF failed.
func attachError(name string, err error) *Error {
	switch {
	case errors.Is(err, unix.EPERM):
		return newError(name, ErrPermission, err, "creating %s needs CAP_NET_ADMIN: run as root or grant the capability", name)
	case errors.Is(err, unix.EBUSY):
		return busyError(name, err)
	case errors.Is(err, unix.EINVAL):
		return kindError(name, err)
	}
	return newError(name, nil, err, "creating %s: %v", name, err)
}

func busyError(name string, err error) *Error {
	return newError(name, ErrBusy, err, "%s is in use by another process: stop that one or choose another device name", name)
}

func kindError(name string, err error) *Error {
	return newError(name, ErrKind, err,
		"%s exists but is not a multi-queue TUN device: if nobody needs it, remove it (ip link delete %s)", name, name)
}

// goneError is what a Queue returns once its device cannot come back. It
// matches os.ErrClosed, because there is nothing left to read or write.
type goneError struct {
	name string
	err  error
}

func (e *goneError) Error() string {
	return fmt.Sprintf("%s was deleted while in use: start again to make a new one", e.name)
}

func (e *goneError) Unwrap() []error { return []error{os.ErrClosed, e.err} }
