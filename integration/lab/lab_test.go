// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// eventually waits for something that the kernel does in the background.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 500 {
		if f() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("not within 10 s: %s", what)
}

// held reports whether a process or thread of this machine is in the namespace or has it open.
func held(ns string) bool {
	for _, pattern := range []string{"/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return true
		}
		if slices.ContainsFunc(paths, func(p string) bool { return inode(p) == ns }) {
			return true
		}
	}
	return false
}

func alive(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func TestCloseLeavesNothing(t *testing.T) {
	main := inode("/proc/self/ns/net")
	var root, ns string
	var pid int
	t.Run("lab", func(t *testing.T) {
		l := New(t)
		h := l.Host("host", l.Switch("lan"))
		p, err := h.Start(Command{Path: self(t), Env: []string{childMode + "=sleep"}})
		if err != nil {
			t.Fatal(err)
		}
		l.Capture(h.Namespace, "eth0", 0)
		if err := os.WriteFile(filepath.Join(l.SmallDisk(1<<20), "f"), make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("2 MiB on a disk of 1 MiB: %v", err)
		}
		root, ns, pid = l.Root(), inode(h.Path()), p.Pid()
		if !alive(pid) || !held(ns) || ns == main {
			t.Fatalf("child %d alive: %v, namespace %s held: %v", pid, alive(pid), ns, held(ns))
		}
	})
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", root, err)
	}
	if alive(pid) {
		t.Errorf("process %d is still alive", pid)
	}
	eventually(t, "the namespace is gone", func() bool { return !held(ns) })
	if got := inode("/proc/self/ns/net"); got != main {
		t.Errorf("the main thread is in %s, was in %s", got, main)
	}
}

// TestCrash ends a process that has a lab in every way that a process can be ended from outside.
func TestCrash(t *testing.T) {
	for _, tt := range []struct {
		signal  unix.Signal
		cleaned bool // by the process itself
	}{{unix.SIGINT, true}, {unix.SIGTERM, true}, {unix.SIGHUP, true}, {unix.SIGKILL, false}} {
		t.Run(tt.signal.String(), func(t *testing.T) {
			// In a place of its own, so that no other lab removes what the crash leaves; a short one, for sockets.
			tmp, err := os.MkdirTemp("", "lab")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.RemoveAll(tmp); err != nil {
					t.Error(err)
				}
			})
			t.Setenv("TMPDIR", tmp)
			cmd := exec.Command(self(t))
			cmd.Env = append(os.Environ(), childMode+"=lab")
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadBytes('\n')
			var built struct {
				Root, NS string
				Child    int
			}
			if uerr := json.Unmarshal(line, &built); err != nil || uerr != nil {
				t.Fatalf("%v, %v: %s", err, uerr, line)
			}
			if !alive(built.Child) || !held(built.NS) {
				t.Fatal("the lab was not built")
			}
			if err := cmd.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			err = cmd.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != tt.signal {
				t.Errorf("ended with %v, want signal %v", err, tt.signal)
			}
			eventually(t, "the child is gone", func() bool { return !alive(built.Child) })
			eventually(t, "the namespace is gone", func() bool { return !held(built.NS) })
			_, err = os.Stat(built.Root)
			if gone := errors.Is(err, os.ErrNotExist); gone != tt.cleaned {
				t.Errorf("directory gone: %v, want %v", gone, tt.cleaned)
			}
			New(t)
			if _, err := os.Stat(built.Root); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the next lab has not removed %s: %v", built.Root, err)
			}
		})
	}
}

