// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"context"
	"errors"
	"fmt"
)

// InstallPlugin installs the plugin, and the one for ports of the host if it is named, as [Install] does; ConfDir is of no interest. No runtime calls it before there is a configuration.
func InstallPlugin(ctx context.Context, c Config) (r Report, err error) {
	if err := c.checkPlugin(ctx); err != nil {
		return r, err
	}
	if err := makeDir(c.BinDir); err != nil {
		return r, fmt.Errorf("directory %s cannot be made: %w", c.BinDir, plain(err))
	}
	bin, err := openDir(ctx, c.BinDir)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, bin.close()) }()
	if err := c.putPlugin(bin, &r); err != nil {
		return r, err
	}
	return r, c.putPortmap(bin, &r)
}
