// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
	"github.com/weftnet/weft/internal/token"
)

// run runs one command line against the daemon of runDir.
func run(t *testing.T, runDir string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = execute(t.Context(), args, env{out: &o, err: &e, getenv: func(k string) string {
		if k == "WEFT_RUN_DIR" {
			return runDir
		}
		return ""
	}})
	return code, o.String(), e.String()
}

func daemon() *apitest.Daemon {
	return &apitest.Daemon{
		State: api.Status{
			Version: "1.2.3", Name: "n1", NodeID: "00000000000000a1", PID: 42, Phase: api.Waiting, WaitsFor: "addresses from the other nodes",
			Uptime: 90 * time.Second, Port: 6783, DataDir: "/var/lib/weft", Socket: "/run/weft/weft.sock",
			Universe: "10.32.0.0/12", MeshID: "ab", Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.1")}, Device: "weft0",
			MTU: 1420, TUN: "native", Shards: 1, Offloads: []string{"tso", "gro"}, Encrypted: true, Nodes: api.NodeCount{Total: 3, Alive: 2}, Workloads: 4,
			Targets: []api.Target{{Host: "n9:6783", State: "waiting: no such host n9"}},
			Reach: &api.Reach{
				Addresses: []string{"10.0.0.1:6783", "203.0.113.9:6783"}, Observed: []string{"203.0.113.9:6783"}, NAT: api.NATCone, Links: []string{"n2"},
				Relays: []api.Relay{{Node: "n2", Peers: 1}}, Blocked: []string{"UDP does not get through to 192.0.2.4:6783, TCP does: let UDP port 6783 pass"},
			},
			Relaying: &api.Relaying{Limit: 1e9, Packets: 1, Bytes: 3 << 20, Control: 9, Dropped: 7},
			Warnings: []string{"2 nodes are named n2; give each a name of its own with --name"},
		},
		Nodes: []api.Peer{
			{
				Name: "n2", State: "alive", Since: time.Now().Add(-time.Hour), Path: "udp", RTT: 412, Reason: "answers, measured 0.4 ms", Session: "established", Suite: "aes-256-gcm",
				Endpoint: "192.0.2.2:6783", RxBytes: 3 << 20, TxBytes: 100, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.40.0.0/13")},
				MTU: 1408, PathMTU: 1376, PathMTUConfirmed: true,
			},
			{
				Name: "n4", State: "alive", Since: time.Now().Add(-time.Minute), Path: "relay", Via: []string{"n2"}, RTT: 12600, Session: "idle", Endpoint: "192.0.2.4:6783",
				Reason: "no answer from 192.0.2.4:6783 since 14:02:11",
				MTU:    1408, PathMTU: 1408,
			},
			{Name: "node-three", State: "failed", Since: time.Now().Add(-100 * time.Hour), Path: "none", Session: "idle", SessionError: "handshake refused", Reason: "no relay reaches it"},
		},
		Space: api.IPAM{
			Universe: "10.32.0.0/29", Size: 6, Free: 3, Quarantined: 1,
			Holdings:    []api.Holding{{Node: "n1", Slots: 8, Percent: 100, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.32.0.0/29")}}},
			Allocations: []api.Allocation{{Owner: "host", Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.1")}}},
			Notes:       []string{"something waits"},
		},
		Key: api.Token{Token: "weft-secret", Command: "WEFT_TOKEN=weft-secret weft launch --peer 192.0.2.1"},
	}
}

func TestTexts(t *testing.T) {
	dir := apitest.Serve(t, daemon())
	for _, c := range []struct {
		args string
		want string
	}{
		{"status", `node:          n1 (00000000000000a1)
state:         waiting: addresses from the other nodes
version:       1.2.3
process:       42, up 1m30s
port:          6783 (UDP and TCP)
range:         10.32.0.0/12
mesh:          ab
encryption:    on
address:       10.32.0.1
device:        weft0 (native), MTU 1420, 1 shard(s), offloads tso, gro
nodes:         2 alive of 3
workloads:     4
data:          /var/lib/weft
socket:        /run/weft/weft.sock
reached at:    10.0.0.1:6783, 203.0.113.9:6783
NAT:           one that keeps its port: others see it at 203.0.113.9:6783
links:         n2
relays used:   n2 (for 1 node)
relaying:      1 packet, 3.0 MiB and 9 control datagrams for others, at most 1gbit; 7 packets dropped beyond that
peer n9:6783:  waiting: no such host n9
warning: UDP does not get through to 192.0.2.4:6783, TCP does: let UDP port 6783 pass
warning: 2 nodes are named n2; give each a name of its own with --name
`},
		{"peers", `NAME        STATE   SINCE  PATH          RTT    SESSION                   SUITE        ENDPOINT        MTU    RECEIVED  SENT   ADDRESSES     WHY
n2          alive   1h00m  udp           0.4ms  established               aes-256-gcm  192.0.2.2:6783  1376   3.0 MiB   100 B  10.40.0.0/13  -
n4          alive   1m00s  relay via n2  13ms   idle                      -            192.0.2.4:6783  1408?  0 B       0 B    -             no answer from 192.0.2.4:6783 since 14:02:11
node-three  failed  4d     none          -      idle (handshake refused)  -            -               -      0 B       0 B    -             no relay reaches it
`},
		{"ipam", `range 10.32.0.0/29: 6 addresses; here 1 allocated, 3 free, 1 resting, 0 granted but not yet known to a majority

NODE  OWNS  SHARE   BLOCKS
n1    8     100.0%  10.32.0.0/29

ALLOCATED TO  ADDRESSES
host          10.32.0.1
note: something waits
`},
		{"ps", "WORKLOAD  ADDRESSES  NAMESPACE  HOST INTERFACE  STATE  ATTACHED\n"},
		{"token", "WEFT_TOKEN=weft-secret weft launch --peer 192.0.2.1\n"},
		{"token --raw", "weft-secret\n"},
	} {
		code, out, errs := run(t, dir, strings.Fields(c.args)...)
		if code != exitDone || out != c.want || errs != "" {
			t.Errorf("weft %s: exit %d, stderr %q, printed\n%s\nwant\n%s", c.args, code, errs, out, c.want)
		}
	}
}

func TestJSONIsWhatTheDaemonSaid(t *testing.T) {
	d := daemon()
	dir := apitest.Serve(t, d)
	for _, c := range []struct {
		args string
		into any
	}{
		{"status --json", &api.Status{}},
		{"peers --json", &[]api.Peer{}},
		{"ps --json", &[]api.Workload{}},
		{"ipam --json", &api.IPAM{}},
		{"token --json", &api.Token{}},
		{"version --json", &map[string]string{}},
	} {
		code, out, errs := run(t, dir, strings.Fields(c.args)...)
		if code != exitDone || errs != "" {
			t.Errorf("weft %s: exit %d, %s", c.args, code, errs)
			continue
		}
		dec := json.NewDecoder(strings.NewReader(out))
		dec.DisallowUnknownFields()
		if err := dec.Decode(c.into); err != nil {
			t.Errorf("weft %s: %v in %s", c.args, err, out)
		}
	}
}

func TestAttachAndDetach(t *testing.T) {
	dir := apitest.Serve(t, daemon())
	for range 2 { // idempotent
		code, out, errs := run(t, dir, "attach", "--netns", "/run/netns/a")
		if code != exitDone || out != "10.32.0.2\n" {
			t.Errorf("attach: exit %d, %q, %q", code, out, errs)
		}
	}
	if code, out, _ := run(t, dir, "attach", "--pid", "7", "--ip", "10.32.5.5", "--ifname", "net1", "--json"); code != exitDone || !strings.Contains(out, `"netns": "/proc/7/ns/net"`) {
		t.Errorf("attach by pid: exit %d, %s", code, out)
	}
	for range 2 {
		if code, out, errs := run(t, dir, "detach", "--netns", "/run/netns/a"); code != exitDone || out != "" || errs != "" {
			t.Errorf("detach: exit %d, %q, %q", code, out, errs)
		}
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	for args, want := range map[string]string{
		"attach":                                "which namespace? give --netns PATH or --pid PID",
		"attach --netns /a --pid 1":             "--netns and --pid exclude each other; give one of them",
		"attach --pid -1":                       "--pid -1 is no process; give a positive number",
		"attach --netns /a --ip 10.32":          `--ip "10.32" is no IP address`,
		"status now":                            `unknown command "now" for "weft status"`,
		"frobnicate":                            `unknown command "frobnicate" for "weft"`,
		"status --verbose":                      "unknown flag: --verbose",
		"launch --log-level loud":               `--log-level "loud" is none of debug, info, warn, error`,
		"launch --log-format xml":               `--log-format "xml" is none of console, json`,
		"launch --advertise here":               `--advertise "here" is no IP address`,
		"launch --port 0":                       "--port 0 is no port; give one between 1 and 65535",
		"launch --relay-limit 200mb":            `--relay-limit "200mb" is no rate; give such as 200mbit or 1gbit, or 0 for no limit`,
		"launch --relay-limit 1kbit":            `--relay-limit "1kbit" is out of range; give 64kbit to 10000gbit, or 0 for no limit`,
		"launch --no-relay --relay-limit 1gbit": "--no-relay and --relay-limit exclude each other; give one of them",
		"launch --quarantine -1s":               "--quarantine -1s is negative; give a time, or 0 for none",
		"launch --paths fast":                   `--paths "fast" is no path; choose direct, vxlan or udp`,
		"launch --paths=":                       "--paths leaves no path; name some of direct, vxlan, udp",
		"launch --encryption perhaps":           `--encryption "perhaps" is none of on, off`,
		"launch --vxlan-vni 0":                  "--vxlan-vni 0 is out of range; give 1 to 16777215",
		"launch --port 70000":                   `invalid argument "70000" for "--port" flag: strconv.ParseUint: parsing "70000": value out of range`,
		"launch --foreground=false":             "--foreground=false: weft always runs in the foreground; let systemd, a container or a shell supervise it",
		"token --generate --raw":                "--generate goes alone",
	} {
		code, out, errs := run(t, dir, strings.Fields(args)...)
		if code != exitUsage || out != "" || errs != "weft: "+want+"\nweft: try: weft help\n" {
			t.Errorf("weft %s: exit %d, stdout %q, stderr\n%swant\nweft: %s", args, code, out, errs, want)
		}
	}
}

func TestRefusalsAreOneLine(t *testing.T) {
	d := daemon()
	d.Refuse = "10.1.2.3 lies outside;\nchoose another"
	dir := apitest.Serve(t, d)
	code, out, errs := run(t, dir, "attach", "--netns", "/a")
	if code != exitFailed || out != "" || errs != "weft: 10.1.2.3 lies outside;; choose another\n" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	want := fmt.Sprintf("weft: no weft daemon is running on this host (socket %s); start it with: weft launch, or name its --run-dir\n", filepath.Join(dir, api.SocketName))
	for _, args := range []string{"status", "peers", "ps", "ipam", "token", "leave", "attach --netns /a", "detach --netns /a", "wg list", "wg add a", "wg remove a", "forget a", "events", "events --follow", "connect a", "disconnect a", "path a udp", "ipam gc", "ipam explain 10.32.0.1", "leave --drain"} {
		if code, out, errs := run(t, dir, strings.Fields(args)...); code != exitFailed || out != "" || errs != want {
			t.Errorf("weft %s: exit %d, %q, %q", args, code, out, errs)
		}
	}
	if code, _, errs := run(t, dir, "stop"); code != exitDone || errs != "" {
		t.Errorf("stopping nothing: exit %d, %q", code, errs)
	}
}

func TestStopAndLeaveAwaitTheEnd(t *testing.T) {
	if code, _, errs := run(t, apitest.Serve(t, daemon()), "stop"); code != exitDone || errs != "" {
		t.Errorf("stop: exit %d, %q", code, errs)
	}
	d := daemon()
	d.Left = api.LeaveResult{Granted: []api.Grant{{To: "n2", Addresses: 12}}, Kept: []string{"10.32.0.4 of workload w"}, Note: "alone"}
	code, out, errs := run(t, apitest.Serve(t, d), "leave")
	if code != exitDone || errs != "" || out != "12 addresses went to n2\nnot given away: 10.32.0.4 of workload w\nalone\n" {
		t.Errorf("leave: exit %d, %q, %q", code, out, errs)
	}
}

func TestGenerateMakesATokenWithoutADaemon(t *testing.T) {
	code, out, errs := run(t, t.TempDir(), "token", "--generate")
	if _, err := token.Parse(out); code != exitDone || err != nil || errs != "" {
		t.Errorf("exit %d, %q, %v", code, errs, err)
	}
}

// A token that cannot be used is refused before anything is looked at, and is
// not repeated in the message.
func TestLaunchRefusesTokens(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(open, []byte("weft-x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	code, _, errs := run(t, t.TempDir(), "launch", "--token-file", open)
	if code != exitFailed || errs != "weft: token file "+open+" may be read by others (mode 0644); run: chmod 600 "+open+"\n" {
		t.Errorf("exit %d, %q", code, errs)
	}
	var e bytes.Buffer
	code = execute(t.Context(), []string{"launch"}, env{out: &e, err: &e, getenv: func(k string) string {
		if k == "WEFT_TOKEN" {
			return "hunter2hunter2"
		}
		return ""
	}})
	if code != exitFailed || !strings.HasPrefix(e.String(), "weft: WEFT_TOKEN: what was given is not a Weft token") || strings.Contains(e.String(), "hunter2") {
		t.Errorf("exit %d, %q", code, e.String())
	}
}

func TestSizesAndAges(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 30: "1.0 GiB", 1<<64 - 1: "16.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-1: "0s", 59 * time.Second: "59s", time.Hour: "1h00m", 47 * time.Hour: "47h00m", 72 * time.Hour: "3d"} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %s, want %s", d, got, want)
		}
	}
}

// What is kept for static use is shown where there is some.
func TestReserveIsShown(t *testing.T) {
	d := daemon()
	d.State.Reserve, d.Space.Reserve, d.Space.Reserved = "10.32.1.0/24", "10.32.0.0/31", 1
	dir := apitest.Serve(t, d)
	for _, c := range []struct{ command, want string }{
		{"status", "10.32.0.0/12, of which in reserve: 10.32.1.0/24\n"},
		{"ipam", "range 10.32.0.0/29, of which in reserve: 10.32.0.0/31: 6 addresses; here"},
	} {
		if code, out, errs := run(t, dir, c.command); code != exitDone || !strings.Contains(out, c.want) {
			t.Errorf("%s: %d %q %q", c.command, code, out, errs)
		}
	}
}
