// SPDX-License-Identifier: Apache-2.0

//go:build faultpoints

package fault

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Point marks a step: it ends the process, stops it for as long as somebody wishes, notes that it was reached, or does nothing, as the file says.
func Point(name string) {
	path := os.Getenv(Env)
	if path == "" {
		return
	}
	armed, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return
	}
	if strings.HasPrefix(string(armed), "trace") {
		note(path, name)
		return
	}
	word, how, _ := strings.Cut(string(armed), " ")
	if word != name || os.Remove(path) != nil { // of several that come here at once the one that removes it
		return
	}
	if how == "stop" {
		// A signal to the process may reach another thread, and this one would go on for a while.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGSTOP)
		return
	}
	_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
	select {} // until it has come
}

// note adds the name to the file; a line is written as a whole.
func note(path, name string) {
	f, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	_, _ = f.WriteString("\n" + name)
	_ = f.Close()
}
