// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

// hide replaces a private key by its kind.
func hide(s string) string {
	return regexp.MustCompile(`PrivateKey = [A-Za-z0-9+/]{43}=`).ReplaceAllString(s, "PrivateKey = KEY")
}

const comment = "# WireGuard client NAME of a Weft mesh. Secret: whoever has this may join; weft wg remove NAME cuts it off\n"

func TestWGAdd(t *testing.T) {
	dir := apitest.Serve(t, daemon())
	public := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for _, c := range []struct{ args, want, errs string }{
		{"phone", strings.ReplaceAll(comment, "NAME", "phone") + `[Interface]
PrivateKey = KEY
Address = 10.32.0.9/32, fd00::9/128
MTU = 1280

[Peer]
PublicKey = ` + apitest.NodeKey + `
PresharedKey = ` + apitest.PresharedKey + `
AllowedIPs = 10.32.0.0/12, fd00::/108
Endpoint = 203.0.113.1:6783
PersistentKeepalive = 25
`, "weft: warning: doubtful\n"},
		{
			"laptop --endpoint vpn.example.org:51820 --keepalive 0 --dns 10.32.0.53,fd00::35 --allowed-ips 10.32.0.7/16,10.33.0.0/16 --public-key " + public,
			strings.ReplaceAll(comment, "NAME", "laptop") + `[Interface]
# put here the private key that belongs to the public key ` + public + `:
# PrivateKey = 
Address = 10.32.0.10/32, fd00::a/128
DNS = 10.32.0.53, fd00::35
MTU = 1280

[Peer]
PublicKey = ` + apitest.NodeKey + `
PresharedKey = ` + apitest.PresharedKey + `
AllowedIPs = 10.32.0.0/16, 10.33.0.0/16
Endpoint = vpn.example.org:51820
`, "",
		},
	} {
		code, out, errs := run(t, dir, append([]string{"wg", "add"}, strings.Fields(c.args)...)...)
		if code != exitDone || hide(out) != c.want || errs != c.errs {
			t.Errorf("weft wg add %s: exit %d, stderr %q, printed\n%s\nwant\n%s", c.args, code, errs, hide(out), c.want)
		}
	}
	code, out, errs := run(t, dir, "wg", "add", "everything", "--endpoint", "a", "--allowed-ips", "0.0.0.0/0,10.32.0.0/16,::/0")
	if want := "weft: warning: of 0.0.0.0/0 ::/0 only what lies in the mesh's range, 10.32.0.0/12 fd00::/108, is carried; the rest is dropped\n"; code != exitDone || errs != want || !strings.Contains(out, "AllowedIPs = 0.0.0.0/0, 10.32.0.0/16, ::/0\n") {
		t.Errorf("exit %d, %q, %s", code, errs, out)
	}
	code, out, errs = run(t, dir, "wg", "add", "scanned", "--endpoint", "a", "--qr")
	if code != exitDone || errs != "" || !strings.HasPrefix(out, "# WireGuard client scanned") || strings.Count(out, "\x1b[0m\n") < 30 {
		t.Errorf("with a QR code: exit %d, %q, %s", code, errs, out)
	}
	code, out, errs = run(t, dir, "wg", "add", "j", "--json")
	var j wgAdded
	if err := json.Unmarshal([]byte(out), &j); err != nil || code != exitDone || errs != "" || !strings.Contains(j.Config, "[Peer]\n") || j.File != "" || len(j.Addresses) != 2 || len(j.Warnings) != 1 {
		t.Errorf("JSON: exit %d, %q, %v, %s", code, errs, err, out)
	}
	// The private key stays here: the daemon knows the public one that belongs to it, and no other.
	list := serviceOf(t, dir)
	if i := slices.IndexFunc(list, func(c api.WGClient) bool { return c.Name == "j" }); i < 0 || list[i].PublicKey != j.PublicKey || strings.Contains(j.Config, j.PublicKey) {
		t.Errorf("the daemon has %+v", list)
	}
}

