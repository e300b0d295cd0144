// SPDX-License-Identifier: Apache-2.0

// Package netspace runs code in a network namespace. No thread that has entered one runs other code afterwards. The kernel paths of router/fastpath and
// internal/hostnet import the package, and nothing else. Linux only.
package netspace

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Here is the namespace that the process runs in, for [Run].
const Here = -1

// Run runs f in the namespace of an open descriptor, or in the process's own, and returns its error. If it is another one, f runs on a thread that
// enters it (setns(2), for which CAP_SYS_ADMIN is needed) and ends with f: no thread ever leaves it again to run other code.
func Run(fd int, f func() error) error {
	if fd == Here {
		return f()
	}
	done := make(chan error, 1)
	go func() { done <- enter(fd, f) }()
	return <-done
}

// enter runs f on its thread for good: the caller is a goroutine that ends next.
func enter(fd int, f func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end, and its namespace is what others see as that of the process. As long as it is
		// locked to this goroutine, which only waits, another goroutine gets another thread.
		defer runtime.UnlockOSThread()
		return Run(fd, f)
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering a network namespace: %w; CAP_SYS_ADMIN is needed", err)
	}
	return f()
}
