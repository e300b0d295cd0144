// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// TB is what a lab needs of its user; [testing.TB] is one.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	// Fatalf reports the failure and ends the calling goroutine.
	Fatalf(format string, args ...any)
	// Cleanup registers a function that runs when the test ends, last one first.
	Cleanup(func())
	Failed() bool
}

// An Option changes how a lab is made.
type Option func(*Lab)

// Binary names the weft binary that hosts run. The default is the environment variable WEFT_BIN.
func Binary(path string) Option { return func(l *Lab) { l.binary = path } }

// A Lab owns everything that it builds: namespaces, processes, captures and one directory.
type Lab struct {
	tb     TB
	binary string
	root   string
	lock   *os.File // held as long as the lab lives: see leftovers
	marker string
	done   chan struct{} // closed by Close

	mu         sync.Mutex
	closed     bool
	namespaces []*Namespace
	processes  map[*Process]struct{}
	captures   []*Capture
	wires      []*wire
	talks      []*Talk
	mounts     []string
	segments   int
	named      int // namespaces made so far

	hosts []*Host // the test's goroutine only
}

// New makes an empty lab that ends with the test. It first removes what labs of dead processes have left behind.
func New(tb TB, options ...Option) *Lab {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatalf("lab: network namespaces need root: run as root")
	}
	removeLeftovers(os.TempDir())
	l := &Lab{tb: tb, binary: os.Getenv("WEFT_BIN"), processes: map[*Process]struct{}{}, done: make(chan struct{})}
	for _, o := range options {
		o(l)
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		tb.Fatalf("lab: %v", err)
	}
	l.marker = "weft-lab-marker-" + hex.EncodeToString(random[:])
	root, err := os.MkdirTemp("", dirPrefix(os.Getpid()))
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	l.root = root
	if l.lock, err = lockDir(root); err != nil {
		tb.Fatalf("lab: %v", err)
	}
	if err := os.Mkdir(filepath.Join(root, namespaceDir), 0o700); err != nil {
		tb.Fatalf("lab: %v", err)
	}
	if len(root) > 64 {
		tb.Fatalf("lab: %s is too long for the path of a unix socket below it: set TMPDIR", root)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			l.dumpLogs()
		}
		l.Close()
	})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go l.watch(signals)
	return l
}

// Root returns the lab's directory. It is removed with the lab.
func (l *Lab) Root() string { return l.root }

// Marker returns a string that is unique to the lab. [Lab.Transfer] puts it into the payload every few hundred bytes, so a
// capture in which it does not occur has seen none of the payload in clear.
func (l *Lab) Marker() string { return l.marker }

// Hosts returns all hosts in the order in which they were made.
func (l *Lab) Hosts() []*Host { return l.hosts }

// Close kills the processes, removes the namespaces and the directory. Further calls wait for the first.
func (l *Lab) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	for p := range l.processes {
		p.kill()
	}
	for p := range l.processes {
		<-p.done
	}
	for _, c := range l.captures {
		c.Stop()
	}
	for _, t := range l.talks {
		t.end()
	}
	for _, w := range l.wires {
		w.cut()
	}
	for _, n := range l.namespaces {
		n.close()
	}
	l.removeRoot()
	close(l.done)
}

func (l *Lab) removeRoot() {
	for _, m := range l.mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			l.tb.Logf("lab: unmounting %s: %v", m, err)
		}
	}
	if err := os.RemoveAll(l.root); err != nil {
		l.tb.Logf("lab: %v", err)
	}
	if err := l.lock.Close(); err != nil {
		l.tb.Logf("lab: %v", err)
	}
}

// watch closes the lab when a signal asks the process to end, and then lets the signal do what it would have done.
func (l *Lab) watch(signals chan os.Signal) {
	defer signal.Stop(signals)
	select {
	case <-l.done:
	case s := <-signals:
		l.tb.Logf("lab: %v: removing what was built", s)
		l.Close()
		// Other labs of this process do the same: wait until their directories are gone too.
		for range 100 {
			if dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix(os.Getpid())+"*")); err != nil || len(dirs) == 0 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		signal.Reset(s)
		if sig, ok := s.(unix.Signal); ok {
			_ = unix.Kill(os.Getpid(), sig)
		}
	}
}

// SmallDisk makes a file system of the given size in bytes and returns its path. It goes with the lab.
func (l *Lab) SmallDisk(size int) string {
	l.tb.Helper()
	dir, err := os.MkdirTemp(l.root, "disk-")
	if err != nil {
		l.tb.Fatalf("lab: %v", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		l.tb.Fatalf("lab: mounting a small file system: %v", err)
	}
	l.mounts = append(l.mounts, dir)
	return dir
}

// add hands something over to the lab, unless it is closed already.
func (l *Lab) add(f func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("lab: closed")
	}
	f()
	return nil
}

func dirPrefix(pid int) string { return fmt.Sprintf("weftlab-%d-", pid) }

// lockDir takes the lock that tells a directory in use from one left behind. It goes with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return f, nil
}

// removeLeftovers removes the directories of labs whose process is gone, and what is mounted in them. It is best effort:
// whatever cannot be removed does not disturb a new lab.
func removeLeftovers(tmp string) {
	dirs, err := filepath.Glob(filepath.Join(tmp, "weftlab-*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		st, err := os.Stat(filepath.Join(dir, "lock"))
		made := err == nil
		switch {
		case made && !st.Mode().IsRegular():
			continue
		case !made:
			if st, err = os.Stat(dir); err != nil {
				continue
			}
		}
		// Either it was made just now and its maker makes or takes the lock next, or its maker died in between.
		if time.Since(st.ModTime()) < time.Minute && (!made || makerLives(dir)) {
			continue
		}
		lock, err := lockDir(dir)
		if err != nil {
			continue
		}
		for _, m := range mountsBelow(dir) {
			_ = unix.Unmount(m, unix.MNT_DETACH)
		}
		_ = os.RemoveAll(dir)
		_ = lock.Close()
	}
}

// makerLives reports whether there is a process with the number of the one that made a lab's directory.
func makerLives(dir string) bool {
	pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), "weftlab-"), "-")
	_, err := os.Stat(filepath.Join("/proc", pid))
	return err == nil
}

// mountsBelow returns the mount points below dir, deepest first.
func mountsBelow(dir string) []string {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			out = append([]string{fields[4]}, out...)
		}
	}
	return out
}
