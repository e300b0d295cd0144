// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// A namespace is a network namespace: an open descriptor, or [here].
type namespace int

// here is the namespace that the process runs in.
const here namespace = -1

// run runs f in the namespace. If that is another one, f runs on a thread that enters it and ends with f: no thread ever
// leaves it again to run other code.
func (n namespace) run(f func() error) error {
	if n == here {
		return f()
	}
	done := make(chan error, 1)
	go func() { done <- n.enter(f) }()
	return <-done
}

// enter runs f on its thread for good: the caller is a goroutine that ends next.
func (n namespace) enter(f func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end. As long as it is locked to this goroutine, which only waits, another goroutine gets another.
		defer runtime.UnlockOSThread()
		return n.run(f)
	}
	if err := unix.Setns(int(n), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering a network namespace: %w; CAP_SYS_ADMIN is needed", err)
	}
	return f()
}
