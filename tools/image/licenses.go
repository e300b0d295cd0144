// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// architectures are those whose dependencies count: a library may be linked on one of them only.
func architectures() []string { return []string{"amd64", "arm64"} }

// listed is what `go list` tells of one package.
type listed struct {
	ImportPath string
	Dir        string
	Standard   bool
	Module     *struct {
		Path string
		Dir  string
		Main bool
	}
}

// licenses copies the licence texts of all that the packages in module link to out: those of the module itself on top, those of Go
// in go/, those of other modules by their paths. The packages' versions are those of modfile, the module's own go.mod if it is empty. A
// module without a licence is an error.
func licenses(out, module, modfile string, packages []string) error {
	found := map[string]string{} // name below out -> file
	for _, arch := range architectures() {
		list, err := listPackages(module, modfile, arch, packages)
		if err != nil {
			return err
		}
		for _, p := range list {
			if p.Standard || p.Module == nil {
				continue
			}
			below := p.Module.Path
			if p.Module.Main {
				below = "."
			}
			if err := collect(found, below, p.Module.Dir, p.Dir); err != nil {
				return err
			}
			if len(named(found, below)) == 0 {
				return fmt.Errorf("%s has no file LICENSE or the like in %s; find its licence before it is linked", p.Module.Path, p.Module.Dir)
			}
		}
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	text := filepath.Join(strings.TrimSpace(string(goroot)), "LICENSE")
	if _, err := os.Stat(text); err != nil {
		return fmt.Errorf("the licence of Go's library: %w; use a Go distribution that has it", err)
	}
	found[filepath.Join("go", "LICENSE")] = text
	return copyAll(out, found)
}

// listPackages returns the packages and all that they import, as built for Linux on arch.
func listPackages(module, modfile, arch string, packages []string) ([]listed, error) {
	args := []string{"list", "-deps", "-json=ImportPath,Dir,Standard,Module"}
	if modfile != "" {
		args = append(args, "-modfile="+modfile)
	}
	cmd := exec.Command("go", append(args, packages...)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	answer, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	list := []listed{}
	for dec := json.NewDecoder(bytes.NewReader(answer)); ; {
		var p listed
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF):
			return list, nil
		case err != nil:
			return nil, fmt.Errorf("go list: %w", err)
		}
		list = append(list, p)
	}
}

// collect adds the texts that lie in dir and in the directories above it, up to root: a package may have one of its own.
func collect(found map[string]string, below, root, dir string) error {
	for {
		rel, err := filepath.Rel(root, dir)
		if err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return fmt.Errorf("%s is not below %s", dir, root)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Type().IsRegular() && isLicense(e.Name()) {
				found[filepath.Join(below, rel, e.Name())] = filepath.Join(dir, e.Name())
			}
		}
		if rel == "." {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

// named returns the names in found that lie directly in dir.
func named(found map[string]string, dir string) []string {
	names := []string{}
	for name := range found {
		if filepath.Dir(name) == filepath.Clean(dir) {
			names = append(names, name)
		}
	}
	return names
}

// isLicense tells whether a file of that name holds a licence, a notice that a licence wants kept, or a grant of patents. Source
// that happens to be called so does not.
func isLicense(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".go", ".sh", ".py", ".json", ".yml", ".yaml", ".tmpl":
		return false
	}
	upper := strings.ToUpper(name)
	return slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "PATENTS"}, func(prefix string) bool {
		return strings.HasPrefix(upper, prefix)
	})
}

func copyAll(out string, found map[string]string) error {
	for name, from := range found {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		to := filepath.Join(out, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
