// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/cniinstall"
	"github.com/weftnet/weft/internal/node"
	"github.com/weftnet/weft/internal/store"
)

// pluginFile is the name of the plugin's file, which lies beside that of weft.
const pluginFile = "weft-cni"

// portmapFile is the name of the plugin for ports of the host, which the image has beside weft.
const portmapFile = "portmap"

// cniPrefix begins the IDs of what runtimes have asked for.
const cniPrefix = "cni/"

func (c *cli) cni() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cni",
		Short: "Install the plugin by which container runtimes use the mesh, or take it away",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(c.cniInstall(), c.cniUninstall())
	return cmd
}

// cniDirs are the flags that say where the runtime looks.
func cniDirs(cmd *cobra.Command, conf *cniinstall.Config) {
	cmd.Flags().StringVar(&conf.BinDir, "bin-dir", cniinstall.DefaultBinDir, "directory in which the runtime looks for plugins")
	cmd.Flags().StringVar(&conf.ConfDir, "conf-dir", cniinstall.DefaultConfDir, "directory in which the runtime looks for network configurations")
}

func (c *cli) cniInstall() *cobra.Command {
	var conf cniinstall.Config
	var disableGC bool
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put the CNI plugin and a network configuration to where container runtimes look for them",
		Long: `Install copies the plugin, weft-cni, into the runtime's directory of plugins under
the name weft, and makes the network configuration 10-weft.conflist, with the
plugins portmap and bandwidth behind it if they are there. A file of somebody
else's under one of these names is kept as NAME.before-weft. Installed already,
both are brought up to date; a runtime may call the plugin at the same time.

With --portmap that file is copied, too, as weft-portmap, and takes the place of
portmap. Runtimes run it as root: it must be a file of root's that nobody else
may write.

GC of a runtime releases all attachments to the network that it does not know. If
two runtimes of a host use Weft, either each has a directory of configurations of
its own, and the network another name in each (--network), or runtimes are kept
from GC (--disable-gc). Both stay as they are if install is given without them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cniPaths(&conf); err != nil {
				return err
			}
			run, err := absolute(c.runDir)
			if err != nil {
				return err
			}
			if run != defaultRunDir {
				conf.RunDir = run
			}
			if cmd.Flags().Changed("disable-gc") {
				conf.DisableGC = &disableGC
			}
			if cmd.Flags().Changed("network") {
				if err := cniinstall.CheckNetwork(conf.Network); err != nil {
					return usageError{err}
				}
			}
			r, err := cniinstall.Install(cmd.Context(), conf)
			return c.reported(r, err)
		},
	}
	cniDirs(cmd, &conf)
	cmd.Flags().StringVar(&conf.Plugin, "from", "", "file of the plugin (default: weft-cni beside weft)")
	cmd.Flags().StringVar(&conf.Portmap, "portmap", "", "`FILE` of a plugin for ports of the host that is to be installed, too, as weft-portmap (default: none)")
	cmd.Flags().StringVar(&conf.Network, "network", "", "name of the network in the configuration (default: as it is, or "+cniinstall.DefaultNetwork+")")
	cmd.Flags().BoolVar(&disableGC, "disable-gc", false, "keep runtimes from GC, as several of them share the configuration (default: as it is, or false)")
	return cmd
}

func (c *cli) cniUninstall() *cobra.Command {
	var conf cniinstall.Config
	var force bool
	var dataDir string
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the CNI plugin and its network configuration away, and put back what was there before",
		Long: `Uninstall undoes install. A runtime cannot remove a container without the plugins
by which it was connected: so it refuses while there are such containers. If the
daemon does not run, the state in its data directory tells.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cniPaths(&conf); err != nil {
				return err
			}
			if !force {
				if err := c.removable(cmd.Context(), conf.ConfDir, dataDir); err != nil {
					return err
				}
			}
			r, err := cniinstall.Uninstall(cmd.Context(), conf)
			if err == nil && len(r.Done) == 0 {
				r.Done = []string{fmt.Sprintf("the CNI plugin is not installed (in %s and %s)", conf.BinDir, conf.ConfDir)}
			}
			return c.reported(r, err)
		},
	}
	cniDirs(cmd, &conf)
	cmd.Flags().StringVar(&dataDir, "data-dir", node.DefaultDataDir, "directory of the node's state, which tells what is attached when the daemon does not run")
	cmd.Flags().BoolVar(&force, "force", false, "although there are containers that the runtime cannot remove then")
	return cmd
}

// cniPaths makes the paths absolute, and finds the plugin if it is not named.
func cniPaths(conf *cniinstall.Config) error {
	if conf.Plugin == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("finding the CNI plugin beside weft: %w; name its file by --from", err)
		}
		conf.Plugin = filepath.Join(filepath.Dir(exe), pluginFile)
	}
	paths := []*string{&conf.Plugin, &conf.BinDir, &conf.ConfDir}
	if conf.Portmap != "" {
		paths = append(paths, &conf.Portmap)
	}
	for _, p := range paths {
		var err error
		if *p, err = absolute(*p); err != nil {
			return err
		}
	}
	return nil
}

// portmapBeside names the plugin for ports of the host that lies beside weft, which whoever made the image has put there; "" if there is none.
func portmapBeside() string {
	exe, err := os.Executable()
	if err != nil {
		return ""
	}
	path := filepath.Join(filepath.Dir(exe), portmapFile)
	if _, err := os.Lstat(path); err != nil {
		return ""
	}
	return path
}

// removable refuses if a runtime may have containers by the plugin, which it could not remove without. Whether it has knows the daemon that the installed
// configuration names, or, if that does not run, its state.
func (c *cli) removable(ctx context.Context, confDir, dataDir string) error {
	const advice = "remove them first, or give --force"
	run, err := absolute(cmp.Or(cniinstall.RunDir(confDir), c.runDir))
	if err != nil {
		return err
	}
	list, err := api.NewClient(run).Workloads(ctx)
	switch {
	case err == nil:
		n := 0
		for _, w := range list {
			if strings.HasPrefix(w.ID, cniPrefix) {
				n++
			}
		}
		if n > 0 {
			return fmt.Errorf("containers still have interfaces or addresses by the plugin, and without it the runtime cannot remove them (%d, see weft ps); %s", n, advice)
		}
		return nil
	case !errors.Is(err, api.ErrNotRunning):
		return fmt.Errorf("whether containers have interfaces or addresses by the plugin, without which the runtime cannot remove them, is not known: %w; give --force if there are none", err)
	}
	if dataDir, err = absolute(dataDir); err != nil {
		return err
	}
	n, err := node.CNILeft(dataDir, run)
	switch {
	case errors.Is(err, store.ErrInUse):
		return fmt.Errorf("whether containers have interfaces or addresses by the plugin, without which the runtime cannot remove them, is not known: no daemon answers in %s, but one has the data directory %s; "+
			"name its --run-dir, or give --force if there are none", run, dataDir)
	case err != nil:
		return fmt.Errorf("whether containers have interfaces or addresses by the plugin, without which the runtime cannot remove them, is not known: %w; give --force if there are none", err)
	case n > 0:
		return fmt.Errorf("containers still have interfaces or addresses by the plugin, and without it the runtime cannot remove them (%d, by the state in %s, as no daemon runs); %s", n, dataDir, advice)
	}
	return nil
}

// reported prints what was done, also if not all of it was.
func (c *cli) reported(r cniinstall.Report, err error) error {
	for _, w := range r.Warnings {
		c.warn(w)
	}
	for _, d := range r.Done {
		err = errors.Join(err, c.println(d))
	}
	return err
}