func TestLeftovers(t *testing.T) {
	tmp := t.TempDir()
	mkdir := func(name string, lock bool, age time.Duration) string {
		dir := filepath.Join(tmp, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if lock {
			if err := os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(dir, when, when); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dead := mkdir("weftlab-9999999-dead", true, 0) // more than the kernel counts to
	if err := unix.Mount("tmpfs", dead, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(dead, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	mounted := filepath.Join(dead, "disk")
	if err := os.Mkdir(mounted, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", mounted, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	old := mkdir("weftlab-2-old", false, time.Hour)
	fresh := mkdir("weftlab-3-fresh", false, 0)
	taking := mkdir(fmt.Sprintf("weftlab-%d-taking", os.Getpid()), true, 0) // its maker has not taken the lock yet
	used := mkdir("weftlab-4-used", true, time.Hour)
	lock, err := lockDir(used)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	other := mkdir("other", true, time.Hour)

	removeLeftovers(tmp)
	for dir, want := range map[string]bool{dead: false, old: false, fresh: true, taking: true, used: true, other: true} {
		_, err := os.Stat(dir)
		if got := err == nil; got != want {
			t.Errorf("%s is there: %v, want %v", filepath.Base(dir), got, want)
		}
	}
	if len(mountsBelow(tmp)) != 0 {
		t.Errorf("still mounted: %v", mountsBelow(tmp))
	}
}

func TestRun(t *testing.T) {
	l := New(t)
	h := l.Host("host", l.Switch("lan"))
	ctx := context.Background()
	r, err := h.Run(ctx, Command{Path: self(t), Env: []string{childMode + "=where"}})
	if err != nil {
		t.Fatal(err)
	}
	if want := (Result{Stdout: inode(h.Path()) + "\n", Stderr: "on stderr\n", Code: 7}); r != want {
		t.Errorf("got %+v, want %+v", r, want)
	}
	if _, err := h.Run(ctx, Command{Path: "/nonexistent"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that does not exist: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if r, err := h.Run(short, Command{Path: self(t), Env: []string{childMode + "=sleep"}}); !errors.Is(err, context.DeadlineExceeded) || r.Code != -1 {
		t.Errorf("a program that runs too long: %+v, %v", r, err)
	}
	p, err := h.Start(Command{Path: self(t), Env: []string{childMode + "=sleep"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(10 * time.Millisecond); err == nil {
		t.Error("waiting for a process that runs: no error")
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if code, err := p.Wait(10 * time.Second); code != -1 || err != nil {
		t.Errorf("after SIGTERM: %d, %v", code, err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Errorf("signal to a process that is gone: %v", err)
	}
	l.Close()
	if _, err := h.Run(ctx, Command{Path: self(t), Env: []string{childMode + "=where"}}); err == nil {
		t.Error("a closed lab runs programs")
	}
}

func TestDoStaysOnItsThread(t *testing.T) {
	l := New(t)
	h := l.Host("host", l.Switch("lan"))
	before := inode("/proc/thread-self/ns/net")
	for range 50 {
		if err := h.Do(func() error {
			if got := inode("/proc/thread-self/ns/net"); got != inode(h.Path()) {
				t.Errorf("inside: %s, want %s", got, inode(h.Path()))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	want := errors.New("mine")
	if err := h.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
	if got := inode("/proc/thread-self/ns/net"); got != before {
		t.Errorf("this thread is in %s, was in %s", got, before)
	}
	eventually(t, "all threads are back", func() bool {
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		return err == nil && !slices.ContainsFunc(tasks, func(p string) bool { return inode(p) == inode(h.Path()) })
	})
}

func TestSysctlAndSnapshot(t *testing.T) {
	l := New(t)
	h := l.Host("host", l.Switch("lan"))
	snap := func() []string {
		t.Helper()
		s, err := h.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := snap()
	if again := snap(); !slices.Equal(before, again) {
		t.Errorf("two snapshots of the same state differ:\n%s\n\n%s", strings.Join(before, "\n"), strings.Join(again, "\n"))
	}
	text := strings.Join(before, "\n")
	for _, want := range []string{
		"address 192.168.1.11/24 on eth0", "address 2001:db8:1::b/64 on eth0", "link eth0 veth mtu 1500",
		"route 0.0.0.0/0 via 192.168.1.1 dev eth0 table 254", "sysctl net/ipv4/ip_forward = 0",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if err := h.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	if slices.Equal(before, snap()) {
		t.Error("a change is not seen")
	}
	if v, err := h.ReadSysctl("net/ipv4/ip_forward"); v != "1" || err != nil {
		t.Errorf("ip_forward is %q, %v", v, err)
	}
	if v, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err == nil && bytes.HasPrefix(v, []byte("1")) {
		t.Log("forwarding is on in this process's own namespace too: the check above shows less")
	}
}

func TestDaemon(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "weft")
	if err := os.Symlink(self(t), bin); err != nil {
		t.Fatal(err)
	}
	m := Mesh(t, 2, PerHost(2), Flags("--mtu", "1400"), With(Binary(bin)))
	if m.Token != "secret" || len(m.Workloads) != 4 {
		t.Errorf("token %q, %d workloads", m.Token, len(m.Workloads))
	}
	if _, err := AllReach(50*time.Millisecond, m.Workloads...); err == nil {
		t.Error("workloads without an interface reach each other")
	}
	if w := m.Workloads[3]; w.Host() != m.Hosts()[1] || len(w.Addrs()) != 2 || w.V4.String() != "10.32.0.5" || w.V6.String() != "fd77::5" {
		t.Errorf("workload of %s has %v", w.Host().Name(), w.Addrs())
	}
	h := m.Hosts()[1]
	want := "flags: --name host2 --data-dir " + h.DataDir() + " --run-dir " + h.RunDir() + " --token-file " + h.Dir() +
		"/token --peer 192.168.1.11 --range " + DefaultRange + " --mtu 1400 env: \n"
	if got := h.Log(); got != want {
		t.Errorf("log is %q, want %q", got, want)
	}
	if token, err := os.ReadFile(filepath.Join(h.Dir(), "token")); string(token) != "secret\n" || err != nil {
		t.Errorf("token file holds %q, %v", token, err)
	}
	if err := h.TryLaunch(); err == nil {
		t.Error("a second daemon was launched")
	}
	m.Workloads[3].Detach()
	h.Freeze()
	state := func() string {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(h.Daemon().Pid()), "stat"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(stat))[2]
	}
	eventually(t, "the daemon stands still", func() bool { return state() == "T" })
	h.Thaw()
	eventually(t, "the daemon goes on", func() bool { return state() != "T" })
	if code := h.Terminate(); code != 3 || h.Running() {
		t.Errorf("terminated with %d, running: %v", code, h.Running())
	}
	if err := h.Query(&struct{}{}, "status"); err == nil || !strings.Contains(err.Error(), "no weft daemon is running") {
		t.Errorf("status without a daemon: %v", err)
	}
	h.Env("FAKE=yes")
	h.Relaunch()
	if err := h.WaitReady(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(h.Log(), "env: yes\n") {
		t.Errorf("log is %q", h.Log())
	}
	h.Kill()
	if h.Running() {
		t.Error("a killed daemon runs")
	}
	if r := h.RunLaunch("--refuse"); r.Code != 1 || r.Stderr != "refused\n" {
		t.Errorf("a refusing daemon: %+v", r)
	}
	h.Launch("--refuse")
	if code, err := h.Daemon().Wait(10 * time.Second); code != 1 || err != nil {
		t.Fatalf("%d, %v", code, err)
	}
	if err := os.Remove(filepath.Join(h.RunDir(), "up")); err != nil {
		t.Fatal(err)
	}
	if err := h.WaitReady(10 * time.Second); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("waiting for a daemon that has ended: %v", err)
	}
}
