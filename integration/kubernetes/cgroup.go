// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const cgroups = "/sys/fs/cgroup"

// unified tells whether the machine has cgroup v2 alone.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers"))
	return err == nil
}

// hierarchies returns the roots of the machine's cgroup hierarchies.
func hierarchies() ([]string, error) {
	if unified() {
		return []string{cgroups}, nil
	}
	entries, err := os.ReadDir(cgroups)
	if err != nil {
		return nil, err
	}
	roots := []string{}
	for _, e := range entries {
		if e.IsDir() { // not the links that some hierarchies have as further names
			roots = append(roots, filepath.Join(cgroups, e.Name()))
		}
	}
	return roots, nil
}

// makeCgroups makes a folder for a node in every hierarchy, which its kubelet puts everything into.
func makeCgroups(group, node string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := root
		for _, below := range []string{group, node} {
			parent := dir
			dir = filepath.Join(dir, below)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if unified() { // what cannot be delegated here, the kubelet names
				_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+cpu +cpuset +memory +pids +io"), 0)
				continue
			}
			// A new folder of cpuset has no processors and no memory until it is told.
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(parent, f))
				if err != nil {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, f), value, 0); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// removeCgroups removes the folders of a cluster, once the processes in them are gone.
func removeCgroups(group string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	var left []string
	for range 50 {
		left = nil
		for _, root := range roots {
			dirs := []string{}
			_ = filepath.WalkDir(filepath.Join(root, group), func(dir string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, dir)
				}
				return nil // it may be gone already
			})
			slices.Reverse(dirs)
			for _, dir := range dirs {
				if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
					left = append(left, dir)
				}
			}
		}
		if left == nil {
			return nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	return fmt.Errorf("cgroups are left: %s", strings.Join(left, ", "))
}
