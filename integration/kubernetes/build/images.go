// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// registry is where the tests believe that their images come from; nodes never ask it, as they have them.
const registry = "registry.k8s.io/"

// image is one tarball.
type image struct {
	name       string
	tags       []string // below the registry
	debian     []string // packages, with all that they need
	programs   []string // of those built, into /
	shell      string   // what sh is
	accounts   bool     // users, groups and directories as tests expect them
	entrypoint []string
	command    []string
}

// images are those that Kubernetes' tests of networks run. agnhost is Kubernetes' own program with the tools that tests run beside it; upstream has
// them from Alpine, here they are Debian's. CoreDNS is in it because it needs to be in one.
func images() []image {
	return []image{
		{name: "pause", tags: []string{"pause:3.10.1"}, programs: []string{"pause"}, entrypoint: []string{"/pause"}},
		{
			name: "agnhost", tags: []string{"e2e-test-images/agnhost:2.59", "e2e-test-images/agnhost:2.55", "e2e-test-images/jessie-dnsutils:1.7"},
			debian:   []string{"busybox-static", "bash", "curl", "netcat-openbsd", "iproute2", "iperf", "bind9-dnsutils", "libc-bin"},
			programs: []string{"agnhost", "coredns"}, shell: "bash", accounts: true, entrypoint: []string{"/agnhost"}, command: []string{"pause"},
		},
		{
			name: "busybox", tags: []string{"e2e-test-images/busybox:1.37.0-1"}, debian: []string{"busybox-static"},
			shell: "busybox", accounts: true, command: []string{"sh"},
		},
	}
}

// build writes the image to out/images unless it is there and newer than the programs in it.
func (i image) build(out string) error {
	to := filepath.Join(out, "images", i.name+".tar")
	if i.current(out, to) {
		return nil
	}
	start := time.Now()
	root := newTree()
	if len(i.debian) > 0 {
		debs, err := download(filepath.Join(out, "debs", i.name), i.debian)
		if err != nil {
			return err
		}
		// Debian keeps everything below /usr, and the old names as links.
		for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
			root.link(d, "usr/"+d)
		}
		for _, d := range debs {
			if err := root.addDeb(d); err != nil {
				return fmt.Errorf("%s: %w", filepath.Base(d), err)
			}
		}
		if err := root.addApplets(); err != nil {
			return err
		}
		root.link("usr/bin/sh", i.shell)
	}
	if i.accounts {
		root.addAccounts()
	}
	for _, p := range i.programs {
		content, err := os.ReadFile(filepath.Join(out, "bin", p))
		if err != nil {
			return err
		}
		root.file(p, content, 0o755)
	}
	if i.name == "agnhost" {
		root.link("agnhost-2", "agnhost") // one of the tests calls it so
		if err := root.addCertificate(); err != nil {
			return err
		}
	}
	layer, err := root.pack()
	if err != nil {
		return err
	}
	if err := write(to, layer, i); err != nil {
		return err
	}
	fmt.Printf("%-24s %v\n", i.name+".tar", time.Since(start).Round(time.Second))
	return nil
}

func (i image) current(out, to string) bool {
	made, err := os.Stat(to)
	if err != nil {
		return false
	}
	for _, p := range i.programs {
		if s, err := os.Stat(filepath.Join(out, "bin", p)); err != nil || s.ModTime().After(made.ModTime()) {
			return false
		}
	}
	return true
}

// download fetches Debian packages and all that they depend on into dir, and returns their files. apt is shown a system on which nothing is
// installed, so it leaves nothing out; nothing is installed on this one.
func download(dir string, packages []string) ([]string, error) {
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return nil, err
	}
	args := []string{
		"-qq", "-y", "--no-install-recommends", "--download-only",
		"-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache::archives=" + dir, "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root",
	}
	cmd := exec.Command("apt-get", append(append(args, "install"), packages...)...)
	if output, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("downloading Debian packages: %w: %s", err, bytes.TrimSpace(output))
	}
	return filepath.Glob(filepath.Join(dir, "*.deb"))
}

// tree is a file system that is being put together.
type tree struct{ entries map[string]*entry }

type entry struct {
	header  *tar.Header
	content []byte
}

func newTree() *tree { return &tree{entries: map[string]*entry{}} }

func (t *tree) put(h *tar.Header, content []byte) {
	h.Uid, h.Gid, h.Uname, h.Gname, h.ModTime, h.Format = 0, 0, "", "", time.Unix(0, 0), tar.FormatUnknown
	h.PAXRecords = nil
	t.entries[h.Name] = &entry{h, content}
}

func (t *tree) file(name string, content []byte, mode int64) {
	t.put(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}, content)
}

func (t *tree) link(name, to string) {
	t.put(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}, nil)
}

func (t *tree) directory(name string, mode int64) {
	t.put(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, nil)
}

// needless is what programs do without.
func needless(name string) bool {
	for _, p := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "usr/lib/x86_64-linux-gnu/gconv"} {
		if name == p || strings.HasPrefix(name, p+"/") {
			return true
		}
	}
	return false
}

// addDeb adds a package's files; its scripts are not run.
func (t *tree) addDeb(deb string) error {
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := tar.NewReader(out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return cmd.Wait()
		}
		if err != nil {
			return errors.Join(err, cmd.Wait())
		}
		h.Name = merged(h.Name)
		if h.Name == "" || needless(h.Name) {
			continue
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = merged(h.Linkname)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return errors.Join(err, cmd.Wait())
		}
		t.put(h, content)
	}
}

// merged is the name of a file where everything is below /usr.
func merged(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	top, _, _ := strings.Cut(name, "/")
	switch top {
	case "bin", "sbin", "lib", "lib64":
		return "usr/" + name
	}
	return name
}

// addApplets fills in by busybox what no package has brought.
func (t *tree) addApplets() error {
	box, ok := t.entries["usr/bin/busybox"]
	if !ok {
		return errors.New("busybox is not among the packages")
	}
	f, err := os.CreateTemp("", "busybox-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if _, err := f.Write(box.content); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o700), f.Close()); err != nil {
		return err
	}
	list, err := exec.Command(f.Name(), "--list").Output()
	if err != nil {
		return err
	}
	for _, applet := range strings.Fields(string(list)) {
		if t.entries["usr/bin/"+applet] == nil && t.entries["usr/sbin/"+applet] == nil {
			t.link("usr/bin/"+applet, "busybox")
		}
	}
	// Netcat comes with a link that a script would have made.
	if t.entries["usr/bin/nc.openbsd"] != nil {
		t.link("usr/bin/nc", "nc.openbsd")
	}
	return nil
}

// addCertificate adds the certificate for localhost that agnhost serves HTTPS with.
func (t *tree) addCertificate() error {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	cmd.Dir = filepath.Join("programs", "kubernetes")
	dir, err := cmd.Output()
	if err != nil {
		return err
	}
	for _, name := range []string{"localhost.crt", "localhost.key"} {
		content, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "test", "images", "agnhost", "porter", name))
		if err != nil {
			return err
		}
		t.file(name, content, 0o644)
	}
	return nil
}

func (t *tree) addAccounts() {
	for _, d := range []string{"etc", "root", "home", "uploads"} {
		t.directory(d, 0o755)
	}
	t.directory("tmp", 0o1777)
	t.file("etc/passwd", []byte("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\n"), 0o644)
	t.file("etc/group", []byte("root:x:0:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"), 0o644)
	t.file("etc/nsswitch.conf", []byte("hosts: files dns\n"), 0o644)
}
