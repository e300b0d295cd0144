// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A node is started in two stages, both by this very program: the keeper, in the node's network namespace, starts the first process of the other
// namespaces and waits for it; that one makes the node and keeps its programs running.
const (
	envNode  = "WEFT_E2E_NODE"  // file of the plan
	envStage = "WEFT_E2E_STAGE" // keeper or first
	pidFile  = "init.pid"
	goFile   = "go" // made when the node has its images: only then its kubelet starts, which would ask a registry for them
)

// nodePlan is what a node has to know.
type nodePlan struct {
	Name, Addresses, Dir, Bin, PKI, Logs, Cgroup, Proxy, Pods, DNS string

	Hosts map[string]string // names and addresses of the nodes that exist
}

// EnterNode makes this process a node's if it was started as one, and does not return then. A test's main function calls it first.
func EnterNode() {
	file := os.Getenv(envNode)
	if file == "" {
		return
	}
	err := func() error {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var p nodePlan
		if err := json.Unmarshal(text, &p); err != nil {
			return err
		}
		if os.Getenv(envStage) == "keeper" {
			return p.keep()
		}
		return p.first()
	}()
	fmt.Fprintln(os.Stderr, "node:", err)
	os.Exit(1)
}

// keep starts the node's first process in new namespaces, and waits for it.
func (p *nodePlan) keep() error {
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args[:1], &syscall.ProcAttr{
		Env: []string{"PATH=" + os.Getenv("PATH"), envNode + "=" + os.Getenv(envNode), envStage + "=first"}, Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, Pdeathsig: unix.SIGKILL, Setsid: true,
		},
	})
	if err != nil {
		return fmt.Errorf("starting the first process: %w", err)
	}
	file := filepath.Join(p.Dir, pidFile)
	if err := os.WriteFile(file+".new", []byte(strconv.Itoa(pid)), 0o600); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	var status syscall.WaitStatus
	_, err = syscall.Wait4(pid, &status, 0, nil)
	return fmt.Errorf("the first process ended: %v %w", status, err)
}

// first makes the node and runs its programs for as long as it lives.
func (p *nodePlan) first() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("this is process %d, not the first one", os.Getpid())
	}
	if err := unix.Sethostname([]byte(p.Name)); err != nil {
		return err
	}
	if err := p.mounts(); err != nil {
		return err
	}
	if err := p.files(); err != nil {
		return err
	}
	programs := [][]string{
		{"containerd", "--config=/etc/containerd/config.toml"},
		{
			"kubelet", "--config=/etc/kubernetes/kubelet.json", "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
			"--hostname-override=" + p.Name, "--node-ip=" + p.Addresses,
		},
		{"kube-proxy", "--config=/etc/kubernetes/proxy.json"},
	}
	return p.supervise(programs)
}

// mounts gives the node its own view of the machine's files: /etc, /opt and /var begin as the machine's, /run is empty.
func (p *nodePlan) mounts() error {
	type mount struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}
	// Nothing of this may reach the machine.
	list := []mount{{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""}, {"proc", "/proc", "proc", 0, ""}}
	for _, d := range []string{"etc", "opt", "var"} {
		upper, work := filepath.Join(p.Dir, "upper", d), filepath.Join(p.Dir, "work", d)
		for _, m := range []string{upper, work} {
			if err := os.MkdirAll(m, 0o755); err != nil {
				return err
			}
		}
		list = append(list, mount{"overlay", "/" + d, "overlay", 0, fmt.Sprintf("lowerdir=/%s,upperdir=%s,workdir=%s", d, upper, work)})
	}
	// containerd mounts overlays itself, which do not stack on one; the kubelet mounts volumes.
	for _, d := range []string{"var/lib/containerd", "var/lib/kubelet", "var/log"} {
		own := filepath.Join(p.Dir, "own", d)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		list = append(list, mount{own, "/" + d, "", unix.MS_BIND, ""})
	}
	list = append(list,
		mount{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
		// /sys shows the devices of the network namespace of whoever mounts it; the cgroups are the machine's.
		mount{cgroups, "/run/cgroup", "", unix.MS_BIND | unix.MS_REC, ""},
		mount{"sysfs", "/sys", "sysfs", 0, ""},
		mount{"/run/cgroup", cgroups, "", unix.MS_BIND | unix.MS_REC, ""},
	)
	// The kubelet wants these as they are here, and they are the whole machine's: it gets to see files instead.
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		file := filepath.Join(p.Dir, "sysctl", strings.ReplaceAll(name, "/", "."))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		list = append(list, mount{file, "/proc/sys/" + name, "", unix.MS_BIND, ""})
	}
	list = append(list, mount{"", "/", "", unix.MS_REC | unix.MS_SHARED, ""})
	for _, m := range list {
		if m.flags&unix.MS_BIND != 0 && !strings.HasPrefix(m.target, "/proc/") || m.kind == "tmpfs" {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	// Programs of BPF that somebody pins are the node's.
	_ = unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "") // a kernel without has nothing to keep apart
	return nil
}

// supervise keeps the programs running, each with a file /run/NAME.pid, and collects the processes that others leave to the first one.
func (p *nodePlan) supervise(programs [][]string) error {
	running := map[int][]string{}
	start := func(args []string) error {
		log, err := os.OpenFile(filepath.Join(p.Logs, args[0]+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer func() { _ = log.Close() }()
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer func() { _ = null.Close() }()
		pid, err := syscall.ForkExec(filepath.Join(p.Bin, args[0]), args, &syscall.ProcAttr{
			Dir: "/", Env: []string{"PATH=" + p.Bin + ":" + os.Getenv("PATH"), "HOME=/root"},
			Files: []uintptr{null.Fd(), log.Fd(), log.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
		})
		if err != nil {
			return fmt.Errorf("starting %s: %w", args[0], err)
		}
		running[pid] = args
		return os.WriteFile("/run/"+args[0]+".pid", []byte(strconv.Itoa(pid)), 0o644)
	}
	for i, args := range programs {
		if err := start(args); err != nil {
			return err
		}
		for i == 0 { // the container runtime
			if _, err := os.Stat(filepath.Join(p.Dir, goFile)); err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	for {
		pid, err := syscall.Wait4(-1, nil, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if args, ok := running[pid]; ok {
			delete(running, pid)
			fmt.Fprintf(os.Stderr, "%s %s ended\n", time.Now().Format(time.TimeOnly), args[0])
			time.Sleep(time.Second)
			if err := start(args); err != nil {
				return err
			}
		}
	}
}
