// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// commandTimeout is how long a weft command may take.
const commandTimeout = 30 * time.Second

// logTail is how many lines of a daemon's log a failed test shows.
const logTail = 40

var errNoBinary = errors.New("no weft binary: set WEFT_BIN or run by make")

// DataDir returns the --data-dir of the host's daemon.
func (h *Host) DataDir() string { return filepath.Join(h.dir, "data") }

// RunDir returns the --run-dir of the host's daemon.
func (h *Host) RunDir() string { return filepath.Join(h.dir, "run") }

// LogFile returns the file that the daemon's output goes to, of all its runs one after the other.
func (h *Host) LogFile() string { return filepath.Join(h.dir, "log") }

// Log returns what the host's daemons have written so far.
func (h *Host) Log() string {
	b, err := os.ReadFile(h.LogFile())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err.Error()
	}
	return string(b)
}

// Launch starts the host's daemon with --name, --data-dir and --run-dir of the host and the flags given (later ones win). It
// does not wait for anything: see [Host.WaitReady].
func (h *Host) Launch(flags ...string) {
	h.lab.tb.Helper()
	if err := h.TryLaunch(flags...); err != nil {
		h.lab.tb.Fatalf("lab: %v", err)
	}
}

// Env sets environment variables ("NAME=value") of the host's daemon from its next launch on.
func (h *Host) Env(env ...string) { h.env = env }

// By makes the host's launches run another program than the weft binary, one that becomes it in its own way.
func (h *Host) By(program string) { h.program = program }

// launcher returns the program that launches run.
func (h *Host) launcher() (string, error) {
	if h.lab.binary == "" {
		return "", errNoBinary
	}
	if h.program != "" {
		return h.program, nil
	}
	return h.lab.binary, nil
}

// TryLaunch is [Host.Launch] that returns the error.
func (h *Host) TryLaunch(flags ...string) error {
	program, err := h.launcher()
	if err != nil {
		return err
	}
	if h.Running() {
		return fmt.Errorf("%s: its daemon runs already, pid %d", h.name, h.daemon.Pid())
	}
	log, err := os.OpenFile(h.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own descriptor
	h.flags = flags
	h.daemon, err = h.Start(Command{Path: program, Args: h.launchArgs(flags), Env: h.env, Stdout: log, Stderr: log})
	return err
}

func (h *Host) launchArgs(flags []string) []string {
	return append([]string{"launch", "--name", h.name, "--data-dir", h.DataDir(), "--run-dir", h.RunDir()}, flags...)
}

// endsWithin is how long a daemon may need to end that has let go of all that another one needs, which is when weft stop returns.
const endsWithin = 10 * time.Second

// Relaunch starts the daemon again with the flags of the last launch. It waits for one that is about to end.
func (h *Host) Relaunch() {
	h.lab.tb.Helper()
	if h.daemon != nil {
		select {
		case <-h.daemon.Done():
		case <-time.After(endsWithin):
		}
	}
	h.Launch(h.flags...)
}

// RunLaunch runs a daemon that is expected to refuse and end, with the flags that Launch would use, and returns what it said.
func (h *Host) RunLaunch(flags ...string) Result {
	h.lab.tb.Helper()
	program, err := h.launcher()
	if err != nil {
		h.lab.tb.Fatalf("lab: %v", err)
	}
	return h.command(program, h.env, h.launchArgs(flags)...)
}

// Running reports whether the host's daemon runs.
func (h *Host) Running() bool {
	if h.daemon == nil {
		return false
	}
	select {
	case <-h.daemon.Done():
		return false
	default:
		return true
	}
}

// Daemon returns the process of the last launch, nil if there was none.
func (h *Host) Daemon() *Process { return h.daemon }

// Kill kills the daemon (SIGKILL) and waits until it is gone.
func (h *Host) Kill() {
	h.lab.tb.Helper()
	if h.daemon == nil {
		h.lab.tb.Fatalf("lab: %s has no daemon to kill", h.name)
	}
	h.daemon.Kill()
}

// Freeze stops the daemon as it is (SIGSTOP), as a host does that has no time for it. [Host.Thaw] lets it go on.
func (h *Host) Freeze() {
	h.lab.tb.Helper()
	h.signal(unix.SIGSTOP)
}

// Thaw lets the daemon go on (SIGCONT).
func (h *Host) Thaw() {
	h.lab.tb.Helper()
	h.signal(unix.SIGCONT)
}

func (h *Host) signal(s unix.Signal) {
	h.lab.tb.Helper()
	if !h.Running() {
		h.lab.tb.Fatalf("lab: %s has no daemon to send %v to", h.name, s)
	}
	if err := h.daemon.Signal(s); err != nil {
		h.lab.tb.Fatalf("lab: sending %v to the daemon of %s: %v", s, h.name, err)
	}
}

// Terminate asks the daemon to end (SIGTERM), waits until it is gone and returns its exit code.
func (h *Host) Terminate() int {
	h.lab.tb.Helper()
	if h.daemon == nil {
		h.lab.tb.Fatalf("lab: %s has no daemon to end", h.name)
	}
	err := h.daemon.Signal(unix.SIGTERM)
	code := 0
	if err == nil {
		code, err = h.daemon.Wait(commandTimeout)
	}
	if err != nil {
		h.lab.tb.Fatalf("lab: ending the daemon of %s: %v", h.name, err)
	}
	return code
}

// Weft runs a weft command that talks to the host's daemon, and returns what it said. The command ends the test if it does
// not end within 30 s.
func (h *Host) Weft(args ...string) Result {
	h.lab.tb.Helper()
	if h.lab.binary == "" {
		h.lab.tb.Fatalf("lab: %v", errNoBinary)
	}
	return h.command(h.lab.binary, h.commandEnv(), args...)
}

// commandEnv is the environment of commands that talk to the host's daemon.
func (h *Host) commandEnv() []string { return []string{"WEFT_RUN_DIR=" + h.RunDir()} }

func (h *Host) command(program string, env []string, args ...string) Result {
	h.lab.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	r, err := h.Run(ctx, Command{Path: program, Args: args, Env: env})
	if err != nil {
		h.lab.tb.Fatalf("lab: %v", err)
	}
	return r
}

// TryWeft is [Host.Weft] that returns the error.
func (h *Host) TryWeft(ctx context.Context, args ...string) (Result, error) {
	if h.lab.binary == "" {
		return Result{}, errNoBinary
	}
	return h.Run(ctx, Command{Path: h.lab.binary, Args: args, Env: h.commandEnv()})
}

// Query runs a weft command with --json and decodes its answer into v.
func (h *Host) Query(v any, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	r, err := h.TryWeft(ctx, append(slices.Clone(args), "--json")...)
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return fmt.Errorf("weft %s on %s: exit code %d: %s", strings.Join(args, " "), h.name, r.Code, strings.TrimSpace(r.Stderr))
	}
	if err := json.Unmarshal([]byte(r.Stdout), v); err != nil {
		return fmt.Errorf("weft %s on %s: %w in %q", strings.Join(args, " "), h.name, err, r.Stdout)
	}
	return nil
}

