// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/router"
)

func config() Config {
	return Config{Name: "n1", Port: DefaultPort, Range: DefaultRange, Shards: 1}
}

func TestConfigIsMadeCanonical(t *testing.T) {
	c := config()
	c.Peers = []string{"n2", "n3:7000", "192.0.2.1", "2001:db8::1", "[2001:db8::1]:99"}
	c.Range = "10.32.0.0/12"
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	want := "n2:6783 n3:7000 192.0.2.1:6783 [2001:db8::1]:6783 [2001:db8::1]:99"
	if got := strings.Join(c.Peers, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	again := c
	if err := again.check(); err != nil || strings.Join(again.Peers, " ") != want {
		t.Errorf("checked twice: %v, %v", again.Peers, err)
	}
}

func TestConfigRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"name":        {func(c *Config) { c.Name = "a b" }, `name "a b" is no node name; use letters, digits, '-', '.' and '_', at most 252 of them (--name)`},
		"no name":     {func(c *Config) { c.Name = "" }, `name "" is no node name; use letters, digits, '-', '.' and '_', at most 252 of them (--name)`},
		"peer port":   {func(c *Config) { c.Peers = []string{"n2:http"} }, `--peer "n2:http" is no HOST or HOST:PORT; give a name or an address, such as 192.0.2.1:6783`},
		"peer port 0": {func(c *Config) { c.Peers = []string{"n2:0"} }, `--peer "n2:0" is no HOST or HOST:PORT; give a name or an address, such as 192.0.2.1:6783`},
		"peer":        {func(c *Config) { c.Peers = []string{""} }, `--peer "" is no HOST or HOST:PORT; give a name or an address, such as 192.0.2.1:6783`},
		"loopback":    {func(c *Config) { c.Advertise = netip.MustParseAddr("127.0.0.1") }, "--advertise 127.0.0.1 is an address that no other host reaches; give one that they do, or leave it out"},
		"link-local":  {func(c *Config) { c.Advertise = netip.MustParseAddr("fe80::1") }, "--advertise fe80::1 is an address that no other host reaches; give one that they do, or leave it out"},
		"mtu":         {func(c *Config) { c.MTU = 100 }, fmt.Sprintf("--mtu 100 is out of range; give 0 to derive it, or 576 to %d", router.MaxMTU)},
		"mtu v6":      {func(c *Config) { c.MTU = 1000; c.Range = "fd00::/108" }, fmt.Sprintf("--mtu 1000 is out of range; give 0 to derive it, or 1280 to %d", router.MaxMTU)},
		"reclaim": {
			func(c *Config) { c.ReclaimAfter = 9 * time.Second },
			"--reclaim-after 9s does not tell a node that is gone from one that restarts; give 0 to leave it to weft forget, or 10s and more",
		},
		"reclaim before": {
			func(c *Config) { c.ReclaimAfter = -time.Hour },
			"--reclaim-after -1h0m0s does not tell a node that is gone from one that restarts; give 0 to leave it to weft forget, or 10s and more",
		},
		"quarantine": {
			func(c *Config) { c.Quarantine = 25 * time.Hour },
			"--quarantine 25h0m0s keeps freed addresses for too long; give 24h0m0s at most",
		},
		"shards": {func(c *Config) { c.Shards = 0 }, "--shards 0 is out of range; give 1 to 64"},
		"seed": {
			func(c *Config) { c.Seed = []string{"n2", "n3"} },
			"--seed n2,n3 does not name this node, n1; give the same list on every node that it names, and --peer alone on all others",
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config()
			c.change(&cfg)
			err := cfg.check()
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
	for _, r := range []string{"", "10.32.0.0", "10.32.0.0/31", "10.32.0.1/12", "10.0.0.0/12,10.32.0.0/12", "nonsense"} {
		cfg := config()
		cfg.Range = r
		if err := cfg.check(); err == nil || !strings.HasPrefix(err.Error(), "--range "+r+": ") {
			t.Errorf("range %q: %v", r, err)
		}
	}
}

func TestFindToken(t *testing.T) {
	one, two := newToken(t), newToken(t)
	for name, c := range map[string]struct {
		given, saved token.Token
		change       func(*Config)
		want         token.Token
		other        token.Token
		fresh        bool
		resumed      bool
		err          string
	}{
		"founder makes one":    {fresh: true},
		"founder is given one": {given: one, want: one},
		"resume":               {saved: one, want: one},
		"resume with the same": {saved: one, given: one, want: one},
		"resume with another": {
			saved: one, given: two,
			err: "the token given is not the one in DIR/token; give none to go on with that mesh, or run weft reset to join another",
		},
		"resume with one to be tried": {saved: one, given: two, resumed: true, want: one, other: two},
		"resume without": {
			resumed: true,
			err:     "the token of this node's mesh is missing from DIR/token; give it by --token-file or WEFT_TOKEN (weft token --raw on another node prints it)",
		},
		"file gone": {
			change: func(c *Config) { c.TokenFile = "/nowhere/token" },
			err:    "token file /nowhere/token does not exist; write into it what `weft token --raw` prints on a node of the mesh, with mode 0600",
		},
		"file gone, and saved": {saved: one, want: one, resumed: true, change: func(c *Config) { c.TokenFile = "/nowhere/token" }},
		"joiner without": {
			change: func(c *Config) { c.Peers = []string{"n2:6783"} },
			err:    "no token to join n2:6783 with; get it there by `weft token --raw`, and give it by --token-file or WEFT_TOKEN",
		},
		"seed without": {
			change: func(c *Config) { c.Seed = []string{"n1"} },
			err:    "no token, which the nodes of --seed must share; make one by `weft token --generate`, and give it to each by --token-file or WEFT_TOKEN",
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config()
			cfg.DataDir, cfg.Token = t.TempDir(), c.given
			if c.change != nil {
				c.change(&cfg)
			}
			if !c.saved.IsZero() {
				if err := token.WriteFile(filepath.Join(cfg.DataDir, "token"), c.saved); err != nil {
					t.Fatal(err)
				}
			}
			found, err := cfg.findToken(!c.resumed)
			if c.err != "" {
				want := strings.ReplaceAll(c.err, "DIR", cfg.DataDir)
				if err == nil || err.Error() != want {
					t.Errorf("got  %v\nwant %s", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := found.tokens[0]; found.save != c.saved.IsZero() || got.IsZero() || !c.fresh && !got.Equal(c.want) || !found.other.Equal(c.other) {
				t.Errorf("another token than wanted; to be saved: %t", found.save)
			}
		})
	}
}

func TestFindTokenRefusesAnOpenFile(t *testing.T) {
	cfg := config()
	cfg.DataDir = t.TempDir()
	path := filepath.Join(cfg.DataDir, "token")
	if err := token.WriteFile(path, newToken(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := cfg.findToken(true)
	want := "token file " + path + " may be read by others (mode 0644); run: chmod 600 " + path
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestIfName(t *testing.T) {
	for _, ok := range []string{"eth0", "a", "net-1.2_3", "fifteen-letters"} {
		if err := checkIfName(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "lo", ".", "..", "a/b", "a b", "sixteen-letters!", "eth0\n", "a:1", "%d", "ätzend"} {
		if checkIfName(bad) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestDefaultShards(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for processors, want := range map[int]int{1: 1, 2: 1, 3: 2, 4: 2, 8: 4, 16: 8, 64: 8} {
		runtime.GOMAXPROCS(processors)
		if got := DefaultShards(); got != want {
			t.Errorf("%d shards on %d processors, want %d", got, processors, want)
		}
	}
}
