// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"context"
	"errors"
	"fmt"
)

// InstallPlugin installs the plugin alone, as [Install] does; ConfDir is of no interest. No runtime calls it before there is a configuration.
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
	return r, c.putPlugin(bin, &r)
}
