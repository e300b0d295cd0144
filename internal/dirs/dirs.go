// SPDX-License-Identifier: Apache-2.0

// Package dirs makes directories that can be taken back: a start that is refused
// leaves none behind. The edges that keep files import it.
package dirs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Made are the directories that a call of [Make] made, the deepest first.
type Made []string

// Make makes the directory path and those above it that are missing, with the
// mode 0700. What it made before an error it removes again.
func Make(path string) (Made, error) {
	var missing []string // the deepest first
	for p := filepath.Clean(path); ; p = filepath.Dir(p) {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) || p == filepath.Dir(p) {
			break
		}
		missing = append(missing, p)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		Made(missing).Remove()
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, fmt.Errorf("directory %s cannot be made: %w", path, err)
	}
	return missing, nil
}

// Remove removes the directories that are empty.
func (m Made) Remove() {
	for _, p := range m {
		if os.Remove(p) != nil { // not empty, so those above are not either
			return
		}
	}
}
