// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/wgquick"
)

func (c *cli) wg() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wg COMMAND",
		Short: "Let phones, laptops and other WireGuard clients join by this node",
		Long: `Wg lets stock WireGuard clients, which have no Weft, join the mesh by this node:
they reach every workload on every node, and every workload reaches them.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q for \"weft wg\"", args[0])
			}
			return usagef("what about the WireGuard clients? give add, list or remove")
		},
	}
	list := &cobra.Command{Use: "list", Short: "List the WireGuard clients of this node, and how they are"}
	cmd.AddCommand(
		c.wgAdd(),
		reading(c, list, func(ctx context.Context, cl *api.Client) ([]api.WGClient, error) { return cl.WGClients(ctx) }, showWGClients),
		c.wgRemove(),
	)
	return cmd
}

func (c *cli) wgRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Cut a WireGuard client off, and give its addresses back",
		Long: `Remove cuts the client off at once: whoever has its configuration, or finds the
device that has it, does not get in with it any more.`,
		Example: "  weft wg remove phone",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := c.client().WGRemove(cmd.Context(), api.WGRemoveRequest{Name: args[0]})
			return err
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			if list, err := c.client().WGClients(cmd.Context()); err == nil && len(args) == 0 {
				for _, w := range list {
					names = append(names, w.Name)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

func showWGClients(w io.Writer, list []api.WGClient) error {
	now := time.Now()
	rows := [][]string{{"NAME", "ADDRESSES", "STATE", "ENDPOINT", "LAST HANDSHAKE", "RECEIVED", "SENT"}}
	for _, l := range list {
		state, handshake := l.State, ""
		if l.Reason != "" {
			state += " (" + l.Reason + ")"
		}
		if l.LastHandshake != nil {
			handshake = since(now, *l.LastHandshake) + " ago"
		}
		rows = append(rows, []string{l.Name, addrs(l.Addresses), state, l.Endpoint, handshake, size(l.RxBytes), size(l.TxBytes)})
	}
	return table(w, rows)
}

// wgAdd holds what `weft wg add` was told.
type wgAdd struct {
	name, endpoint, publicKey string
	allowed, dns              []string
	keepalive                 time.Duration
	output                    string
	qr, json                  bool

	allowedIPs []netip.Prefix
	servers    []netip.Addr
}

// wgAdded is what it prints with --json.
type wgAdded struct {
	Name       string         `json:"name"`
	PublicKey  string         `json:"public_key"`
	Addresses  []netip.Addr   `json:"addresses"`
	Endpoint   string         `json:"endpoint"`
	AllowedIPs []netip.Prefix `json:"allowed_ips"`
	MTU        int            `json:"mtu"`
	Config     string         `json:"config,omitempty"` // unless it is in File
	File       string         `json:"file,omitempty"`
	Warnings   []string       `json:"warnings,omitempty"`
}

func (c *cli) wgAdd() *cobra.Command {
	var a wgAdd
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Make a WireGuard client's keys and addresses, and print its configuration",
		Long: `Add prints a configuration for wg-quick and the WireGuard apps, by which a client
