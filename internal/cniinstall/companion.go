// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// portmapName is the plugin for ports of the host under a name of Weft's own: so it can be told from one that something else has
// installed as portmap, which may be another version and comes and goes with that. It is chained in the place of portmap where it is there.
const portmapName = "weft-portmap"

// putPortmap installs the plugin for ports of the host if one lies beside Weft's plugin, as it does in the container image.
func (c Config) putPortmap(d *dir, r *Report) error {
	from := filepath.Join(filepath.Dir(c.Plugin), "portmap")
	if same(from, d.path("portmap")) {
		return nil // Weft's plugin is installed from the very directory
	}
	src, err := os.Open(filepath.Clean(from))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the plugin for ports of the host cannot be read: %w", err)
	}
	defer func() { _ = src.Close() }() // opened for reading
	if path := d.path(portmapName); equal(from, path) {
		r.done("in place already: %s", path)
		return nil
	}
	return put(d, portmapName, always, src, 0o755, r)
}

// always says of a name that is Weft's alone that its file is.
func always(string) bool { return true }
