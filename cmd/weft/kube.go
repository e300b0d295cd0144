// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/cniinstall"
	"github.com/weftnet/weft/internal/enforce"
	"github.com/weftnet/weft/internal/kube"
	"github.com/weftnet/weft/internal/node"
)

// What the DaemonSet tells its pods (the downward API).
const (
	envNodeName  = "NODE_NAME"
	envPodName   = "POD_NAME"
	envNamespace = "POD_NAMESPACE"
)

const (
	defaultNamespace = "kube-system"
	defaultDaemonSet = "weft"
	// namespaceFile is where a pod finds its namespace.
	namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
	// withdrawPatience bounds what is done after SIGTERM to remove all; the kubelet kills the pod half a minute after it.
	withdrawPatience = 15 * time.Second
)

func (c *cli) kube() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kube",
		Short: "Run this host's node as a part of a Kubernetes cluster (for the DaemonSet)",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(c.kubeLaunch(), c.kubeProbe(), c.kubeInstall(), c.kubeUninstall())
	return cmd
}

// inCluster says where in a cluster this node is.
type inCluster struct {
	kubeconfig, namespace, daemonSet, pod string

	inRange string
	conf    cniinstall.Config
}

func (c *cli) kubeLaunch() *cobra.Command {
	l := launching{cfg: node.Config{Version: version, Range: node.DefaultRange}}
	var k inCluster
	cmd := &cobra.Command{
		Use:   "launch",
		Short: "Run this host's node: found the cluster's mesh, or join it",
		Long: `Launch runs the daemon as weft launch does, but finds its mesh by the cluster: the
node's name is that of its Node object (` + envNodeName + `), the token is in the Secret weft,
which the first node creates, and the hosts to join by are the addresses of the
other Nodes. A node that has a data directory goes on without the API server.

When traffic can flow it installs the CNI plugin and its configuration, so that
the kubelet calls the node ready, and clears the condition NetworkUnavailable.
Addresses of Nodes that were deleted are taken over. If another daemon runs on
the host, as in a rolling update, it stands by and takes over when that ends. If
the DaemonSet was deleted it removes all from the host when it ends, but for the
data directory.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.newLog(&l); err != nil {
				return err
			}
			defer func() { _ = l.cfg.Log.Sync() }()
			if l.cfg.Name == "" {
				l.cfg.Name = c.getenv(envNodeName)
			}
			if l.cfg.Name == "" {
				return usagef("the name of this host's Node object is missing: give it by --name, or by %s, as the downward API does (spec.nodeName)", envNodeName)
			}
			k.pod = c.getenv(envPodName)
			if k.kubeconfig != "" && !cmd.Flags().Changed("daemonset") {
				k.daemonSet = ""
			}
			if k.namespace == "" {
				k.namespace = c.podNamespace()
			}
			k.conf.Portmap = portmapBeside()
			if err := cniPaths(&k.conf); err != nil {
				return err
			}
			if err := c.complete(cmd, &l); err != nil {
				return err
			}
			if l.cfg.RunDir != defaultRunDir {
				k.conf.RunDir = l.cfg.RunDir
			}
			return c.launchInCluster(cmd.Context(), l, k)
		},
	}
	f := cmd.Flags()
	f.StringVar(&l.cfg.Name, "name", "", "name of this host's Node object (env "+envNodeName+")")
	f.StringVar(&k.kubeconfig, "kubeconfig", "", "`FILE` with the way to the API server, for a node that runs outside of a pod (default: the pod's service account)")
	f.StringVar(&k.namespace, "namespace", "", "namespace of the Secret and the DaemonSet (env "+envNamespace+"; default: that of the pod, or "+defaultNamespace+")")
	f.StringVar(&k.daemonSet, "daemonset", defaultDaemonSet, "name of the DaemonSet that runs this; when it was deleted, all is removed from the host. Empty, as with --kubeconfig: none does")
	f.StringVar(&k.inRange, "range", "", "addresses of a mesh that is founded: a v4 prefix, a v6 prefix, or both as v4,v6 (default: the cluster's range of pods, or "+node.DefaultRange+")")
	l.flags(f)
	cniDirs(cmd, &k.conf)
	f.StringVar(&k.conf.Plugin, "plugin", "", "file of the CNI plugin (default: weft-cni beside weft)")
	return cmd
}

// launchInCluster runs the node until it is told to end, and removes it from the host if it is not to come back.
func (c *cli) launchInCluster(ctx context.Context, l launching, k inCluster) (err error) {
	if err := writableSettings(kernelSettings); err != nil {
		return err
	}
	cluster, err := kube.Connect(k.kubeconfig, "weft/"+version+" node/"+l.cfg.Name)
	if err != nil {
		return err
	}
	log := l.cfg.Log.Named("kube")
	agent := kube.New(kube.Config{
		Cluster: cluster, Node: l.cfg.Name, Namespace: k.namespace, DaemonSet: k.daemonSet,
		Range: k.inRange, DefaultRange: node.DefaultRange, Encryption: l.encryption, Rand: rand.Reader, Log: log,
		Up: func(ctx context.Context) error {
			r, err := cniinstall.Install(ctx, k.conf)
			for _, w := range r.Warnings {
				log.Warn(w)
			}
			for _, d := range r.Done {
				log.Info(d)
			}
			return err
		},
	})
	defer agent.Close()
	if k.pod != "" {
		stop, err := agent.ServeProbes(ctx, k.pod)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	l.cfg.Guide, l.cfg.GuidePolicies = guide{agent}, true
	c.lean(kubeGarbagePercent)
	for {
		err = node.Launch(ctx, l.cfg)
		if !errors.Is(err, node.ErrAnew) || ctx.Err() != nil {
			break
		}
		log.Warn("beginning anew", zap.Error(err))
	}
	if ctx.Err() == nil || !agent.Removed(context.WithoutCancel(ctx)) {
		return err
	}
	log.Info("the DaemonSet was deleted: removing all that Weft made on this host, but for the data directory", zap.String("daemonset", k.namespace+"/"+k.daemonSet))
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawPatience)
	defer cancel()
	done, werr := withdraw(last, k.conf, l.cfg.DataDir, l.cfg.RunDir)
	for _, d := range done {
		log.Info(d)
	}
	return errors.Join(err, werr)
}

// withdraw removes the CNI plugin and all else that Weft made on this host, but for the data directory, and returns what it has done, a line for
// each thing. The daemon must have ended.
func withdraw(ctx context.Context, conf cniinstall.Config, dataDir, runDir string) (done []string, err error) {
	r, err := cniinstall.Uninstall(ctx, conf)
	removed, werr := node.Withdraw(ctx, dataDir, runDir)
	for _, x := range removed {
		r.Done = append(r.Done, "removed "+x)
	}
	return r.Done, errors.Join(err, werr)
}

// podNamespace is the namespace that this runs in.
func (c *cli) podNamespace() string {
	if ns := c.getenv(envNamespace); ns != "" {
		return ns
	}
	if b, err := os.ReadFile(namespaceFile); err == nil && len(b) > 0 {
		return strings.TrimSpace(string(b))
	}
	return defaultNamespace
}

func (c *cli) kubeProbe() *cobra.Command {
	return &cobra.Command{
		Use:   "probe ready|live",
		Short: "Tell the kubelet whether the daemon of this pod is ready, or alive (exit code 0)",
		Long: `Probe asks the daemon of the pod that it is called in (` + envPodName + `). It is ready when
traffic can flow and the CNI plugin is installed, or when it stands by to take
over from another daemon of the host; it is alive when it answers.`,
		ValidArgs: []string{"ready", "live"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			pod := c.getenv(envPodName)
			if pod == "" {
				return usagef("the name of the pod is missing: give it by %s, as the downward API does (metadata.name)", envPodName)
			}
			ready, text, err := kube.Probe(cmd.Context(), pod)
			if err != nil {
				return err
			}
			if args[0] == "ready" && !ready {
				return fmt.Errorf("the daemon is not ready: %s", text)
			}
			return c.println(text)
		},
	}
}

func (c *cli) kubeInstall() *cobra.Command {
	var conf cniinstall.Config
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put the CNI plugin to where container runtimes look for it (for the init container)",
		Long: `Install copies the plugin, weft-cni, into the runtime's directory of plugins under
the name weft. The network configuration comes from weft kube launch, when
traffic can flow.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf.Portmap = portmapBeside()
			if err := cniPaths(&conf); err != nil {
				return err
			}
			r, err := cniinstall.InstallPlugin(cmd.Context(), conf)
			return c.reported(r, err)
		},
	}
	cmd.Flags().StringVar(&conf.BinDir, "bin-dir", cniinstall.DefaultBinDir, "directory in which the runtime looks for plugins")
	cmd.Flags().StringVar(&conf.Plugin, "plugin", "", "file of the CNI plugin (default: weft-cni beside weft)")
	return cmd
}