func serviceOf(t *testing.T, dir string) []api.WGClient {
	t.Helper()
	list, err := api.NewClient(dir).WGClients(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestWGAddToAFile(t *testing.T) {
	d := daemon()
	dir := apitest.Serve(t, d)
	path := filepath.Join(t.TempDir(), "weft.conf")
	code, out, errs := run(t, dir, "wg", "add", "laptop", "--endpoint", "a", "--output", path)
	if code != exitDone || errs != "" || out != path+" is written, for 10.32.0.9 fd00::9\n" {
		t.Errorf("exit %d, %q, %q", code, errs, out)
	}
	st, err := os.Stat(path)
	b, rerr := os.ReadFile(path)
	if err = errors.Join(err, rerr); err != nil || st.Mode() != 0o600 || !strings.HasPrefix(hide(string(b)), strings.ReplaceAll(comment, "NAME", "laptop")+"[Interface]\nPrivateKey = KEY\n") {
		t.Fatalf("%v, %v\n%s", st, err, hide(string(b)))
	}
	for _, c := range []struct{ output, want string }{
		{path, "weft: file " + path + " exists, and is not overwritten; remove it, or give another --output\n"},
		{filepath.Join(path, "below"), "weft: making the file for the configuration: open " + filepath.Join(path, "below") + ": not a directory; give another --output\n"},
	} {
		if code, out, errs := run(t, dir, "wg", "add", "other", "--output", c.output); code != exitFailed || out != "" || errs != c.want {
			t.Errorf("exit %d, %q, got\n%swant\n%s", code, out, errs, c.want)
		}
	}
	if again, err := os.ReadFile(path); err != nil || string(again) != string(b) {
		t.Errorf("the file was changed: %v", err)
	}
	// What the daemon refuses leaves no file.
	other := filepath.Join(t.TempDir(), "other.conf")
	code, _, errs = run(t, dir, "wg", "add", "laptop", "--output", other)
	if _, err := os.Stat(other); code != exitFailed || errs != "weft: there is a WireGuard client laptop already\n" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("exit %d, %q, %v", code, errs, err)
	}
	if list := serviceOf(t, dir); len(list) != 1 {
		t.Errorf("the daemon has %+v", list)
	}
}

// full is a disk that is.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// A configuration that nobody got is one that nobody can get any more: the client is taken back.
func TestWGAddIsUndone(t *testing.T) {
	dir := apitest.Serve(t, daemon())
	for _, args := range []string{"wg add lost", "wg add lost --json", "wg add lost --qr", "wg add lost --output " + filepath.Join(t.TempDir(), "f")} {
		var errs strings.Builder
		code := execute(t.Context(), strings.Fields(args), env{out: full{}, err: &errs, getenv: func(string) string { return dir }})
		if code != exitFailed || !strings.HasSuffix(errs.String(), ": no space left on device; the client was not added\n") {
			t.Errorf("weft %s: exit %d, %q", args, code, errs.String())
		}
		if list := serviceOf(t, dir); len(list) != 0 {
			t.Errorf("weft %s: the daemon has %+v", args, list)
		}
		if f := strings.Fields(args); len(f) == 5 {
			if _, err := os.Stat(f[4]); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the file is there: %v", err)
			}
		}
	}
}

// Whatever comes between, no client stays whose private key nobody has.
func TestWGAddUnanswered(t *testing.T) {
	added := make(chan struct{}, 1)
	for _, tt := range []struct {
		name      string
		adding    func(d *apitest.Daemon) func(ctx context.Context)
		interrupt bool
		want      string // at the error's end
		remains   int
	}{
		{name: "interrupted", interrupt: true, want: "context canceled; the client was not added\n", adding: func(*apitest.Daemon) func(context.Context) {
			return func(ctx context.Context) {
				added <- struct{}{}
				<-ctx.Done()
			}
		}},
		{name: "broken off", want: "EOF; the client was not added\n", adding: func(*apitest.Daemon) func(context.Context) {
			return func(context.Context) { panic(http.ErrAbortHandler) }
		}},
		{
			name: "broken off for good", remains: 1,
			want: "EOF; the client may have been added all the same: gone mad; remove it by: weft wg remove lost\n",
			adding: func(d *apitest.Daemon) func(context.Context) {
				return func(context.Context) {
					d.Refuse = "gone mad"
					panic(http.ErrAbortHandler)
				}
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := daemon()
			dir := apitest.Serve(t, d)
			d.Adding = tt.adding(d)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.interrupt {
				go func() {
					<-added
					cancel()
				}()
			}
			var out, errs strings.Builder
			code := execute(ctx, []string{"wg", "add", "lost"}, env{out: &out, err: &errs, getenv: func(string) string { return dir }})
			if code != exitFailed || out.Len() > 0 || !strings.HasSuffix(errs.String(), tt.want) {
				t.Errorf("exit %d, %q, got\n%swant\n%s", code, out.String(), errs.String(), tt.want)
			}
			d.Refuse = ""
			if list := serviceOf(t, dir); len(list) != tt.remains {
				t.Errorf("the daemon has %+v", list)
			}
		})
	}
	// What was refused was not done: nothing is taken back, and nothing doubted.
	d := daemon()
	d.Refuse = "not ready"
	if code, out, errs := run(t, apitest.Serve(t, d), "wg", "add", "a"); code != exitFailed || out != "" || errs != "weft: not ready\n" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
}

