// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// fake is a daemon that keeps attachments as the real one does, and takes nothing that the plugin should not have let through.
type fake struct {
	mu   sync.Mutex
	down error // what it answers instead
	// fail is called before a request is done, and answers it if it returns an error.
	fail     func(verb string) error
	backlog  *Backlog // worked off before every request, as the real one does; may be nil
	held     map[Key]Request
	requests []Request
	checks   []CheckRequest
	released []Release
	asked    int
	warnings []string
}

func newFake() *fake { return &fake{held: map[Key]Request{}} }

func (f *fake) begin(verb string) error {
	f.asked++
	if f.down != nil {
		return f.down
	}
	if f.backlog != nil {
		if err := f.backlog.Each(func(r Release) error { f.release(r); return nil }); err != nil {
			return err
		}
	}
	if f.fail != nil {
		return f.fail(verb)
	}
	return nil
}

func (f *fake) Attach(ctx context.Context, r Request) (Attachment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return Attachment{}, err
	}
	if err := f.begin("attach"); err != nil {
		return Attachment{}, err
	}
	if err := valid(r.Key, r.Network, r.Netns); err != nil {
		return Attachment{}, err
	}
	if r.MAC != "" {
		if m, err := net.ParseMAC(r.MAC); err != nil || len(m) != 6 {
			return Attachment{}, fmt.Errorf("MAC %q let through", r.MAC)
		}
	}
	if len(r.IPs) > 2 || r.MTU < 0 || r.MTU > 65535 || len(r.Pod.Name) > 253 || len(r.Pod.Namespace) > 253 || len(r.Pod.UID) > 253 {
		return Attachment{}, fmt.Errorf("request let through: %+v", r)
	}
	f.held[r.Key] = r
	f.requests = append(f.requests, r)
	a := Attachment{
		Addresses: []netip.Addr{netip.MustParseAddr("10.32.0.5"), netip.MustParseAddr("fd00::5")},
		Routes: []Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: netip.MustParseAddr("10.32.0.1")},
			{Dst: netip.MustParsePrefix("::/0"), GW: netip.MustParseAddr("fd00::1")},
		},
		Warnings: f.warnings,
	}
	if r.AddressesOnly {
		a.Universe = []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("fd00::/64")}
	} else {
		a.HostIf, a.HostMAC, a.MAC, a.MTU = "weft0a", "02:00:00:00:00:01", "02:00:00:00:00:02", 1380
	}
	return a, nil
}

func (f *fake) Check(_ context.Context, r CheckRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("check"); err != nil {
		return err
	}
	f.checks = append(f.checks, r)
	if r.Key == (Key{}) {
		return nil
	}
	if err := valid(r.Key, r.Network, r.Netns); err != nil {
		return err
	}
	if _, ok := f.held[r.Key]; !ok {
		return &Error{CodeDiffers, "there is no such attachment", "add it"}
	}
	return nil
}

func (f *fake) Detach(_ context.Context, r Release) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("detach"); err != nil {
		return err
	}
	if r.Key != (Key{}) {
		if err := valid(r.Key, r.Network, "/"+r.Netns); err != nil {
			return err
		}
	}
	f.release(r)
	return nil
}

func (f *fake) release(r Release) {
	f.released = append(f.released, r)
	if r.Key != (Key{}) {
		delete(f.held, r.Key)
		return
	}
	for k := range f.held {
		stays := false
		for _, v := range r.Valid {
			stays = stays || v == k
		}
		if !stays {
			delete(f.held, k)
		}
	}
}

func valid(k Key, network, netns string) error {
	bounded := len(k.ContainerID) <= 128 && len(k.IfName) <= 15 && len(network) <= 200 && len(netns) <= 1025
	clean := !strings.ContainsAny(k.ContainerID+network, "/\\ \x00\n") && !strings.ContainsAny(k.IfName, "/: %\n")
	if !bounded || !clean || k.ContainerID == "" || k.IfName == "" || network == "" || !filepath.IsAbs(netns) || !utf8.ValidString(netns) {
		return fmt.Errorf("let through: %+v of network %q in %q", k, network, netns)
	}
	return nil
}

// plugin is a plugin that is run by a test.
type plugin struct {
	daemon *fake
	name   string
	runDir string
	step   func(string)
	begun  time.Duration
	asked  string                                  // run directory of the daemon that was asked
	out    interface{ Write([]byte) (int, error) } // nil: kept
}

func newPlugin(t *testing.T) *plugin {
	return &plugin{daemon: newFake(), name: "weft", runDir: filepath.Join(t.TempDir(), "run")}
}

// env is the environment of a verb that has a container.
func env(verb string, more ...string) map[string]string {
	e := map[string]string{"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/a", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}
	for i := 0; i < len(more); i += 2 {
		e[more[i]] = more[i+1]
	}
	return e
}

// conf is a configuration with the run directory of p, and with more keys.
func (p *plugin) conf(more ...any) string {
	c := map[string]any{"cniVersion": "1.1.0", "name": "net", "type": "weft", "runDir": p.runDir}
	for i := 0; i < len(more); i += 2 {
		k := more[i].(string)
		if delete(c, k); more[i+1] != nil {
			c[k] = more[i+1]
		}
	}
	b, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// run returns the exit code and what the plugin has written.
func (p *plugin) run(ctx context.Context, e map[string]string, stdin string) (code int, stdout, stderr string) {
	var o, se bytes.Buffer
	v := Env{
		Getenv: func(k string) string { return e[k] }, Stdin: strings.NewReader(stdin), Stdout: &o, Stderr: &se, Name: p.name, Step: p.step, Uptime: func() time.Duration { return p.begun },
		Connect: func(dir string) Daemon { p.asked = dir; return p.daemon },
	}
	if p.out != nil {
		v.Stdout = p.out
	}
	code = Run(ctx, v)
	return code, o.String(), se.String()
}

// ok runs the plugin and returns what it answers; it must succeed.
func (p *plugin) ok(t *testing.T, e map[string]string, stdin string) string {
	t.Helper()
	code, out, _ := p.run(t.Context(), e, stdin)
	if code != 0 {
		t.Fatalf("%s %s: exit %d: %s", e["CNI_COMMAND"], stdin, code, out)
	}
	return out
}

// refused runs the plugin and returns its error; it must be one that follows the specification.
func (p *plugin) refused(t *testing.T, e map[string]string, stdin string) Error {
	t.Helper()
	code, out, _ := p.run(t.Context(), e, stdin)
	return wellFormed(t, code, out)
}

func wellFormed(t *testing.T, code int, out string) Error {
	t.Helper()
	var a struct {
		Version string `json:"cniVersion"`
		Error
	}
	dec := json.NewDecoder(strings.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil || code != 1 {
		t.Fatalf("exit %d, %q, which is no error of the specification: %v", code, out, err)
	}
	if a.Version == "" || a.Code == 0 || a.Msg == "" || a.Details == "" || strings.ContainsAny(a.Msg+a.Details, "\n\r\t") || strings.Count(out, "\n") != 1 {
		t.Errorf("incomplete, or not on one line: %s", out)
	}
	return a.Error
}
