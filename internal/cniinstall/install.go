// SPDX-License-Identifier: Apache-2.0

// Package cniinstall puts the CNI plugin and a network configuration to where a container runtime looks for them, and takes them
// away again.
//
// The names weft and 10-weft.conflist are Weft's as long as it is installed, weft-portmap always. A file of somebody else's that is there is kept beside, as NAME.before-weft, and put
// back in the end; a configuration that somebody has edited is left as it is. Every file appears under its name whole and on
// disk, or not at all: the plugin may be called, and the directories be read, at any time. The plugin comes first and goes last, so that no
// configuration names one that is not there. What a crash leaves in between, the next [Install] or [Uninstall] puts right; of several
// at once one waits for the other.
//
// The command line imports it. It knows nothing of the daemon.
package cniinstall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/weftnet/weft/internal/fault"
)

// Where runtimes look unless they are told otherwise.
const (
	DefaultBinDir  = "/opt/cni/bin"
	DefaultConfDir = "/etc/cni/net.d"
)

// PluginName and ConfName are the names of the two files.
const (
	PluginName = "weft"
	ConfName   = "10-weft.conflist"
)

// suffixes of what is kept beside the two files, and of what is not whole yet. None of them is a name that a runtime takes for a configuration.
const (
	keptSuffix   = ".before-weft"
	editedSuffix = ".edited"
	newSuffix    = ".weft-new"
)

// Config says what is to be installed where. The paths are absolute.
type Config struct {
	Plugin          string // the plugin's file, which is copied; of no interest to Uninstall
	Portmap         string // the file of the plugin for ports of the host, which is copied, too; "": none is. Of no interest to Uninstall
	BinDir, ConfDir string
	RunDir          string // of the daemon, for the configuration; "": the plugin's default. Of no interest to Uninstall

	// Network is the name of the network in the configuration, DisableGC whether that keeps runtimes from GC, by which they release all attachments to the
	// network that they do not know, also those of another runtime. Empty, nil: as in the configuration that Weft has made before; [DefaultNetwork], false if there
	// is none. Neither is of interest to Uninstall.
	Network   string
	DisableGC *bool
}

// Report tells what was done, a line for each thing.
type Report struct {
	Done     []string
	Warnings []string // what does not work as it could
}

func (r *Report) done(format string, args ...any) {
	r.Done = append(r.Done, fmt.Sprintf(format, args...))
}

func (r *Report) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

// Install installs the plugin, and the one for ports of the host if it is named, then the configuration. Installed already, it brings both up to date. What is in
// Done was done also if there is an error.
func Install(ctx context.Context, c Config) (r Report, err error) {
	if c.Network != "" {
		if err := CheckNetwork(c.Network); err != nil {
			return r, err
		}
	}
	if err := c.checkPlugin(ctx); err != nil {
		return r, err
	}
	for _, d := range []string{c.BinDir, c.ConfDir} {
		if err := makeDir(d); err != nil {
			return r, fmt.Errorf("directory %s cannot be made: %w", d, plain(err))
		}
	}
	bin, conf, err := c.open(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, conf.close(), bin.close()) }()
	if err := c.putPlugin(bin, &r); err != nil {
		return r, err
	}
	if err := c.putPortmap(bin, &r); err != nil {
		return r, err
	}
	return r, c.putConf(ctx, conf, &r)
}

// Uninstall removes the configuration, then the plugin, and puts back what was there before. What is not installed is no error.
func Uninstall(ctx context.Context, c Config) (r Report, err error) {
	bin, conf, err := c.open(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, conf.close(), bin.close()) }()
	if conf != nil {
		if err := removeConf(conf, &r); err != nil {
			return r, err
		}
	}
	if bin == nil {
		return r, nil
	}
	return r, errors.Join(remove(bin, PluginName, installedPlugin, &r), remove(bin, portmapName, always, &r))
}

// Installed returns the path of the plugin if it is in the directory, else "".
func Installed(binDir string) string {
	path := filepath.Join(binDir, PluginName)
	if !installedPlugin(path) {
		return ""
	}
	return path
}

// RunDir returns the daemon's run directory that the configuration in the directory names, "" if there is none, or it names none.
func RunDir(confDir string) string {
	b, err := readBounded(filepath.Join(confDir, ConfName))
	if err != nil {
		return ""
	}
	var list struct {
		Plugins []struct {
			Type   string `json:"type"`
			RunDir string `json:"runDir"`
		} `json:"plugins"`
	}
	if json.Unmarshal(b, &list) != nil {
		return ""
	}
	for _, p := range list.Plugins {
		if p.Type == PluginName {
			return p.RunDir
		}
	}
	return ""
}

// open opens the two directories, always in the same order, as it waits for whoever else has them. One that does not exist is nil.
func (c Config) open(ctx context.Context) (bin, conf *dir, err error) {
	if bin, err = openDir(ctx, c.BinDir); err != nil {
		return nil, nil, err
	}
	if sameDir(c.BinDir, c.ConfDir) { // nobody can have its lock twice
		return bin, bin.share(), nil
	}
	if conf, err = openDir(ctx, c.ConfDir); err != nil {
		return nil, nil, errors.Join(err, bin.close())
	}
	return bin, conf, nil
}

// checkPlugin refuses what is not the plugin, or does not run here.
func (c Config) checkPlugin(ctx context.Context) error {
	switch _, err := os.Stat(c.Plugin); {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("the CNI plugin %s is not there; it is built together with weft: copy weft-cni to beside it, or name its file by --from", c.Plugin)
	case err != nil:
		return fmt.Errorf("the CNI plugin cannot be read: %w", err)
	case !isPlugin(c.Plugin):
		return fmt.Errorf("%s is not Weft's CNI plugin; name the file weft-cni by --from", c.Plugin)
	}
	_, err := versions(ctx, c.Plugin)
	return err
}

func (c Config) putPlugin(d *dir, r *Report) error {
	path := d.path(PluginName)
	if same(c.Plugin, path) && regular(path) || installedPlugin(path) && equal(c.Plugin, path) {
		r.done("in place already: %s", path)
		return nil
	}
	src, err := os.Open(filepath.Clean(c.Plugin))
	if err != nil {
		return fmt.Errorf("the CNI plugin cannot be read: %w", err)
	}
	defer func() { _ = src.Close() }() // opened for reading
	return put(d, PluginName, installedPlugin, src, 0o755, r)
}

func (c Config) putConf(ctx context.Context, d *dir, r *Report) error {
	path := d.path(ConfName)
	have, state := readConf(path)
	if state == edited {
		r.warn("%s was edited and stays as it is; remove it and install again for a new one", path)
	} else {
		want, err := c.conf(ctx, have, r)
		switch {
		case err != nil:
			return err
		case state == asMade && have.equal(want):
			r.done("in place already: %s", path)
		default:
			text, err := want.text()
			if err != nil {
				return err
			}
			if err := put(d, ConfName, isConf, text, 0o644, r); err != nil {
				return err
			}
		}
	}
	before, err := earlier(d.name)
	if err != nil {
		return err
	}
	for _, name := range before {
		r.warn("%s comes before %s, and runtimes take the first one: remove it, or rename one of the two", d.path(name), ConfName)
	}
	return nil
}

func removeConf(d *dir, r *Report) error {
	if _, state := readConf(d.path(ConfName)); state == edited {
		if err := d.rename(ConfName, ConfName+editedSuffix); err != nil {
			return err
		}
		fault.Point("uninstall-edited")
		r.done("kept %s, which was edited, as %s", d.path(ConfName), ConfName+editedSuffix)
	}
	return remove(d, ConfName, isConf, r)
}
