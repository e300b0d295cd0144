// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// sample is a tree of files to pack, and the pack.
func sample(t *testing.T) *pack {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"amd64/weft": "daemon for amd64", "amd64/weft-cni": "plugin for amd64",
		"arm64/weft": "daemon for arm64", "arm64/weft-cni": "plugin for arm64",
		"licenses/LICENSE": "ours", "licenses/example.org/lib/LICENSE": "theirs",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &pack{
		name: "registry.example/weft:v1", version: "v1.2.3", licenses: filepath.Join(dir, "licenses"),
		platforms: []platform{{"amd64", filepath.Join(dir, "amd64")}, {"arm64", filepath.Join(dir, "arm64")}},
	}
}

// unpack extracts the tarball into a directory, which it returns.
func unpack(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	dir := t.TempDir()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// files lists what the image holds as "mode uid:gid name content".
func files(t *testing.T, img v1.Image) []string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, l := range layers {
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(rc); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 0 {
				t.Errorf("%s belongs to %d:%d, of %v; want 0:0 without a time", h.Name, h.Uid, h.Gid, h.ModTime)
			}
			text, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				out = append(out, h.FileInfo().Mode().String()+" /"+h.Name+" "+string(text))
			}
		}
	}
	return out
}

func TestPack(t *testing.T) {
	p := sample(t)
	out := filepath.Join(t.TempDir(), "image.tar")
	if err := p.write(out); err != nil {
		t.Fatal(err)
	}
	dir := unpack(t, out)
	l, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	top, err := l.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(top); err != nil {
		t.Fatal(err)
	}
	m, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Manifests) != 1 || m.Manifests[0].Annotations["io.containerd.image.name"] != "registry.example/weft:v1" {
		t.Fatalf("the top index is %+v, want one image index of the given name", m.Manifests)
	}
	index, err := top.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	m, err = index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for i, arch := range []string{"amd64", "arm64"} {
		if len(m.Manifests) != 2 || m.Manifests[i].Platform == nil || m.Manifests[i].Platform.Architecture != arch {
			t.Fatalf("the index is %+v, want amd64 and arm64", m.Manifests)
		}
		img, err := index.Image(m.Manifests[i].Digest)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{
			"-rw-r--r-- /licenses/LICENSE ours",
			"-rw-r--r-- /licenses/example.org/lib/LICENSE theirs",
			"-rwxr-xr-x /usr/local/bin/weft daemon for " + arch,
			"-rwxr-xr-x /usr/local/bin/weft-cni plugin for " + arch,
		}
		if got := files(t, img); !slices.Equal(got, want) {
			t.Errorf("%s holds\n%s\nwant\n%s", arch, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.Architecture != arch || config.Config.Labels["org.opencontainers.image.version"] != "v1.2.3" {
			t.Errorf("%s is described as %+v", arch, config)
		}
	}
	// The older format, for engines that know no index.
	old, err := tarball.ImageFromPath(out, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := files(t, old); len(got) != 4 || !strings.HasSuffix(got[2], "daemon for amd64") {
		t.Errorf("manifest.json leads to %q", got)
	}
}

func TestPackIsReproducible(t *testing.T) {
	out := filepath.Join(t.TempDir(), "image.tar")
	texts := [][]byte{}
	for range 2 {
		if err := sample(t).write(out); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
	}
	if !bytes.Equal(texts[0], texts[1]) {
		t.Error("the same files make two different images")
	}
	left, err := os.ReadDir(filepath.Dir(out))
	if err != nil || len(left) != 1 {
		t.Errorf("left beside the image: %v %v", left, err)
	}
}

func TestPackRefuses(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*pack)
		want   string
	}{
		"a name without a tag": {func(p *pack) { p.name = "weft" }, `name "weft"`},
		"no daemon":            {func(p *pack) { p.platforms[1].binaries = p.licenses }, "arm64: stat "},
		"no licences":          {func(p *pack) { p.licenses = filepath.Join(p.licenses, "none") }, "no such file"},
	} {
		p := sample(t)
		c.change(p)
		out := filepath.Join(t.TempDir(), "image.tar")
		if err := p.write(out); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
		if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind: %v %v", what, left, err)
		}
	}
}

