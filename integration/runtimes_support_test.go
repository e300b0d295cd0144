// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

const (
	// binDir and confDir are where container runtimes look for plugins and networks.
	binDir  = "/opt/cni/bin"
	confDir = "/etc/cni/net.d"
	// podImage is what containers are made of: nothing but the program in integration/pod.
	podImage = "localhost/pod:test"
	// podPort is where containers answer.
	podPort = "8080"
)

// machine is a host that has not only a network, but processes and files of its own: /etc, /opt and /var are copies that go with it, /run is empty.
type machine struct {
	*lab.Host
	t      *testing.T
	root   string // a file system of its own
	enter  []string
	cgroup string // below which its containers have theirs
}

// newMachine makes a machine of a host, whose daemon is to run on it as well.
func newMachine(t *testing.T, h *lab.Host) *machine {
	t.Helper()
	m := &machine{Host: h, t: t, root: filepath.Join(h.Dir(), "root"), cgroup: "weft-test-" + filepath.Base(filepath.Dir(h.Dir())) + "-" + h.Name()}
	script := `set -eu
root=$1
mkdir "$root"
mount -t tmpfs -o mode=0755 tmpfs "$root"
for d in etc opt var; do
	mkdir "$root/$d" "$root/$d.work"
	mount -t overlay overlay -o "lowerdir=/$d,upperdir=$root/$d,workdir=$root/$d.work" "/$d"
done
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p ` + binDir + ` ` + confDir + ` /run/lock /etc/containers
rm -f ` + confDir + `/*
: >"$root/up"
while :; do sleep 1000 & wait; done`
	log, err := os.Create(filepath.Join(h.Dir(), "machine"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := h.Start(lab.Command{
		Path: "unshare", Args: []string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "sh", "-c", script, "sh", m.root},
		Stderr: log,
	})
	if err := errors.Join(err, log.Close()); err != nil {
		t.Fatal(err)
	}
	init := ""
	eventually(t, patience, func() error {
		select {
		case <-p.Done():
			said, err := os.ReadFile(log.Name())
			t.Fatalf("the machine has ended: %s%v", said, err)
		default:
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.Pid()))
		if err != nil {
			return err
		}
		init = strings.TrimSpace(string(children))
		_, err = os.Stat(fmt.Sprintf("/proc/%s/root%s/up", init, m.root))
		return err
	})
	m.enter = []string{"--target", init, "--mount", "--pid", "--"}
	h.By(h.File("weft", "#!/bin/sh\nexec nsenter "+strings.Join(m.enter, " ")+" "+os.Getenv(envBinary)+` "$@"`+"\n", 0o700))
	return m
}

// removeCgroups, for when the lab has been closed, removes the groups that the runtimes keep containers and themselves in, once the processes have gone with the machine.
func (m *machine) removeCgroups() {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + m.cgroup)
	if err != nil {
		m.t.Error(err)
	}
	for _, root := range append(roots, "/sys/fs/cgroup/"+m.cgroup) {
		var dirs []string
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.t.Error(err)
		}
		for _, d := range slices.Backward(dirs) {
			deadline := time.Now().Add(patience)
			for err := unix.Rmdir(d); err != nil; err = unix.Rmdir(d) {
				if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
					m.t.Errorf("a group of processes is left: %s: %v", d, err)
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
}

// path is the path of a file of the machine as the test sees it.
func (m *machine) path(file string) string {
	return filepath.Join("/proc", m.enter[1], "root", file)
}

// write writes a file of the machine.
func (m *machine) write(file, content string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(file), []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// start starts a program on the machine, whose output goes to a file.
func (m *machine) start(name string, args ...string) (*lab.Process, string) {
	m.t.Helper()
	log, err := os.CreateTemp(m.Dir(), name+"-")
	if err != nil {
		m.t.Fatal(err)
	}
	p, err := m.Start(lab.Command{Path: "nsenter", Args: append(append([]string(nil), m.enter...), args...), Stdout: log, Stderr: log})
	if err := errors.Join(err, log.Close()); err != nil {
		m.t.Fatal(err)
	}
	return p, log.Name()
}

// try runs a program on the machine.
func (m *machine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), verbTimeout)
	defer cancel()
	r, err := m.Run(ctx, lab.Command{Path: "nsenter", Args: append(append([]string(nil), m.enter...), args...)})
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s on %s: exit code %d: %s", strings.Join(args, " "), m.Name(), r.Code, strings.TrimSpace(r.Stderr))
	}
	return r.Stdout, err
}

