// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"github.com/weftnet/weft/internal/node"
	"github.com/weftnet/weft/internal/token"
)

const envToken = "WEFT_TOKEN"

// launching is what the flags of a launch are read into.
type launching struct {
	cfg                         node.Config
	advertise, level, format    string
	tun, relayLimit, encryption string
	paths                       []string
	noMasquerade                bool
	noOffload, noTSO, noUSO     bool
	noGSO, noGRO                bool
}

func (c *cli) launch() *cobra.Command {
	l := launching{cfg: node.Config{Version: version}}
	cfg := &l.cfg
	var tokenFile string
	var foreground bool
	cmd := &cobra.Command{
		Use:   "launch",
		Short: "Run this host's node: found a mesh, or join one by --peer",
		Long: `Launch runs the daemon in the foreground until it gets SIGTERM or SIGINT; systemd,
a container or a shell supervises it.

Without --peer it founds a mesh, makes the token and prints the command with
which the next host joins. With --peer it joins, retrying for as long as it
takes. Once it has a data directory, later launches resume from there.

The token comes from --token-file, from the environment variable ` + envToken + `, or
from the data directory, in this order; the node goes on with the one in the
data directory unless the mesh accepts the one given instead, as after weft
token rotate.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.newLog(&l); err != nil {
				return err
			}
			defer func() { _ = cfg.Log.Sync() }()
			var err error
			cfg.Token, err = givenToken(tokenFile, c.getenv(envToken))
			if token.Missing(err) {
				cfg.TokenFile, err = tokenFile, nil // the data directory may have it
			}
			if err != nil {
				return err
			}
			if cfg.Name == "" {
				if cfg.Name, err = os.Hostname(); err != nil {
					return fmt.Errorf("finding the host's name: %w; give one with --name", err)
				}
			}
			if !foreground {
				return usagef("--foreground=false: weft always runs in the foreground; let systemd, a container or a shell supervise it")
			}
			cfg.RangeGiven = cmd.Flags().Changed("range")
			if err := c.complete(cmd, &l); err != nil {
				return err
			}
			c.lean(garbagePercent)
			return node.Launch(cmd.Context(), *cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Name, "name", "", "name of this node (default: the host's name)")
	f.StringArrayVar(&cfg.Peers, "peer", nil, "`HOST[:PORT]` of a node of the mesh to join; may be given several times")
	f.StringSliceVar(&cfg.Seed, "seed", nil, "`NAME,...` of the nodes that found the mesh together; the same list on each of them")
	f.StringVar(&tokenFile, "token-file", "", "file that holds the mesh's token (mode 0600)")
	f.StringVar(&cfg.Range, "range", node.DefaultRange, "addresses of the mesh: a v4 prefix, a v6 prefix, or both as v4,v6")
	f.StringSliceVar(&cfg.Reserve, "reserve", nil, "`CIDR,...` of the range, given out only by name (weft attach --ip); may be given several times")
	l.flags(f)
	f.BoolVar(&foreground, "foreground", true, "run in the foreground (the only mode)")
	return cmd
}

// flags adds the flags that every launch has.
func (l *launching) flags(f *pflag.FlagSet) {
	f.Uint16Var(&l.cfg.Port, "port", node.DefaultPort, "port of data and gossip, UDP and TCP")
	f.StringVar(&l.advertise, "advertise", "", "address at which the other nodes reach this one (default: found by the host's routes)")
	f.StringVar(&l.cfg.DataDir, "data-dir", node.DefaultDataDir, "directory of the node's state")
	f.IntVar(&l.cfg.MTU, "mtu", 0, "MTU of the workloads' interfaces (0: derive it from the link below)")
	f.IntVar(&l.cfg.Shards, "shards", node.DefaultShards(), "packet threads, each with its own queue and socket; unless given, one for every two processors, at most 8")
	f.StringVar(&l.tun, "tun", string(node.TUNAuto), "how to open the TUN device: native, portable (slower; without offloads, for old kernels), or auto: native where the kernel can")
	f.BoolVar(&l.noOffload, "no-offload", false, "use no offload at all: all of the four that follow")
	f.BoolVar(&l.noTSO, "no-tso", false, "exchange TCP segments with the kernel one by one")
	f.BoolVar(&l.noUSO, "no-uso", false, "exchange UDP datagrams with the kernel one by one")
	f.BoolVar(&l.noGSO, "no-gso", false, "send sealed datagrams one by one, not by UDP_SEGMENT")
	f.BoolVar(&l.noGRO, "no-gro", false, "receive sealed datagrams one by one, not by UDP_GRO")
	f.BoolVar(&l.cfg.CopyDSCP, "copy-dscp", false, "mark sealed datagrams with the DSCP of the packets in them")
	f.BoolVar(&l.noMasquerade, "no-masquerade", false, "leave the source address of workloads' traffic to the outside as it is")
	f.BoolVar(&l.cfg.NoBench, "no-bench", false, "let no other node measure the way here (weft bench)")
	f.BoolVar(&l.cfg.NoRelay, "no-relay", false, "pass on nothing between other nodes that do not reach each other")
	f.StringSliceVar(&l.cfg.Kernel.Trusted, "trusted-subnets", nil, "`CIDR,...` of networks between hosts that are trusted with plaintext: to nodes there that trust this one's address, too, packets go by the kernel, not encrypted")
	f.StringSliceVar(&l.paths, "paths", []string{"direct", "vxlan", "udp"}, "ways to other nodes that may be used: direct and vxlan, by the kernel in plaintext where both sides trust the network, and udp, encrypted")
	f.BoolVar(&l.cfg.Kernel.NoBypass, "no-bypass", false, "have all packets of kernel paths go through the host's stack, those of large flows as well")
	f.StringVar(&l.encryption, "encryption", "", "on or off, for the node that founds a mesh or those of --seed: off trusts every network between hosts; others take over what the mesh has, and refuse to join if another is given (default: on)")
	f.Uint32Var(&l.cfg.Kernel.VNI, "vxlan-vni", node.DefaultVNI, "number of the mesh's VXLAN network, the same on all nodes; its UDP port is --port + 1")
	f.StringVar(&l.relayLimit, "relay-limit", "1gbit", "pass on at most `RATE` between other nodes, such as 200mbit or 1gbit; 0: no limit")
	f.DurationVar(&l.cfg.ReclaimAfter, "reclaim-after", 0, "declare nodes gone for good that have not answered for so long, also if they are only cut off or stopped (weft stop), as weft forget does: they have to be reset (10s or more; 0: never)")
	f.DurationVar(&l.cfg.Quarantine, "quarantine", node.DefaultQuarantine, "how long a freed address rests before another workload may get it (24h at most; 0: not at all)")
	f.StringVar(&l.level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&l.format, "log-format", "console", "console or json")
}

// newLog makes the log that the flags want.
func (c *cli) newLog(l *launching) (err error) {
	l.cfg.Log, err = newLogger(c.err, l.level, l.format)
	return err
}

// complete reads these flags into the configuration.
func (c *cli) complete(cmd *cobra.Command, l *launching) (err error) {
	cfg := &l.cfg
	if l.advertise != "" {
		if cfg.Advertise, err = netip.ParseAddr(l.advertise); err != nil {
			return usagef("--advertise %q is no IP address", l.advertise)
		}
	}
	if cfg.Port == 0 {
		return usagef("--port 0 is no port; give one between 1 and 65535")
	}
	if cfg.NoRelay && cmd.Flags().Changed("relay-limit") {
		return usagef("--no-relay and --relay-limit exclude each other; give one of them")
	}
	if cfg.RelayLimit, err = parseRate(l.relayLimit); err != nil {
		return usagef("--relay-limit %v", err)
	}
	if cfg.DataDir, err = absolute(cfg.DataDir); err != nil {
		return err
	}
	if cfg.RunDir, err = absolute(c.runDir); err != nil {
		return err
	}
	cfg.Offloads = node.Offloads{
		TSO: !l.noOffload && !l.noTSO, USO: !l.noOffload && !l.noUSO, GSO: !l.noOffload && !l.noGSO, GRO: !l.noOffload && !l.noGRO,
	}
	if cfg.TUN, err = node.ParseTUN(l.tun); err != nil {
		return usagef("%v", err)
	}
	if cfg.Kernel.Paths, err = node.ParsePaths(l.paths); err != nil {
		return usagef("%v", err)
	}
	if cfg.Kernel.Encryption, err = node.ParseEncryption(l.encryption); err != nil {
		return usagef("%v", err)
	}
	if cmd.Flags().Changed("vxlan-vni") && cfg.Kernel.VNI == 0 {
		return usagef("--vxlan-vni 0 is out of range; give 1 to 16777215")
	}
	switch {
	case cfg.Quarantine < 0:
		return usagef("--quarantine %v is negative; give a time, or 0 for none", cfg.Quarantine)
	case cfg.Quarantine == 0:
		cfg.Quarantine = -1
	}
	cfg.Masquerade = !l.noMasquerade
	cfg.Out, cfg.Interactive = c.out, interactive(c.out)
	return nil
}

// garbagePercent is how much garbage a daemon may have, relative to what it uses, before it is collected: half of the default, as
// packets make none, and memory counts where there are many daemons.
const garbagePercent = 50

// kubeGarbagePercent is that of a daemon that knows all pods of a cluster: it uses several times as much, and what is told of pods that come and go makes
// little garbage.
const kubeGarbagePercent = 12

// lean has the process keep little memory, unless GOGC says otherwise.
func (c *cli) lean(percent int) {
	if c.getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// givenToken returns the token that the user gave, the zero Token if none.
func givenToken(file, env string) (token.Token, error) {
	switch {
	case file != "":
		return token.ReadFile(file)
	case strings.TrimSpace(env) != "":
		t, err := token.Parse(env)
		if err != nil {
			return token.Token{}, fmt.Errorf("%s: %w", envToken, err)
		}
		return t, nil
	default:
		return token.Token{}, nil
	}
}

// absolute makes a path independent of the working directory: others read it in
// status, and use it.
func absolute(path string) (string, error) {
	p, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", path, err)
	}
	return p, nil
}

func newLogger(w io.Writer, level, format string) (*zap.Logger, error) {
	l, err := zapcore.ParseLevel(level)
	if err != nil || l > zapcore.ErrorLevel {
		return nil, usagef("--log-level %q is none of debug, info, warn, error", level)
	}
	var enc zapcore.Encoder
	switch format {
	case "console":
		ec := zap.NewDevelopmentEncoderConfig()
		ec.EncodeTime = zapcore.ISO8601TimeEncoder
		ec.CallerKey = zapcore.OmitKey
		enc = zapcore.NewConsoleEncoder(ec)
	case "json":
		ec := zap.NewProductionEncoderConfig()
		ec.EncodeTime = zapcore.RFC3339NanoTimeEncoder
		enc = zapcore.NewJSONEncoder(ec)
	default:
		return nil, usagef("--log-format %q is none of console, json", format)
	}
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), l)), nil
}

// interactive tells whether w is a person's terminal: only there is a token
// shown unasked.
func interactive(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
