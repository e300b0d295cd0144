// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestVersion(t *testing.T) {
	const all = `"supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n"
	for stdin, want := range map[string]string{
		`{"cniVersion":"0.4.0"}`: "0.4.0", `{"cniVersion":"9.9"}`: "9.9", "": "1.1.0", "{": "1.1.0", "null": "1.1.0", `{"cniVersion":"` + strings.Repeat("1", 33) + `"}`: "1.1.0",
		`{"cniVersion":"1.0.0-<x>"}`: "1.1.0", `{"cniVersion":1}`: "1.1.0",
	} {
		p := newPlugin(t)
		if got := p.ok(t, map[string]string{"CNI_COMMAND": "VERSION"}, stdin); got != `{"cniVersion":"`+want+`",`+all {
			t.Errorf("%s: %s", stdin, got)
		}
		if p.daemon.asked != 0 {
			t.Error("the daemon was asked")
		}
	}
}

func TestDel(t *testing.T) {
	p := newPlugin(t)
	p.ok(t, env("ADD"), p.conf())
	for range 2 { // what is gone is no error
		if out := p.ok(t, env("DEL"), p.conf()); out != "" {
			t.Errorf("it answers %q", out)
		}
	}
	if len(p.daemon.held) != 0 {
		t.Errorf("%v stays", p.daemon.held)
	}
	want := Release{Key: Key{"c1", "eth0"}, Network: "net", Netns: "/run/netns/a"}
	if got := p.daemon.released[0]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestDelTakesWhatAddRefused: a runtime gives DEL what it has given ADD, and is not to be stuck with it.
func TestDelTakesWhatAddRefused(t *testing.T) {
	for name, c := range map[string]struct {
		env  []string
		conf []any
	}{
		"unknown key": {conf: []any{"x", 1}}, "MTU": {conf: []any{"mtu", "big"}}, "address": {conf: []any{"runtimeConfig", obj{"ips": 1}}},
		"ipam": {conf: []any{"ipam", obj{"type": "host-local"}}}, "ipam that is none": {conf: []any{"ipam", 1}}, "type of ipam": {conf: []any{"ipam", obj{"type": 1}}},
		"prevResult": {conf: []any{"prevResult", 1}}, "arguments": {env: []string{"CNI_ARGS", "a"}}, "dns": {conf: []any{"dns", 1}},
		"no namespace": {env: []string{"CNI_NETNS", ""}}, "namespace": {env: []string{"CNI_NETNS", "../x"}}, "namespace's length": {env: []string{"CNI_NETNS", "/" + strings.Repeat("x", 1024)}},
	} {
		p := newPlugin(t)
		p.refused(t, env("ADD", c.env...), p.conf(c.conf...))
		if p.daemon.asked != 0 {
			t.Errorf("%s: the daemon was asked", name)
		}
		p.ok(t, env("GC"), p.conf(append(c.conf, "cni.dev/valid-attachments", []int{})...))
		p.daemon.released = nil
		p.ok(t, env("DEL", c.env...), p.conf(c.conf...))
		if r := p.daemon.released; len(r) != 1 || r[0].Key != (Key{"c1", "eth0"}) || len(c.env) > 0 && c.env[0] == "CNI_NETNS" && r[0].Netns != "" {
			t.Errorf("%s: released %+v", name, r)
		}
	}
}

// kept returns the files in the backlog.
func (p *plugin) kept() []string {
	var names []string
	entries, _ := os.ReadDir(filepath.Join(p.runDir, "cni"))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestDelWithoutADaemon: it is kept, and done when the daemon is there.
func TestDelWithoutADaemon(t *testing.T) {
	for _, down := range []error{fmt.Errorf("%w here", ErrNotRunning), fmt.Errorf("%w: EOF", ErrBrokenOff), errors.New("404")} {
		p := newPlugin(t)
		p.ok(t, env("ADD"), p.conf())
		p.daemon.down = down
		for range 2 {
			p.ok(t, env("DEL"), p.conf())
		}
		if kept := p.kept(); len(kept) != 1 || len(p.daemon.held) != 1 {
			t.Errorf("%v: kept %v, held %v", down, kept, p.daemon.held)
		}
		p.daemon.down, p.daemon.backlog = nil, NewBacklog(p.runDir)
		p.ok(t, env("ADD", "CNI_CONTAINERID", "c2"), p.conf())
		if _, ok := p.daemon.held[Key{"c1", "eth0"}]; ok || len(p.kept()) != 0 {
			t.Errorf("%v: kept %v, held %v", down, p.kept(), p.daemon.held)
		}
	}
}

// TestDelAsTheDaemonStarts: it has read the backlog just before, and is asked once more.
func TestDelAsTheDaemonStarts(t *testing.T) {
	p := newPlugin(t)
	p.ok(t, env("ADD"), p.conf())
	p.daemon.backlog = NewBacklog(p.runDir)
	p.daemon.down = ErrNotRunning
	p.step = func(name string) {
		if name == "del-kept" {
			p.daemon.down = nil
		}
	}
	p.ok(t, env("DEL"), p.conf())
	if len(p.kept()) != 0 || len(p.daemon.held) != 0 {
		t.Errorf("kept %v, held %v", p.kept(), p.daemon.held)
	}
}

func TestDelThatIsRefused(t *testing.T) {
	p := newPlugin(t)
	p.daemon.down = &Error{CodeFailed, "the disk is full", "make room"}
	if e := p.refused(t, env("DEL"), p.conf()); e != (Error{CodeFailed, "the disk is full", "make room"}) {
		t.Errorf("got %+v", e)
	}
	if kept := p.kept(); kept != nil {
		t.Errorf("%v is kept", kept)
	}
}

func TestDelThatCannotBeKept(t *testing.T) {
	p := newPlugin(t)
	if err := os.WriteFile(p.runDir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.daemon.down = fmt.Errorf("%w on this host", ErrNotRunning)
	want := Error{
		CodeIO, `no weft daemon is running on this host, and that container "c1" is to be released cannot be kept for it: mkdir ` + p.runDir + ": not a directory",
		"make " + p.runDir + " writable, or start the daemon with: weft launch; then repeat this",
	}
	if e := p.refused(t, env("DEL"), p.conf()); e != want {
		t.Errorf("got  %+v\nwant %+v", e, want)
	}
}

// hung is a daemon that does not answer.
type hung struct{ asked int }

func (h *hung) wait(ctx context.Context) error {
	h.asked++
	<-ctx.Done()
	return ctx.Err()
}

func (h *hung) Attach(ctx context.Context, _ Request) (Attachment, error) {
	return Attachment{}, h.wait(ctx)
}
func (h *hung) Check(ctx context.Context, _ CheckRequest) error { return h.wait(ctx) }
func (h *hung) Detach(ctx context.Context, _ Release) error     { return h.wait(ctx) }

// TestPatience holds how long each verb waits for a daemon, and what it tells then.
func TestPatience(t *testing.T) {
	notRunning := fmt.Errorf("%w on this host (socket /x)", ErrNotRunning)
	for _, c := range []struct {
		verb  string
		down  error // nil: it hangs
		wait  time.Duration
		code  uint // 0: none
		kept  int
		parts string
	}{
		{"ADD", notRunning, startWait, CodeTryLater, 0, "no weft daemon is running on this host (socket /x)|start it with: weft launch; if it runs with another --run-dir than"},
		{"CHECK", notRunning, startWait, CodeTryLater, 0, "weft launch"},
		{"GC", notRunning, startWait, CodeTryLater, 0, "weft launch"},
		{"STATUS", notRunning, startWait, CodeUnavailable, 0, "weft launch"},
		{"STATUS", &Error{CodeUnavailable, "it has not joined its mesh", "wait"}, startWait, CodeUnavailable, 0, "it has not joined its mesh"},
		{"STATUS", &Error{CodeLimited, "it was declared gone", "reset it"}, startWait, CodeLimited, 0, "it was declared gone"},
		{"STATUS", &Error{CodeConfig, "nonsense", "mend it"}, 0, CodeConfig, 0, "nonsense"},
		{"DEL", notRunning, 0, 0, 1, ""},
		{"ADD", ErrBrokenOff, startWait, CodeTryLater, 1, "the weft daemon ended before it answered|see its log; start it with: weft launch"}, // it may have attached
		{"CHECK", ErrBrokenOff, startWait, CodeTryLater, 0, "see its log"},
		{"ADD", nil, deadline + releaseWait, CodeTryLater, 1, "the daemon has not answered in time: context deadline exceeded|see whether weft status answers on this host, and the daemon's log"},
		{"CHECK", nil, deadline, CodeTryLater, 0, "not answered in time"},
		{"GC", nil, deadline, CodeTryLater, 0, "not answered in time"},
		{"STATUS", nil, statusWait, CodeUnavailable, 0, "not answered in time"},
		{"DEL", nil, releaseWait, 0, 1, ""},
		{"ADD", errors.New("permission denied"), 0, CodeIO, 1, "permission denied|see whether weft status answers on this host"},
		{"STATUS", errors.New("permission denied"), 0, CodeUnavailable, 0, "permission denied"},
	} {
		p := newPlugin(t)
		p.daemon.down = c.down
		synctest.Test(t, func(t *testing.T) {
			before := time.Now()
			var d Daemon = p.daemon
			if c.down == nil {
				d = &hung{}
			}
			code, out := p.with(t.Context(), d, env(c.verb), p.conf("prevResult", json.RawMessage(added), "cni.dev/valid-attachments", []int{}))
			if took := time.Since(before); took < c.wait || took > c.wait+time.Second {
				t.Errorf("%s, %v: it took %v, want %v", c.verb, c.down, took, c.wait)
			}
			switch {
			case c.code == 0 && code != 0:
				t.Errorf("%s, %v: exit %d: %s", c.verb, c.down, code, out)
			case c.code != 0:
				e := wellFormed(t, code, out)
				if e.Code != c.code {
					t.Errorf("%s, %v: code %d, want %d", c.verb, c.down, e.Code, c.code)
				}
				for _, part := range strings.Split(c.parts, "|") {
					if !strings.Contains(e.Error(), part) {
						t.Errorf("%s, %v: got %q, which lacks %q", c.verb, c.down, e.Error(), part)
					}
				}
			}
		})
		if kept := p.kept(); len(kept) != c.kept {
			t.Errorf("%s, %v: kept %v, want %d", c.verb, c.down, kept, c.kept)
		}
	}
}

// with runs the plugin with another daemon.
func (p *plugin) with(ctx context.Context, d Daemon, e map[string]string, stdin string) (int, string) {
	var out strings.Builder
	code := Run(ctx, Env{
		Getenv: func(k string) string { return e[k] }, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &out, Name: "weft", Connect: func(string) Daemon { return d },
	})
	return code, out.String()
}

// TestDaemonThatStarts: ADD, CHECK, GC and STATUS wait for one that is being restarted.
func TestDaemonThatStarts(t *testing.T) {
	for _, verb := range []string{"ADD", "CHECK", "GC", "STATUS"} {
		p := newPlugin(t)
		p.daemon.held[Key{"c1", "eth0"}] = Request{}
		synctest.Test(t, func(t *testing.T) {
			before := time.Now()
			p.daemon.fail = func(string) error {
				switch took := time.Since(before); {
				case took == 0:
					return ErrBrokenOff
				case took < 3*time.Second:
					return ErrNotRunning
				}
				return nil
			}
			p.ok(t, env(verb), p.conf("prevResult", json.RawMessage(added), "cni.dev/valid-attachments", []int{}))
			if took := time.Since(before); took > 3100*time.Millisecond {
				t.Errorf("%s: it took %v", verb, took)
			}
		})
		if kept := p.kept(); kept != nil {
			t.Errorf("%s: %v is kept", verb, kept)
		}
	}
}

// TestAddIsAtomic: whenever ADD fails, nothing remains.
func TestAddIsAtomic(t *testing.T) {
	for name, set := range map[string]func(p *plugin, cancel func()){
		"runtime gone":     func(p *plugin, _ func()) { p.out = closed{} },
		"daemon broke off": func(p *plugin, _ func()) { p.daemon.fail = p.daemon.after(ErrBrokenOff) },
		"answer unreadable": func(p *plugin, _ func()) {
			p.daemon.fail = p.daemon.after(errors.New("cannot be read"))
		},
		"runtime impatient": func(p *plugin, cancel func()) {
			p.daemon.fail = func(verb string) error {
				if verb == "attach" {
					p.daemon.held[Key{"c1", "eth0"}] = Request{}
					cancel()
					return context.Canceled
				}
				return nil
			}
		},
	} {
		p := newPlugin(t)
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			set(p, cancel)
			code, out, stderr := p.run(ctx, env("ADD"), p.conf())
			if code != 1 || stderr != "" {
				t.Errorf("%s: exit %d, %s, %s", name, code, out, stderr)
			}
		})
		if len(p.daemon.held) != 0 || p.kept() != nil || len(p.daemon.released) == 0 {
			t.Errorf("%s: held %v, kept %v, released %v", name, p.daemon.held, p.kept(), p.daemon.released)
		}
	}
}

// TestAddThatIsRefusedAfterDoubt: what a daemon has attached before it ended is taken away, whatever the next one says.
func TestAddThatIsRefusedAfterDoubt(t *testing.T) {
	p := newPlugin(t)
	synctest.Test(t, func(t *testing.T) {
		attach := p.daemon.after(ErrBrokenOff)
		p.daemon.fail = func(verb string) error {
			if p.daemon.asked == 1 {
				return attach(verb)
			}
			if verb == "attach" {
				return &Error{CodeFailed, "the namespace is gone", "make one"}
			}
			return nil
		}
		if e := p.refused(t, env("ADD"), p.conf()); e != (Error{CodeFailed, "the namespace is gone", "make one"}) {
			t.Errorf("got %+v", e)
		}
	})
	if len(p.daemon.held) != 0 {
		t.Errorf("%v stays", p.daemon.held)
	}
}

// TestRunDirectory: the daemon asked is the one that the configuration names.
func TestRunDirectory(t *testing.T) {
	p := newPlugin(t)
	for dir, want := range map[any]string{"/run//weft/x/": "/run/weft/x", nil: "/run/weft"} {
		if p.ok(t, env("STATUS"), p.conf("runDir", dir)); p.asked != want {
			t.Errorf("%v: asked %s, want %s", dir, p.asked, want)
		}
	}
}

// after attaches, and answers with err nevertheless.
func (f *fake) after(err error) func(string) error {
	return func(verb string) error {
		if verb == "attach" {
			f.held[Key{"c1", "eth0"}] = Request{}
			return err
		}
		return nil
	}
}

type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

// TestAddThatIsRefused: the daemon has undone it itself.
func TestAddThatIsRefused(t *testing.T) {
	p := newPlugin(t)
	p.daemon.down = &Error{Msg: "no address\nis free", Details: "see weft ipam"}
	if e := p.refused(t, env("ADD"), p.conf()); e != (Error{CodeFailed, "no address is free", "see weft ipam"}) {
		t.Errorf("got %+v", e)
	}
	if p.daemon.asked != 1 {
		t.Errorf("asked %d times", p.daemon.asked)
	}
}

// odd answers with attachments that are none.
type odd struct {
	*fake
	answer Attachment
}

func (o odd) Attach(context.Context, Request) (Attachment, error) { return o.answer, nil }

func TestAddWithAnOddAnswer(t *testing.T) {
	p := newPlugin(t)
	for _, a := range []Attachment{{}, {HostIf: "a", MAC: "m"}, {HostIf: "a", Addresses: addrs("10.0.0.1")}, {HostIf: "a", MAC: "m", Addresses: addrs("10.0.0.1"), Routes: []Route{{}}}} {
		code, out := p.with(t.Context(), odd{p.daemon, a}, env("ADD"), p.conf())
		if e := wellFormed(t, code, out); e.Code != CodeFailed || !strings.Contains(e.Msg, "lacks something") {
			t.Errorf("%+v: %+v", a, e)
		}
	}
	if len(p.daemon.released) != 4 {
		t.Errorf("released %v", p.daemon.released)
	}
}

// added is a result of ADD, of a chain.
const added = `{"cniVersion":"1.1.0","interfaces":[{"name":"br0"},{"name":"weft0a","mac":"02:00:00:00:00:01"},{"name":"eth0","mac":"02-00-00-00-00-0A","mtu":1380,"sandbox":"/run/netns/a"},
	{"name":"eth0","sandbox":"/run/netns/b"}],
	"ips":[{"interface":0,"address":"192.0.2.9/24"},{"interface":2,"address":"10.32.0.5/32","gateway":"10.32.0.1"},{"address":"fd00::5/128"}],
	"routes":[{"dst":"0.0.0.0/0","gw":"10.32.0.1"},{"dst":"::/0","gw":"fd00::1"},{"dst":"192.0.2.0/24"}]}`

func TestCheck(t *testing.T) {
	p := newPlugin(t)
	p.ok(t, env("ADD"), p.conf())
	if out := p.ok(t, env("CHECK"), p.conf("prevResult", json.RawMessage(added))); out != "" {
		t.Errorf("it answers %q", out)
	}
	want := CheckRequest{Key: Key{"c1", "eth0"}, Network: "net", Netns: "/run/netns/a", Want: Attachment{
		HostIf: "weft0a", MAC: "02:00:00:00:00:0a", MTU: 1380, Addresses: addrs("10.32.0.5", "fd00::5"), Routes: routes("0.0.0.0/0", "10.32.0.1", "::/0", "fd00::1"),
	}}
	if got := p.daemon.checks[0]; fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("\ngot  %+v\nwant %+v", got, want)
	}
	p.ok(t, env("DEL"), p.conf())
	if e := p.refused(t, env("CHECK"), p.conf("prevResult", json.RawMessage(added))); e != (Error{CodeDiffers, "there is no such attachment", "add it"}) {
		t.Errorf("got %+v", e)
	}
}

// TestCheckOfWhatWasAdded passes on what ADD has answered, in each version that has CHECK.
func TestCheckOfWhatWasAdded(t *testing.T) {
	for _, v := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		p := newPlugin(t)
		out := p.ok(t, env("ADD"), p.conf("cniVersion", v))
		p.ok(t, env("CHECK"), p.conf("cniVersion", v, "prevResult", json.RawMessage(out)))
		got := p.daemon.checks[0].Want
		if v == "1.1.0" != (got.MTU == 1380) || got.HostIf != "weft0a" || got.MAC != "02:00:00:00:00:02" || !slices.Equal(got.Addresses, addrs("10.32.0.5", "fd00::5")) ||
			len(got.Routes) != 2 {
			t.Errorf("%s: %+v", v, got)
		}
	}
}

// TestCheckOfAReorderedResult: an interface in another namespace is not weft's end on the host.
func TestCheckOfAReorderedResult(t *testing.T) {
	p := newPlugin(t)
	p.ok(t, env("ADD"), p.conf())
	p.ok(t, env("CHECK"), p.conf("prevResult", json.RawMessage(`{"interfaces":[{"name":"eth0","sandbox":"/run/netns/b"},{"name":"eth0","sandbox":"/run/netns/a"}]}`)))
	if got := p.daemon.checks[0].Want; got.HostIf != "" {
		t.Errorf("%+v", got)
	}
}

func TestCheckAsIPAM(t *testing.T) {
	p := newPlugin(t)
	conf := []any{"type", "ptp", "runDir", nil, "ipam", obj{"type": "weft", "runDir": p.runDir}}
	p.ok(t, env("ADD"), p.conf(conf...))
	p.ok(t, env("CHECK"), p.conf(append(conf, "prevResult", json.RawMessage(added))...))
	if got := p.daemon.checks[0]; !got.AddressesOnly || got.Want.HostIf != "" || !slices.Equal(got.Want.Addresses, addrs("10.32.0.5", "fd00::5")) {
		t.Errorf("%+v", got)
	}
}

func routes(s ...string) (out []Route) {
	for i := 0; i < len(s); i += 2 {
		var r Route
		if err := json.Unmarshal([]byte(`{"dst":"`+s[i]+`","gw":"`+s[i+1]+`"}`), &r); err != nil {
			panic(err)
		}
		out = append(out, r)
	}
	return out
}

func TestStatus(t *testing.T) {
	p := newPlugin(t)
	e := map[string]string{"CNI_COMMAND": "STATUS"}
	if out := p.ok(t, e, p.conf()); out != "" {
		t.Errorf("it answers %q", out)
	}
	if got := p.daemon.checks[0]; got.Key != (Key{}) || got.Network != "net" {
		t.Errorf("%+v", got)
	}
	p.daemon.down = &Error{CodeLimited, "the node was retired", "start it anew"}
	if got := p.refused(t, e, p.conf()); got != (Error{CodeLimited, "the node was retired", "start it anew"}) {
		t.Errorf("got %+v", got)
	}
}

func TestGC(t *testing.T) {
	attachment := func(id, ifname string) obj { return obj{"containerID": id, "ifname": ifname} }
	gc := map[string]string{"CNI_COMMAND": "GC"}
	for name, c := range map[string]struct {
		key   string
		valid any
		want  string // what stays
	}{
		"some":     {"cni.dev/valid-attachments", []obj{attachment("c2", "eth0"), attachment("c1", "net1"), attachment("c2", "eth0")}, "c1/net1 c2/eth0"},
		"none":     {"cni.dev/valid-attachments", []obj{}, ""},
		"null":     {"cni.dev/valid-attachments", json.RawMessage("null"), ""}, // as libcni writes a list that has none
		"old name": {"cni.dev/attachments", []obj{attachment("c1", "eth0")}, "c1/eth0"},
	} {
		p := newPlugin(t)
		for _, k := range []string{"c1/eth0", "c1/net1", "c2/eth0", "c3/eth0"} {
			id, ifname, _ := strings.Cut(k, "/")
			p.ok(t, env("ADD", "CNI_CONTAINERID", id, "CNI_IFNAME", ifname), p.conf())
		}
		if out := p.ok(t, gc, p.conf(c.key, c.valid)); out != "" {
			t.Errorf("%s: it answers %q", name, out)
		}
		var left []string
		for k := range p.daemon.held {
			left = append(left, k.ContainerID+"/"+k.IfName)
		}
		slices.Sort(left)
		if got := strings.Join(left, " "); got != c.want || len(p.daemon.released[0].Valid) != len(strings.Fields(c.want)) || p.daemon.released[0].Network != "net" {
			t.Errorf("%s: %s stays, want %s", name, got, c.want)
		}
	}
	for name, c := range map[string]struct {
		keys []any
		want string
	}{
		"missing": {nil, `GC is asked for without "cni.dev/valid-attachments"; the runtime has to tell which attachments stay: nothing was released`},
		"no list": {[]any{"cni.dev/valid-attachments", 3}, `"cni.dev/valid-attachments" is no list of attachments; it has to consist of objects with containerID and ifname: nothing was released`},
		"no interface": {
			[]any{"cni.dev/valid-attachments", []obj{{"containerID": "c1"}}},
			`"cni.dev/valid-attachments" has container "c1" with interface "", which is none; it has to consist of objects with containerID and ifname: nothing was released`,
		},
		"nulls": {[]any{"cni.dev/valid-attachments", json.RawMessage("[null]")}, "which is none"},
	} {
		p := newPlugin(t)
		if e := p.refused(t, gc, p.conf(c.keys...)); e.Code != CodeConfig || !strings.Contains(e.Error(), c.want) || p.daemon.asked != 0 {
			t.Errorf("%s: got %v, want %s", name, e.Error(), c.want)
		}
	}
}
