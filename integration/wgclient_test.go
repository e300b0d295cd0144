// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/integration/lab"
)

// envWireGuard names the wireguard-go binary that plays the stock clients.
const envWireGuard = "WEFT_WIREGUARD_GO"

// wgSockets is where wireguard-go listens for its configuration; it knows no other place.
const wgSockets = "/var/run/wireguard"

// wgClient is a stock WireGuard client: the program wireguard-go on a host without Weft, configured by what `weft wg add`
// printed, as wg-quick does.
type wgClient struct {
	*lab.Namespace
	conf   wgConf
	device string
	addresses
}

type addresses struct{ v4, v6 netip.Addr }

func (a addresses) all() []netip.Addr { return []netip.Addr{a.v4, a.v6} }

// wgConf is a configuration by section and key, "Interface.Address".
type wgConf map[string]string

func parseWG(t *testing.T, text string) wgConf {
	t.Helper()
	c, section := wgConf{}, ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, " = ")
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[' && line[len(line)-1] == ']':
			section = line[1:len(line)-1] + "."
		case ok && section != "" && c[section+key] == "":
			c[section+key] = value
		default:
			t.Fatalf("the configuration has the line %q", line)
		}
	}
	return c
}

// list returns the prefixes of a value.
func (c wgConf) list(t *testing.T, key string) (all []netip.Prefix) {
	t.Helper()
	for s := range strings.SplitSeq(c[key], ", ") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			t.Fatalf("%s is %q: %v", key, c[key], err)
		}
		all = append(all, p)
	}
	return all
}

// joinWG starts a client on the namespace with a configuration. byTool configures it by the program wg, which must be there.
func joinWG(t *testing.T, n *lab.Namespace, text string, byTool bool) *wgClient {
	t.Helper()
	c := &wgClient{Namespace: n, conf: parseWG(t, text)}
	// The name is the socket's too, which all namespaces share: it is this process's alone.
	for i := 0; c.device == "" || exists(c.socket()); i++ {
		c.device = fmt.Sprintf("wt%d-%d", os.Getpid(), i)
	}
	p, err := n.Start(lab.Command{Path: os.Getenv(envWireGuard), Args: []string{"-f", c.device}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		_ = os.Remove(c.socket())
		_ = os.Remove(wgSockets) // unless somebody else has a socket in it
	})
	eventually(t, patience, func() error {
		conn, err := net.Dial("unix", c.socket())
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	if byTool {
		c.configureByTool(t, text)
	} else {
		c.configure(t)
	}
	c.raise(t)
	return c
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (c *wgClient) socket() string { return filepath.Join(wgSockets, c.device+".sock") }

// configureByTool does what `wg-quick strip` and `wg setconf` do.
func (c *wgClient) configureByTool(t *testing.T, text string) {
	t.Helper()
	var stripped strings.Builder
	for line := range strings.Lines(text) {
		key, _, _ := strings.Cut(line, " ")
		if !slices.Contains([]string{"Address", "DNS", "MTU"}, key) {
			stripped.WriteString(line)
		}
	}
	path := filepath.Join(t.TempDir(), "stripped.conf")
	if err := os.WriteFile(path, []byte(stripped.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	wg, err := exec.LookPath("wg")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := c.Run(ctx, lab.Command{Path: wg, Args: []string{"setconf", c.device, path}})
	if err != nil || r.Code != 0 {
		t.Fatalf("wg setconf: exit code %d, %v: %s", r.Code, err, r.Stderr)
	}
}

// configure speaks wireguard-go's own protocol.
func (c *wgClient) configure(t *testing.T) {
	t.Helper()
	key := func(name string) string {
		b, err := base64.StdEncoding.DecodeString(c.conf[name])
		if err != nil || len(b) != 32 {
			t.Fatalf("%s is %q", name, c.conf[name])
		}
		return hex.EncodeToString(b)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "set=1\nprivate_key=%s\nreplace_peers=true\npublic_key=%s\npreshared_key=%s\nendpoint=%s\npersistent_keepalive_interval=%s\n",
		key("Interface.PrivateKey"), key("Peer.PublicKey"), key("Peer.PresharedKey"), c.conf["Peer.Endpoint"], c.conf["Peer.PersistentKeepalive"])
	for _, p := range c.conf.list(t, "Peer.AllowedIPs") {
		fmt.Fprintf(&b, "allowed_ip=%v\n", p)
	}
	conn, err := net.Dial("unix", c.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, b.String()+"\n"); err != nil {
		t.Fatal(err)
	}
	code := -1
	if _, err := fmt.Fscanf(conn, "errno=%d\n", &code); err != nil || code != 0 {
		t.Fatalf("wireguard-go refuses the configuration: errno %d, %v", code, err)
	}
}

// raise does what wg-quick does besides.
func (c *wgClient) raise(t *testing.T) {
	t.Helper()
	nl := c.Netlink()
	dev, err := nl.LinkByName(c.device)
	if err != nil {
		t.Fatal(err)
	}
	mtu, err := strconv.Atoi(c.conf["Interface.MTU"])
	if err == nil {
		err = nl.LinkSetMTU(dev, mtu)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.conf.list(t, "Interface.Address") {
		if err := nl.AddrAdd(dev, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
			t.Fatal(err)
		}
		if p.Addr().Is4() {
			c.v4 = p.Addr()
		} else {
			c.v6 = p.Addr()
		}
	}
	if err := nl.LinkSetUp(dev); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.conf.list(t, "Peer.AllowedIPs") {
		if err := nl.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(p)}); err != nil {
			t.Fatal(err)
		}
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
