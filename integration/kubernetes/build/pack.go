// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
)

// pack writes the tree as a layer: hard links after what they link to.
func (t *tree) pack() ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	names := slices.SortedFunc(maps.Keys(t.entries), func(a, b string) int {
		la, lb := t.entries[a].header.Typeflag == tar.TypeLink, t.entries[b].header.Typeflag == tar.TypeLink
		switch {
		case la == lb:
			return strings.Compare(a, b)
		case la:
			return 1
		default:
			return -1
		}
	})
	for _, name := range names {
		e := t.entries[name]
		if e.header.Typeflag == tar.TypeDir && !strings.HasSuffix(e.header.Name, "/") {
			e.header.Name += "/"
		}
		if err := w.WriteHeader(e.header); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

// write writes an image of one layer in the format of `docker save`, which containerd imports.
func write(to string, layer []byte, i image) error {
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config": map[string]any{
			"Entrypoint": i.entrypoint, "Cmd": i.command,
			"Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return err
	}
	tags := []string{}
	for _, t := range i.tags {
		tags = append(tags, registry+t)
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": tags, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	f, err := os.Create(to + ".new")
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	for _, part := range []struct {
		name    string
		content []byte
	}{{"manifest.json", manifest}, {"config.json", config}, {"layer.tar", layer}} {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: part.name, Mode: 0o644, Size: int64(len(part.content))}
		if err = w.WriteHeader(h); err == nil {
			_, err = w.Write(part.content)
		}
		if err != nil {
			break
		}
	}
	if err = errors.Join(err, w.Close(), f.Close()); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}
