// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	corruptPrefix = FileName + ".corrupt-" // + time, UTC
	schemaPrefix  = FileName + ".schema-"  // + number
	partSuffix    = ".part"                // of a copy that is not finished
	corruptTime   = "20060102T150405Z"
)

// Files returns the paths of all files in dir that this package has made there, whether they still make up a node's state or
// were kept aside.
func Files(dir string) []string {
	var out []string
	for _, name := range names(dir) {
		if name == FileName || strings.HasPrefix(name, corruptPrefix) || strings.HasPrefix(name, schemaPrefix) {
			out = append(out, filepath.Join(dir, name))
		}
	}
	return out
}

// lastCorrupt returns the name of the damaged file that was kept aside last, "" if there is none.
func lastCorrupt(dir string) string {
	for _, name := range slices.Backward(names(dir)) {
		if strings.HasPrefix(name, corruptPrefix) {
			return name
		}
	}
	return ""
}

// names lists a directory, sorted; one that cannot be read is empty.
func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = e.Name()
	}
	return out
}

// setAside renames the damaged file and returns its new name. Nobody but root could read it before; nobody can now.
func setAside(dir string) (name string, err error) {
	path := filepath.Join(dir, FileName)
	name = corruptPrefix + time.Now().UTC().Format(corruptTime)
	for n, base := 1, name; ; n++ {
		if _, err := os.Lstat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return "", err
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return "", err
	}
	return name, os.Rename(path, filepath.Join(dir, name))
}

// keepCopy copies the file of an earlier schema and returns the copy's name. It is whole and on disk, or it is not there. A
// copy that an upgrade which was broken off has left is replaced.
func keepCopy(dir string, schema uint32) (name string, err error) {
	name = fmt.Sprint(schemaPrefix, schema)
	part := filepath.Join(dir, name+partSuffix)
	defer func() {
		if err != nil {
			_ = os.Remove(part)
		}
	}()
	if err := copyFile(part, filepath.Join(dir, FileName)); err != nil {
		return "", err
	}
	if err := os.Rename(part, filepath.Join(dir, name)); err != nil {
		return "", err
	}
	return name, syncDir(dir)
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(filepath.Clean(from))
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	_ = os.Remove(to) // with its mode
	out, err := os.OpenFile(filepath.Clean(to), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Sync()
}

func syncDir(dir string) (err error) {
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Sync()
}