joins the mesh through this node. It is printed once: the private key is made
here and kept nowhere else. Treat the text, and the QR code, like a password.`,
		Example: `  weft wg add phone --qr                     # scan it in the WireGuard app
  weft wg add laptop --output weft.conf      # there: wg-quick up ./weft.conf
  weft wg add office --endpoint vpn.example.org:51820 --keepalive 0
  weft wg add server --public-key "$(wg pubkey < key)"`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.name = args[0]
			if err := a.parse(); err != nil {
				return err
			}
			return c.addWGClient(cmd.Context(), a)
		},
	}
	f := cmd.Flags()
	f.StringVar(&a.endpoint, "endpoint", "", "`HOST[:PORT]` where the client finds this node (default: its --advertise address and port)")
	f.StringVar(&a.publicKey, "public-key", "", "`KEY` of a client that keeps its private key to itself (default: make a pair)")
	f.StringSliceVar(&a.allowed, "allowed-ips", nil, "`CIDR,...` that the client sends here (default: the mesh's range)")
	f.StringSliceVar(&a.dns, "dns", nil, "`ADDR,...` of the client's name servers")
	f.DurationVar(&a.keepalive, "keepalive", 25*time.Second, "how often the client says that it is there, to be found behind a NAT; 0: never")
	f.StringVar(&a.output, "output", "", "`FILE` for the configuration, made with mode 0600, in place of standard output")
	f.BoolVar(&a.qr, "qr", false, "print a QR code, too")
	f.BoolVar(&a.json, "json", false, "print JSON")
	return cmd
}

// parse reads what needs no daemon.
func (a *wgAdd) parse() error {
	for _, s := range a.allowed {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return usagef("--allowed-ips %q is no CIDR, such as 10.32.0.0/12", s)
		}
		a.allowedIPs = append(a.allowedIPs, p.Masked())
	}
	for _, s := range a.dns {
		d, err := netip.ParseAddr(strings.TrimSpace(s))
		if err != nil || d.Zone() != "" {
			return usagef("--dns %q is no IP address", s)
		}
		a.servers = append(a.servers, d)
	}
	switch {
	case a.keepalive < 0 || a.keepalive > wgquick.MaxKeepalive || a.keepalive%time.Second != 0:
		return usagef("--keepalive %v is not possible; give whole seconds, at most %v, or 0", a.keepalive, wgquick.MaxKeepalive)
	case a.qr && a.json:
		return usagef("--qr and --json exclude each other; give one of them")
	case a.qr && a.publicKey != "":
		return usagef("--qr and --public-key exclude each other: without the private key the code is of no use")
	}
	return nil
}

// addWGClient adds the client and hands its configuration out. If that fails nothing of either remains.
func (c *cli) addWGClient(ctx context.Context, a wgAdd) (err error) {
	r := api.WGAddRequest{Name: a.name, PublicKey: a.publicKey, Endpoint: a.endpoint}
	private := ""
	if a.publicKey == "" {
		if private, r.PublicKey, err = wgquick.NewKey(rand.Reader); err != nil {
			return err
		}
	}
	to, undo, err := c.wgOutput(a.output)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	// Who has left the pipe must not end this process before it has undone what it did.
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGPIPE)
	added, err := c.client().WGAdd(ctx, r)
	if err != nil {
		var refusal *api.Refusal
		if private == "" || errors.As(err, &refusal) || errors.Is(err, api.ErrNotRunning) {
			return err
		}
		// It may be there all the same, and its private key is nowhere but here.
		if ferr := c.forgetWGClient(ctx, a.name, r.PublicKey); ferr != nil {
			return fmt.Errorf("%w; the client may have been added all the same: %w; remove it by: weft wg remove %s", err, ferr, a.name)
		}
		return fmt.Errorf("%w; the client was not added", err)
	}
	if err = c.handOut(to, a, private, r.PublicKey, added); err != nil {
		if ferr := c.forgetWGClient(ctx, a.name, r.PublicKey); ferr != nil {
			return fmt.Errorf("%w; and the client remains: %w; remove it by: weft wg remove %s", err, ferr, a.name)
		}
		return fmt.Errorf("%w; the client was not added", err)
	}
	return nil
}

// forgetWGClient removes the client with the key, which may not be there, also when ctx has ended.
func (c *cli) forgetWGClient(ctx context.Context, name, key string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := c.client().WGRemove(ctx, api.WGRemoveRequest{Name: name, PublicKey: key})
	if err == nil {
		return nil
	}
	list, lerr := c.client().WGClients(ctx)
	if lerr != nil || slices.ContainsFunc(list, func(l api.WGClient) bool { return l.PublicKey == key }) {
		return err
	}
	return nil
}

// handOut writes what the client has to be told.
func (c *cli) handOut(to *os.File, a wgAdd, private, public string, added api.WGAdded) error {
	conf := wgquick.Config{
		PrivateKey: private, PublicKey: public, Addresses: added.Addresses, DNS: a.servers, MTU: added.MTU,
		NodeKey: added.NodeKey, PresharedKey: added.PresharedKey, AllowedIPs: added.Universe, Endpoint: added.Endpoint, Keepalive: a.keepalive,
	}
	warnings := added.Warnings
	if len(a.allowedIPs) > 0 {
		conf.AllowedIPs = a.allowedIPs
		if beyond := outside(a.allowedIPs, added.Universe); len(beyond) > 0 {
			warnings = append(warnings, fmt.Sprintf("of %s only what lies in the mesh's range, %s, is carried; the rest is dropped", join(beyond), join(added.Universe)))
		}
	}
	code := ""
	if a.qr {
		var err error
		if code, err = wgquick.QR(conf.Text()); err != nil {
			return err
		}
	}
	conf.Comment = fmt.Sprintf("WireGuard client %s of a Weft mesh. Secret: whoever has this may join; weft wg remove %s cuts it off", a.name, a.name)
	if err := c.writeWG(to, a, public, conf, code, warnings, added); err != nil {
		return err
	}
	if !a.json {
		for _, m := range warnings {
			_, _ = fmt.Fprintf(c.err, "weft: warning: %s\n", m)
		}
	}
	return nil
}

func (c *cli) writeWG(to *os.File, a wgAdd, public string, conf wgquick.Config, code string, warnings []string, added api.WGAdded) error {
	text := conf.Text()
	if to != nil {
		_, err := to.WriteString(text)
		if err = errors.Join(err, to.Sync(), to.Close()); err != nil {
			return fmt.Errorf("writing the configuration: %w", err)
		}
	}
	if a.json {
		res := wgAdded{
			Name: a.name, PublicKey: public, Addresses: added.Addresses, Endpoint: added.Endpoint, AllowedIPs: conf.AllowedIPs,
			MTU: added.MTU, Config: text, Warnings: warnings,
		}
		if to != nil {
			res.Config, res.File = "", a.output
		}
		return c.printJSON(res)
	}
	if to != nil {
		text = fmt.Sprintf("%s is written, for %s\n", a.output, addrs(added.Addresses))
	}
	if _, err := io.WriteString(c.out, text+code); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}

// wgOutput makes the file for the configuration, nil if there shall be none, and the function that takes it back.
func (c *cli) wgOutput(path string) (to *os.File, undo func(), err error) {
	if path == "" {
		return nil, func() {}, nil
	}
	to, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil, nil, fmt.Errorf("file %s exists, and is not overwritten; remove it, or give another --output", path)
	case err != nil:
		return nil, nil, fmt.Errorf("making the file for the configuration: %w; give another --output", err)
	}
	return to, func() {
		_ = to.Close() // closed before, unless something went wrong
		_ = os.Remove(path)
	}, nil
}

// outside returns those prefixes that are not within one of the universe.
func outside(all, universe []netip.Prefix) (beyond []netip.Prefix) {
	for _, p := range all {
		inside := false
		for _, u := range universe {
			inside = inside || u.Bits() <= p.Bits() && u.Contains(p.Addr())
		}
		if !inside {
			beyond = append(beyond, p)
		}
	}
	return beyond
}
