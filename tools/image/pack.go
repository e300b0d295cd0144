// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Where things are in the image. The Dockerfile says the same; a test compares.
const (
	binaryDir  = "/usr/local/bin"
	licenseDir = "/licenses"
	binary     = binaryDir + "/weft"
)

// labels are those of the image; the version's is added where it is known.
func labels() map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       "weft",
		"org.opencontainers.image.description": "An encrypted container network in one file",
		"org.opencontainers.image.source":      "https://github.com/weftnet/weft",
		"org.opencontainers.image.licenses":    "Apache-2.0",
	}
}

// pack is what an image is made of.
type pack struct {
	name      string // with a tag
	version   string // may be empty
	licenses  string // directory
	platforms []platform
}

// platform is one architecture of Linux, and the directory that its binaries are in.
type platform struct {
	arch     string
	binaries string
}

// write makes the images and writes them to the file out.
func (p *pack) write(out string) (err error) {
	tag, err := name.NewTag(p.name, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("name %q: %w", p.name, err)
	}
	licenseTexts, err := layer(p.licenses, licenseDir, 0o644)
	if err != nil {
		return err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	images := make([]v1.Image, 0, len(p.platforms))
	for _, pf := range p.platforms {
		img, err := p.image(pf, licenseTexts)
		if err != nil {
			return fmt.Errorf("%s: %w", pf.arch, err)
		}
		images = append(images, img)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: pf.arch},
		}})
	}
	dir, err := os.MkdirTemp(filepath.Dir(out), ".image-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := l.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag.TagStr(), // podman
		"io.containerd.image.name":          tag.Name(),   // containerd
	})); err != nil {
		return err
	}
	if err := writeManifest(dir, tag, images[0]); err != nil {
		return err
	}
	return archive(dir, out)
}

// image is that of one platform: the licences' layer, which all share, and the binaries'.
func (p *pack) image(pf platform, licenseTexts v1.Layer) (v1.Image, error) {
	if _, err := os.Stat(filepath.Join(pf.binaries, path.Base(binary))); err != nil {
		return nil, err
	}
	binaries, err := layer(pf.binaries, binaryDir, 0o755)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	l := labels()
	if p.version != "" {
		l["org.opencontainers.image.version"] = p.version
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: pf.arch,
		OS:           "linux",
		Created:      v1.Time{Time: time.Unix(0, 0).UTC()},
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Env:        []string{"PATH=" + binaryDir},
			Entrypoint: []string{binary},
			Cmd:        []string{"help"},
			Labels:     l,
		},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(img, mutate.Addendum{Layer: licenseTexts}, mutate.Addendum{Layer: binaries})
}

// layer makes one from the files below dir, which appear below to: names in order, owned by root, of the given mode, without times.
func layer(dir, to string, mode int64) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{}
	parents := func(file string) error {
		dirs := []string{}
		for d := path.Dir(file); d != "." && !made[d]; d = path.Dir(d) {
			made[d] = true
			dirs = append(dirs, d)
		}
		slices.Reverse(dirs)
		for _, d := range dirs {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
				return err
			}
		}
		return nil
	}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		in := strings.TrimPrefix(path.Join(to, filepath.ToSlash(rel)), "/")
		if err := parents(in); err != nil {
			return err
		}
		return addFile(w, file, in, mode)
	})
	if err != nil {
		return nil, err
	}
	if len(made) == 0 {
		return nil, fmt.Errorf("%s is empty", dir)
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithCompressedCaching)
}

// addFile writes the regular file to w as in.
func addFile(w *tar.Writer, file, in string, mode int64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", file)
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: in, Mode: mode, Size: info.Size(), ModTime: time.Unix(0, 0)}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// writeManifest adds to the layout in dir what `docker load` asks for where the engine keeps images by its own drivers. It names one
// image, as that format knows no platforms.
func writeManifest(dir string, tag name.Tag, img v1.Image) error {
	config, err := img.ConfigName()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	blob := func(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }
	e := entry{Config: blob(config), RepoTags: []string{tag.Name()}}
	for _, l := range layers {
		h, err := l.Digest()
		if err != nil {
			return err
		}
		e.Layers = append(e.Layers, blob(h))
	}
	text, err := json.Marshal([]entry{e})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "manifest.json"), text, 0o644)
}

// archive packs dir into the file out, which appears whole or not at all.
func archive(dir, out string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(out), ".image-*.tar")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	w := tar.NewWriter(f)
	err = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		return addFile(w, file, filepath.ToSlash(rel), 0o644)
	})
	if err = errors.Join(err, w.Close(), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}