// A terminal that goes ends a command in order, but for one that was started to outlive it.
func TestUntilSignal(t *testing.T) {
	hangUp := func(ctx context.Context) error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
		return ctx.Err()
	}
	seen := make(chan os.Signal, 1) // keeps the process alive if nobody else takes the signal
	signal.Notify(seen, syscall.SIGHUP)
	defer signal.Stop(seen)
	ctx, stop := untilSignal(t.Context())
	err := hangUp(ctx)
	stop()
	if err == nil {
		t.Error("the context goes on after SIGHUP")
	}
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	ctx, stop = untilSignal(t.Context())
	defer stop()
	if err := hangUp(ctx); err != nil {
		t.Errorf("an ignored SIGHUP is heard: %v", err)
	}
}

func TestWGListAndRemove(t *testing.T) {
	d := daemon()
	dir := apitest.Serve(t, d)
	now := time.Now().Add(-65 * time.Second)
	d.SetWGClient(api.WGClient{
		Name: "phone", Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.9"), netip.MustParseAddr("fd00::9")}, State: "established",
		Endpoint: "198.51.100.7:40000", LastHandshake: &now, RxBytes: 3 << 20, TxBytes: 12,
	})
	d.SetWGClient(api.WGClient{Name: "laptop", Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.10")}, State: "idle", Reason: "no answer"})
	const want = `NAME    ADDRESSES          STATE             ENDPOINT            LAST HANDSHAKE  RECEIVED  SENT
laptop  10.32.0.10         idle (no answer)  -                   -               0 B       0 B
phone   10.32.0.9 fd00::9  established       198.51.100.7:40000  1m05s ago       3.0 MiB   12 B
`
	if code, out, errs := run(t, dir, "wg", "list"); code != exitDone || out != want || errs != "" {
		t.Errorf("exit %d, %q, printed\n%s\nwant\n%s", code, errs, out, want)
	}
	code, out, errs := run(t, dir, "wg", "list", "--json")
	var list []api.WGClient
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != exitDone || errs != "" || len(list) != 2 || !list[1].LastHandshake.Equal(now) {
		t.Errorf("JSON: exit %d, %q, %v, %s", code, errs, err, out)
	}
	for _, c := range []struct{ args, want string }{
		{"__complete wg remove", "laptop\nphone\n:4\n"},
		{"__complete wg remove laptop", ":4\n"},
		{"__complete wg add", ":4\n"},
	} {
		if code, out, _ := run(t, dir, append(strings.Fields(c.args), "")...); code != exitDone || out != c.want {
			t.Errorf("%s: exit %d, %q, want %q", c.args, code, out, c.want)
		}
	}
	if code, out, errs := run(t, dir, "wg", "remove", "phone"); code != exitDone || out != "" || errs != "" {
		t.Errorf("removing: exit %d, %q, %q", code, out, errs)
	}
	if code, out, errs := run(t, dir, "wg", "remove", "phone"); code != exitFailed || out != "" || errs != "weft: there is no WireGuard client phone\n" {
		t.Errorf("removing again: exit %d, %q, %q", code, out, errs)
	}
}

func TestWGUsage(t *testing.T) {
	dir := t.TempDir()
	for args, want := range map[string]string{
		"wg":                                  "what about the WireGuard clients? give add, list or remove",
		"wg delete phone":                     `unknown command "delete" for "weft wg"`,
		"wg add":                              "accepts 1 arg(s), received 0",
		"wg add a b":                          "accepts 1 arg(s), received 2",
		"wg remove":                           "accepts 1 arg(s), received 0",
		"wg list all":                         `unknown command "all" for "weft wg list"`,
		"wg add a --allowed-ips 10.0.0.0":     `--allowed-ips "10.0.0.0" is no CIDR, such as 10.32.0.0/12`,
		"wg add a --dns dns.example.org":      `--dns "dns.example.org" is no IP address`,
		"wg add a --keepalive -1s":            "--keepalive -1s is not possible; give whole seconds, at most 18h12m15s, or 0",
		"wg add a --keepalive 1500ms":         "--keepalive 1.5s is not possible; give whole seconds, at most 18h12m15s, or 0",
		"wg add a --keepalive 19h":            "--keepalive 19h0m0s is not possible; give whole seconds, at most 18h12m15s, or 0",
		"wg add a --keepalive often":          `invalid argument "often" for "--keepalive" flag: time: invalid duration "often"`,
		"wg add a --qr --json":                "--qr and --json exclude each other; give one of them",
		"wg add a --qr --public-key AAAA":     "--qr and --public-key exclude each other: without the private key the code is of no use",
		"wg add a --private-key AAAA --json=": "unknown flag: --private-key",
	} {
		code, out, errs := run(t, dir, strings.Fields(args)...)
		if code != exitUsage || out != "" || errs != "weft: "+want+"\nweft: try: weft help\n" {
			t.Errorf("weft %s: exit %d, stdout %q, stderr\n%swant\nweft: %s", args, code, out, errs, want)
		}
	}
}