// WaitReady waits until the daemon says that it is ready.
func (h *Host) WaitReady(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		var status struct {
			Ready bool `json:"ready"`
		}
		err := h.Query(&status, "status")
		switch {
		case err == nil && status.Ready:
			return nil
		case !h.Running():
			return fmt.Errorf("the daemon of %s has ended:\n%s", h.name, tail(h.Log(), logTail))
		case time.Now().After(deadline):
			if err == nil {
				err = errors.New("the daemon answers that it is not")
			}
			return fmt.Errorf("%s is not ready after %v: %w", h.name, timeout, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Token returns the mesh's token as the host's daemon tells it.
func (h *Host) Token() string {
	h.lab.tb.Helper()
	r := h.Weft("token", "--raw")
	if r.Code != 0 || strings.TrimSpace(r.Stdout) == "" {
		h.lab.tb.Fatalf("lab: weft token --raw on %s: exit code %d: %s", h.name, r.Code, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// Join launches the daemon with the token and the flags, and with the other hosts' v4 addresses (v6 where there is no v4) as
// peers.
func (h *Host) Join(token string, peers []*Host, flags ...string) {
	h.lab.tb.Helper()
	args := []string{"--token-file", h.File("token", token+"\n", 0o600)}
	for _, p := range peers {
		addr := p.link.v4
		if !addr.IsValid() || !h.link.v4.IsValid() {
			addr = p.link.v6
		}
		args = append(args, "--peer", addr.String())
	}
	h.Launch(append(args, flags...)...)
}

// addresses is what a workload got when it was attached.
type addresses struct{ V4, V6 netip.Addr }

// Attach attaches the workload to its host's daemon and keeps the addresses that it got.
func (w *Workload) Attach(flags ...string) {
	w.lab.tb.Helper()
	if err := w.TryAttach(flags...); err != nil {
		w.lab.tb.Fatalf("lab: %v", err)
	}
}

// TryAttach is [Workload.Attach] that returns the error.
func (w *Workload) TryAttach(flags ...string) error {
	var answer struct {
		Addresses []string `json:"addresses"`
	}
	if err := w.host.Query(&answer, append([]string{"attach", "--netns", w.Path()}, flags...)...); err != nil {
		return err
	}
	w.addresses = addresses{}
	for _, s := range answer.Addresses {
		host, _, _ := strings.Cut(s, "/")
		a, err := netip.ParseAddr(host)
		if err != nil {
			return fmt.Errorf("attach on %s answers with the address %q: %w", w.host.name, s, err)
		}
		if a.Is4() {
			w.V4 = a
		} else {
			w.V6 = a
		}
	}
	if !w.V4.IsValid() && !w.V6.IsValid() {
		return fmt.Errorf("attach on %s answers with no address", w.host.name)
	}
	return nil
}

// Addrs returns the workload's addresses, v4 first.
func (w *Workload) Addrs() []netip.Addr {
	var out []netip.Addr
	for _, a := range []netip.Addr{w.V4, w.V6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// Detach detaches the workload from its host's daemon.
func (w *Workload) Detach() {
	w.lab.tb.Helper()
	if r := w.host.Weft("detach", "--netns", w.Path()); r.Code != 0 {
		w.lab.tb.Fatalf("lab: detaching %s: exit code %d: %s", w.name, r.Code, r.Stderr)
	}
}

// dumpLogs shows the ends of all daemons' logs.
func (l *Lab) dumpLogs() {
	for _, h := range l.hosts {
		if log := h.Log(); log != "" {
			l.tb.Logf("log of %s, its last lines:\n%s", h.name, tail(log, logTail))
		}
	}
}

// tail returns the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
