// SPDX-License-Identifier: Apache-2.0

// Command build makes what the tests of integration/kubernetes run: Kubernetes' programs, etcd, containerd and CoreDNS from the Go modules that
// programs/ pins, and tarballs of the images of the pods. It takes minutes at first, and makes only what is missing later.
//
//	build -o DIR [-only NAME,...]
//
// DIR/bin gets the programs, DIR/images the images.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// version of Kubernetes, which its programs are told to be; programs/kubernetes/go.mod has the same.
const version = "v1.35.4"

// program is one that is built from a module.
type program struct {
	name   string
	module string // below programs/
	pkg    string
	flags  []string
	test   bool // a test binary
}

func programs() []program {
	kube := func(name, pkg string) program {
		x := []string{}
		for _, p := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
			x = append(x, "-X "+p+".gitVersion="+version, "-X "+p+".gitMajor=1", "-X "+p+".gitMinor="+strings.Split(version, ".")[1])
		}
		return program{name: name, module: "kubernetes", pkg: "k8s.io/kubernetes/" + pkg, flags: []string{"-ldflags", "-s -w " + strings.Join(x, " ")}}
	}
	plain := []string{"-ldflags", "-s -w"}
	containerd := func(name string) program {
		return program{
			name: name, module: "containerd", pkg: "github.com/containerd/containerd/v2/cmd/" + name,
			flags: slices.Concat([]string{"-tags", "no_btrfs,no_zfs,no_devmapper"}, plain),
		}
	}
	e2e := kube("e2e.test", "test/e2e")
	e2e.test = true
	return []program{
		kube("kube-apiserver", "cmd/kube-apiserver"),
		kube("kube-controller-manager", "cmd/kube-controller-manager"),
		kube("kube-scheduler", "cmd/kube-scheduler"),
		kube("kube-proxy", "cmd/kube-proxy"),
		kube("kubelet", "cmd/kubelet"),
		kube("kubectl", "cmd/kubectl"),
		kube("agnhost", "test/images/agnhost"),
		e2e,
		{name: "etcd", module: "etcd", pkg: "go.etcd.io/etcd/server/v3", flags: plain},
		{name: "coredns", module: "coredns", pkg: "github.com/coredns/coredns", flags: plain},
		containerd("containerd"),
		containerd("containerd-shim-runc-v2"),
		containerd("ctr"),
		{name: "pause", module: "..", pkg: "./pause", flags: plain},
		{name: "loopback", module: "../../../tools/cni", pkg: "github.com/containernetworking/plugins/plugins/main/loopback", flags: plain},
		{name: "ptp", module: "../../../tools/cni", pkg: "github.com/containernetworking/plugins/plugins/main/ptp", flags: plain},
		{name: "host-local", module: "../../../tools/cni", pkg: "github.com/containernetworking/plugins/plugins/ipam/host-local", flags: plain},
	}
}

func main() {
	out := flag.String("o", "", "directory of what is built")
	only := flag.String("only", "", "names of programs and images, separated by commas (default: all)")
	flag.Parse()
	if err := run(*out, *only); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

func run(out, only string) error {
	if out == "" {
		return errors.New("give -o DIR")
	}
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	for _, dir := range []string{"bin", "images"} {
		if err := os.MkdirAll(filepath.Join(out, dir), 0o755); err != nil {
			return err
		}
	}
	wanted := func(name string) bool { return only == "" || slices.Contains(strings.Split(only, ","), name) }
	for _, p := range programs() {
		if !wanted(p.name) {
			continue
		}
		if err := p.build(filepath.Join(out, "bin", p.name)); err != nil {
			return err
		}
	}
	for _, i := range images() {
		if !wanted(i.name) {
			continue
		}
		if err := i.build(out); err != nil {
			return fmt.Errorf("image %s: %w", i.name, err)
		}
	}
	return nil
}

// build makes the program unless it is there and as new as what its module is made of.
func (p program) build(to string) error {
	module := filepath.Join("programs", p.module)
	if made, err := os.Stat(to); err == nil {
		mod, err := os.Stat(filepath.Join(module, "go.mod"))
		if err == nil && made.ModTime().After(mod.ModTime()) {
			return nil
		}
	}
	start := time.Now()
	args := []string{"build"}
	if p.test {
		args = []string{"test", "-c"}
	}
	args = slices.Concat(args, []string{"-trimpath", "-buildvcs=false", "-o", to + ".new"}, p.flags, []string{p.pkg})
	cmd := exec.Command("go", args...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", p.name, err, output.Bytes())
	}
	fmt.Printf("%-24s %v\n", p.name, time.Since(start).Round(time.Second))
	return os.Rename(to+".new", to)
}