// TestLicenses has a library whose linked package has a text of its own, and a package that is not linked.
func TestLicenses(t *testing.T) {
	module := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(module, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example.org/main\ngo 1.26\nrequire example.org/lib v0.0.0\nreplace example.org/lib => ./lib\n")
	write("main.go", "package main\nimport _ \"example.org/lib/sub\"\nfunc main() {}\n")
	write("LICENSE", "ours")
	write("lib/go.mod", "module example.org/lib\ngo 1.26\n")
	write("lib/sub/sub.go", "package sub\n")
	write("lib/sub/COPYING.txt", "of the package")
	write("lib/other/LICENSE", "not linked")
	write("lib/license.go", "package lib\n")
	out := filepath.Join(t.TempDir(), "licenses")
	if err := licenses(out, module, "", []string{"."}); err == nil || !strings.Contains(err.Error(), "example.org/lib has no file LICENSE") {
		t.Errorf("a module without a licence: %v", err)
	}
	write("lib/NOTICE", "of the module")
	if err := licenses(out, module, "", []string{"."}); err != nil {
		t.Fatal(err)
	}
	got := []string{}
	err := filepath.WalkDir(out, func(file string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(out, file)
			got = append(got, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	write("other.mod", "module example.org/main\ngo 1.26\n")
	if err := licenses(out, module, "other.mod", []string{"."}); err == nil || !strings.Contains(err.Error(), "example.org/lib") {
		t.Errorf("a go.mod without the library: %v", err)
	}
	if want := []string{"LICENSE", "example.org/lib/NOTICE", "example.org/lib/sub/COPYING.txt", "go/LICENSE"}; !slices.Equal(got, want) {
		t.Errorf("collected %q, want %q", got, want)
	}
}

// TestDockerfile compares what the Dockerfile makes with what pack makes.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	_, last, ok := strings.Cut(string(text), "\nFROM scratch\n")
	if !ok {
		t.Fatal("the image is not made from scratch")
	}
	last = strings.ReplaceAll(last, "\\\n", "")
	got := map[string]string{}
	for line := range strings.Lines(last) {
		instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch instruction {
		case "", "#":
		case "LABEL":
			for _, l := range strings.Split(rest, "org.opencontainers.")[1:] {
				k, v, _ := strings.Cut(strings.TrimSpace(l), "=")
				got["LABEL org.opencontainers."+k] = v
			}
		case "COPY":
			f := strings.Fields(rest)
			got["COPY "+f[len(f)-1]] = f[0]
		case "ARG":
		default:
			got[instruction] = rest
		}
	}
	quote := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	want := map[string]string{
		"COPY " + binaryDir + "/":                "--from=build",
		"COPY " + licenseDir + "/":               "--from=build",
		"ENV":                                    "PATH=" + binaryDir,
		"ENTRYPOINT":                             quote([]string{binary}),
		"CMD":                                    quote([]string{"help"}),
		"LABEL org.opencontainers.image.version": `"$VERSION"`,
	}
	for k, v := range labels() {
		want["LABEL "+k] = quote(v)
	}
	for k := range want {
		if got[k] != want[k] {
			t.Errorf("Dockerfile: %s is %q, want %q", k, got[k], want[k])
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("Dockerfile: %s %s is not in pack", k, got[k])
		}
	}
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "no command; give licenses or pack"},
		{[]string{"push"}, `unknown command "push"; give licenses or pack`},
		{[]string{"licenses"}, "licenses: give -o DIR and at least one package"},
		{[]string{"pack", "-o", "x"}, "pack: give -o FILE, -name, -licenses and at least one ARCH=DIR"},
		{[]string{"pack", "-o", "x", "-name", "a:b", "-licenses", "l", "amd64"}, `pack: "amd64" is no ARCH=DIR`},
	} {
		if err := run(c.args, io.Discard); err == nil || err.Error() != c.want {
			t.Errorf("image %q: %v, want %q", c.args, err, c.want)
		}
	}
}