func (c *cli) kubeUninstall() *cobra.Command {
	var conf cniinstall.Config
	var dataDir string
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the plugin, its configuration, and all else that Weft made on this host, but for the data directory",
		Long: `Uninstall ends the daemon, if it runs, and removes what a DaemonSet that was deleted
while this host was away left on it: the CNI plugin and its configuration,
devices, routes and rules. What is in the data directory stays, so that the node
goes on as the one that it was if it is launched again; weft reset removes it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if st, err := c.client().Status(cmd.Context()); err == nil && !cmd.Flags().Changed("data-dir") {
				dataDir = st.DataDir
			}
			if err := cniPaths(&conf); err != nil {
				return err
			}
			if _, err := c.stopDaemon(cmd.Context(), api.StopRequest{}); err != nil && !errors.Is(err, api.ErrNotRunning) {
				return err
			}
			data, err := absolute(dataDir)
			if err != nil {
				return err
			}
			run, err := absolute(c.runDir)
			if err != nil {
				return err
			}
			done, err := withdraw(cmd.Context(), conf, data, run)
			for _, d := range done {
				err = errors.Join(err, c.println(d))
			}
			if err == nil && len(done) == 0 {
				return c.println(fmt.Sprintf("nothing of Weft's is on this host but for its data directory (%s)", filepath.Clean(data)))
			}
			return err
		},
	}
	cniDirs(cmd, &conf)
	cmd.Flags().StringVar(&dataDir, "data-dir", node.DefaultDataDir, "directory of the node's state (default: that of the running daemon)")
	return cmd
}

// guide has an agent direct a node.
type guide struct{ agent *kube.Agent }

func (g guide) StandBy(by string) { g.agent.StandBy(by) }

func (g guide) Attached(p node.Pod, warnings []string) { g.agent.Attached(kube.Pod(p), warnings) }
func (g guide) Refused(p node.Pod, why string)         { g.agent.Refused(kube.Pod(p), why) }

func (g guide) Begin(ctx context.Context, k node.Known, waits func(string)) (node.Orders, error) {
	o, err := g.agent.Begin(ctx, kube.Known(k), waits)
	return node.Orders(o), anew(err)
}

func (g guide) Confirm(ctx context.Context, f node.Founded, waits func(string)) error {
	return anew(g.agent.Confirm(ctx, kube.Founded(f), waits))
}

func (g guide) Run(ctx context.Context, n *node.Node) error {
	return anew(g.agent.Run(ctx, n.ID(), directed{n}))
}

// anew is err, as the node understands it.
func anew(err error) error {
	if errors.Is(err, kube.ErrAnew) {
		return fmt.Errorf("%w (%w)", node.ErrAnew, err)
	}
	return err
}

// directed is a node as an agent sees it.
type directed struct{ *node.Node }

// Policies implements [kube.Daemon].
func (d directed) Policies() kube.Sink { return sink{d.Node.Policies()} }

// sink has an agent tell who enforces network policies.
type sink struct{ *enforce.Enforcer }

func (s sink) Change(f func(kube.Changes)) { s.Enforcer.Change(func(c enforce.Changes) { f(c) }) }

func (d directed) Members() []kube.Member {
	var members []kube.Member
	for _, m := range d.Node.Members() {
		members = append(members, kube.Member(m))
	}
	return members
}
