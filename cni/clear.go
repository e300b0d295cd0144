// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Clear forgets every release that is kept, and what was put aside, and returns the paths that it removed: the files, and the directory if nothing
// else is in it. It is for a host on which no daemon will carry them out.
func (b *Backlog) Clear() (removed []string, err error) {
	dir, err := b.lock(b.patience)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the backlog of releases cannot be cleared: %w", err)
	}
	defer func() { _ = dir.Close() }()
	all, err := os.ReadDir(b.dir)
	if err != nil {
		return nil, fmt.Errorf("the backlog of releases cannot be read: %w", err)
	}
	for _, d := range all {
		if !ownEntry(d.Name()) {
			continue
		}
		path := filepath.Join(b.dir, d.Name())
		if rerr := os.Remove(path); rerr != nil {
			err = errors.Join(err, fmt.Errorf("the backlog of releases cannot be cleared: %w", rerr))
			continue
		}
		removed = append(removed, path)
	}
	if os.Remove(b.dir) == nil {
		removed = append(removed, b.dir)
	}
	return removed, err
}

// ownEntry tells whether a file in the directory has a name that the backlog gives.
func ownEntry(name string) bool {
	name, _ = strings.CutSuffix(name, asideSuffix)
	sum, err := hex.DecodeString(name)
	return name == newEntry || err == nil && len(sum) == len(entryName(Release{}))/2
}
