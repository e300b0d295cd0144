// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Command says what to run inside a namespace.
type Command struct {
	Path   string
	Args   []string  // without the program's name
	Env    []string  // in addition to PATH and HOME
	Dir    string    // default: the lab's directory
	User   uint32    // user and group id
	Stdin  io.Reader // default: empty
	Stdout io.Writer // default: discarded; a *os.File is passed on as it is
	Stderr io.Writer
}

// A Process runs inside a namespace. It is killed when the lab closes or this process dies, whichever comes first. Its
// methods are safe for concurrent use.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process is gone
}

// Start starts a program inside the namespace, in a process group of its own, so that Ctrl-C in a terminal does not reach it.
func (n *Namespace) Start(c Command) (*Process, error) {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + n.lab.root}, c.Env...)
	cmd.Dir = c.Dir
	if cmd.Dir == "" {
		cmd.Dir = n.lab.root
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if c.User != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.User, Gid: c.User}
		cmd.Dir = "/" // the lab's directory is root's
	}
	cmd.WaitDelay = time.Second
	p := &Process{cmd: cmd, done: make(chan struct{})}

	started := make(chan error, 1)
	go func() {
		// The child takes over the namespace of the thread that starts it, and is killed when that thread ends. So the
		// thread waits for the child.
		err := n.Do(func() error {
			var err error
			// Between the start and its registration the lab cannot close and miss it.
			if lerr := n.lab.add(func() {
				if err = cmd.Start(); err == nil {
					n.lab.processes[p] = struct{}{}
				}
			}); lerr != nil {
				err = lerr
			}
			started <- err
			if err != nil {
				return nil
			}
			_ = cmd.Wait() // how it ended is in cmd.ProcessState
			return nil
		})
		if err != nil {
			started <- err
		}
		close(p.done)
		n.lab.mu.Lock()
		defer n.lab.mu.Unlock()
		if !n.lab.closed { // else Close is done with the map
			delete(n.lab.processes, p)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s on %s: %w", c.Path, n.name, err)
	}
	return p, nil
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process is gone.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal; to a process that is gone it sends nothing.
func (p *Process) Signal(s unix.Signal) error {
	err := p.cmd.Process.Signal(s)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

func (p *Process) kill() { _ = p.cmd.Process.Kill() }

// Kill kills the process and waits until it is gone.
func (p *Process) Kill() {
	p.kill()
	<-p.done
}

// Wait waits until the process is gone, at most for the given time, and returns its exit code: -1 if a signal ended it.
func (p *Process) Wait(timeout time.Duration) (int, error) {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-t.C:
		return 0, fmt.Errorf("%s (pid %d) still runs after %v", p.cmd.Path, p.Pid(), timeout)
	}
}

// A Result is what a program that has ended left.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code, -1 if a signal ended it
}

// Run runs a program inside the namespace to its end. Ending with an exit code other than 0 is no error; not ending before
// the context does is: the program is killed then. The command's Stdout and Stderr are not used.
func (n *Namespace) Run(ctx context.Context, c Command) (Result, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	p, err := n.Start(c)
	if err != nil {
		return Result{}, err
	}
	select {
	case <-p.done:
		err = nil
	case <-ctx.Done():
		p.Kill()
		err = fmt.Errorf("%s %v on %s: %w", c.Path, c.Args, n.name, ctx.Err())
	}
	return Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: p.cmd.ProcessState.ExitCode()}, err
}