// do is try that must succeed.
func (m *machine) do(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// install puts the plugins into their place: the reference ones, and Weft's by its own command.
func (m *machine) install() {
	m.t.Helper()
	m.do("sh", "-c", `cp "$1"/* "$2"`, "sh", os.Getenv(envReference), binDir)
	m.do(os.Getenv(envBinary), "cni", "install", "--from", os.Getenv(envPlugin), "--run-dir", m.RunDir())
}

// buildPodImage makes an image of the program in integration/pod, as `docker save` would: containers of it have that file and no other.
func buildPodImage(t *testing.T, path string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "pod")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./pod")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the program for containers: %v\n%s", err, out)
	}
	type file struct {
		name string
		mode int64
		text []byte
	}
	archive := func(files ...file) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range files {
			err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.text)), Typeflag: tar.TypeReg})
			if err == nil {
				_, err = w.Write(f.text)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	encode := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	layer := archive(file{"pod", 0o755, text})
	config := encode(keys{
		"architecture": goenv(t, "GOARCH"), "os": "linux", "config": keys{"Entrypoint": []string{"/pod"}},
		"rootfs": keys{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	image := archive(
		file{"manifest.json", 0o644, encode([]keys{{"Config": "config.json", "RepoTags": []string{podImage}, "Layers": []string{"layer.tar"}}})},
		file{"config.json", 0o644, config}, file{"layer.tar", 0o644, layer},
	)
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
}

// goenv is what Go has of a variable of its environment.
func goenv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// containers is a container runtime on a machine.
type containers interface {
	// run starts a container that answers with its name.
	run(name string)
	// inside runs the program of the image in a container.
	inside(name string, args ...string) (string, error)
	// stop ends a container and removes it.
	stop(name string)
}

// containerd is containerd with runc, by ctr, which calls CNI itself.
type containerd struct {
	*machine
	runs map[string]*lab.Process
}

// withContainerd starts containerd on the machine.
func withContainerd(m *machine, image string) *containerd {
	m.t.Helper()
	dir := "/run/containerd"
	m.do("mkdir", dir)
	m.write(dir+"/config.toml", fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n",
		dir+"/root", dir+"/state", dir+"/sock"))
	m.start("containerd", "containerd", "--config", dir+"/config.toml")
	c := &containerd{machine: m, runs: map[string]*lab.Process{}}
	eventually(m.t, patience, func() error {
		_, err := c.try(c.ctr("version")...)
		return err
	})
	c.do(c.ctr("images", "import", image)...)
	return c
}

func (c *containerd) ctr(args ...string) []string {
	return append([]string{"ctr", "--address", "/run/containerd/sock"}, args...)
}

func (c *containerd) run(name string) {
	c.t.Helper()
	// In the foreground: only then ctr says DEL at the end. The native snapshotter needs nothing of the file system below.
	p, log := c.start("ctr-"+name, c.ctr("run", "--rm", "--cni", "--snapshotter", "native", "--cgroup", "/"+c.cgroup+"/"+name, podImage, name, "/pod", "serve", podPort, name)...)
	eventually(c.t, patience, func() error {
		select {
		case <-p.Done():
			said, err := os.ReadFile(log)
			c.t.Fatalf("ctr run %s: %s%v", name, said, err)
		default:
		}
		_, err := c.inside(name, "ask", "127.0.0.1:"+podPort)
		return err
	})
	c.runs[name] = p
}

func (c *containerd) inside(name string, args ...string) (string, error) {
	return c.try(c.ctr(append([]string{"tasks", "exec", "--exec-id", fmt.Sprint("x", time.Now().UnixNano()), name, "/pod"}, args...)...)...)
}

func (c *containerd) stop(name string) {
	c.t.Helper()
	c.do(c.ctr("tasks", "kill", "--signal", "SIGTERM", name)...)
	if _, err := c.runs[name].Wait(patience); err != nil {
		c.t.Error(err)
	}
}

// podman is podman with runc.
type podman struct {
	*machine
}

// withPodman sets podman up on the machine, which is no daemon.
func withPodman(m *machine, image string) *podman {
	m.t.Helper()
	m.write("/etc/containers/containers.conf", fmt.Sprintf("[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [%q]\nnetwork_config_dir = %q\ndefault_network = %q\n"+
		"[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"runc\"\n", binDir, confDir, weftType))
	p := &podman{m}
	p.do(p.podman("load", "--quiet", "--input", image)...)
	return p
}

func (p *podman) podman(args ...string) []string {
	dir := "/run/podman"
	return append([]string{"podman", "--root", dir, "--runroot", dir + "-run", "--tmpdir", dir + "-tmp", "--storage-driver", "vfs"}, args...)
}

func (p *podman) run(name string) { p.publish(name) }

// publish starts a container with options of `podman run`.
func (p *podman) publish(name string, options ...string) {
	p.t.Helper()
	p.do(p.podman(append(append([]string{"run", "--detach", "--cgroup-parent", "/" + p.cgroup, "--network", weftType, "--name", name}, options...), podImage, "serve", podPort, name)...)...)
}

func (p *podman) inside(name string, args ...string) (string, error) {
	return p.try(p.podman(append([]string{"exec", name, "/pod"}, args...)...)...)
}

func (p *podman) stop(name string) {
	p.t.Helper()
	p.do(p.podman("stop", name)...)
	p.do(p.podman("rm", name)...)
}
