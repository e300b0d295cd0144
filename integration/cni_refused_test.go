// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftnet/weft/integration/lab"
)

// TestCNIRefused calls the plugin with what no runtime in its right mind would: it answers with an error as the specification has it, exit code 1 and
// advice, in time, and nothing has changed.
func TestCNIRefused(t *testing.T) {
	t.Parallel()
	h := cniMesh(t, 1)[0]
	p := h.newPod("victim")
	before, inside := noted(t, h.Host), snapshot(t, p.Namespace)
	base := h.weftConf().with(keys{"cniVersion": newest, "name": "weft"})
	env := map[string]string{"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "victim", "CNI_NETNS": p.NetNS, "CNI_IFNAME": "eth0"}
	file := h.File("no-namespace", "", 0o600)
	conf := func(k keys) string {
		text, err := json.Marshal(base.with(k))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	long := strings.Repeat("x", 300)
	type bad struct {
		what  string
		stdin string            // default: base
		env   map[string]string // over that of a good ADD
		code  uint
		named string // part of what is said
	}
	all := []bad{
		{what: "nothing on standard input", stdin: " ", code: 6},
		{what: "no JSON", stdin: "{", code: 6},
		{what: "no object", stdin: `["weft"]`, code: 6},
		{what: "null", stdin: "null", code: 6},
		{what: "two objects", stdin: conf(nil) + "{}", code: 6},
		{what: "bytes that are no UTF-8", stdin: "\xff\xfe\x00", code: 6},
		{what: "objects in objects", stdin: strings.Repeat(`{"ipam":`, 100_000), code: 6},
		{what: "huge input", stdin: conf(keys{"args": strings.Repeat("x", 64<<20)}), code: 6, named: "bytes"},
		{what: "unknown key", stdin: conf(keys{"colour": "red"}), code: 2, named: `"colour": "red"`},
		{what: "unknown capability", stdin: conf(keys{"runtimeConfig": keys{"portMappings": []int{1}}}), code: 2, named: "portMappings"},
		{what: "other IPAM", stdin: conf(keys{"ipam": keys{"type": "host-local"}}), code: 2, named: "host-local"},
		{what: "future version", stdin: conf(keys{"cniVersion": "9.9.9"}), code: 1, named: "9.9.9"},
		{what: "past version", stdin: conf(keys{"cniVersion": "0.2.0"}), code: 1, named: "0.2.0"},
		{what: "no version at all", stdin: conf(keys{"cniVersion": "../"}), code: 1, named: "../"},
		{what: "version that is a number", stdin: conf(keys{"cniVersion": 1}), code: 6},
		{what: "no name", stdin: conf(keys{"name": ""}), code: 7, named: "name"},
		{what: "name with a path", stdin: conf(keys{"name": "../weft"}), code: 7, named: "../weft"},
		{what: "long name", stdin: conf(keys{"name": long}), code: 7, named: "name"},
		{what: "name with a control character", stdin: conf(keys{"name": "we\x07ft"}), code: 7, named: `\a`},
		{what: "relative run directory", stdin: conf(keys{"runDir": "run"}), code: 7, named: "runDir"},
		{what: "long run directory", stdin: conf(keys{"runDir": "/" + long}), code: 7, named: "runDir"},
		{what: "negative MTU", stdin: conf(keys{"mtu": -1}), code: 7, named: "mtu"},
		{what: "MTU of a word", stdin: conf(keys{"mtu": "big"}), code: 7, named: "mtu"},
		{what: "broken MTU", stdin: conf(keys{"mtu": 1400.5}), code: 7, named: "mtu"},
		{what: "huge MTU", stdin: conf(keys{"mtu": 1 << 40}), code: 7, named: "mtu"},
		{what: "interface in the configuration", stdin: conf(keys{"ifname": "../../eth0"}), code: 7, named: "ifname"},
		{what: "no address", stdin: conf(keys{"runtimeConfig": keys{"ips": []string{"10.32.0.300"}}}), code: 7, named: "10.32.0.300"},
		{what: "address with a zone", stdin: conf(keys{"runtimeConfig": keys{"ips": []string{"fe80::1%eth0"}}}), code: 7, named: "fe80::1%eth0"},
		{what: "three addresses", stdin: conf(keys{"runtimeConfig": keys{"ips": []string{"10.32.0.7", "10.32.0.8", "10.32.0.9"}}}), code: 7},
		{what: "broken previous result", stdin: conf(keys{"prevResult": keys{"cniVersion": newest, "ips": "none"}}), code: 7, named: "prevResult"},
		{what: "DNS of a word", stdin: conf(keys{"dns": "here"}), code: 7, named: "dns"},
	}
	for name, values := range map[string][]string{
		"CNI_COMMAND":     {"", "add", "ADD ", "REMOVE", long, "\x1b[2J"},
		"CNI_CONTAINERID": {"", "../victim", "a/b", ".", "-a", long, "a\nb", "a b", "ä", "\x1b[2J"},
		"CNI_IFNAME":      {"../eth0", ".", "..", "a/b", "sixteencharacter", long, "a b", "a:b", "eth\x00"[:3] + "\n", "\x1b[2J"},
		"CNI_NETNS":       {"", "relative", "/nowhere/at/all", file, "/", "/proc/self/ns/net", "/proc/self/ns/mnt", "/" + strings.Repeat(long, 20), "/a\nb"},
		"CNI_ARGS":        {"IP", "=", "IP=1.2.3", "Unknown=1", strings.Repeat("A=b;", 30_000), "IP=\x1b[2J"},
	} {
		for _, v := range values {
			b := bad{what: fmt.Sprintf("%s %.40q", name, v), env: map[string]string{name: v}, code: 4, named: name}
			if name == "CNI_NETNS" {
				b.named = "" // the daemon names the namespace
			}
			all = append(all, b)
		}
	}
	for _, c := range all {
		t.Run(c.what, func(t *testing.T) {
			if c.stdin == "" {
				c.stdin = conf(nil)
			}
			var vars []string
			for k, v := range env {
				if over, ok := c.env[k]; ok {
					v = over
				}
				vars = append(vars, k+"="+v)
			}
			if v, ok := c.env["CNI_ARGS"]; ok {
				vars = append(vars, "CNI_ARGS="+v)
			}
			k := h.raw(c.stdin, vars...)
			k.stdin = k.stdin[:min(len(k.stdin), 200)]
			if k.code != 1 {
				t.Fatalf("exit code %d: %v", k.code, k)
			}
			if len(k.stderr) != 0 {
				t.Errorf("on stderr: %s", k.stderr)
			}
			if len(k.stdout) > 2000 {
				t.Errorf("an answer of %d bytes: %.300s", len(k.stdout), k.stdout)
			}
			refusedBy(t, k.refusal(), c.code, c.named)
			for _, r := range string(k.stdout) {
				if r < ' ' && r != '\n' || r == 0x7f {
					t.Errorf("%q has a control character", k.stdout)
					break
				}
			}
			if k.took > soon {
				t.Errorf("took %v", k.took)
			}
			t.Log(k.refusal())
		})
		if t.Failed() && len(owners(t, h.Host)) != len(before.owners) { // the others would not be what they are said to be
			t.Fatalf("%s: there are %v now", c.what, owners(t, h.Host))
		}
	}
	// The other verbs know what they are given as well.
	for _, verb := range []string{"DEL", "CHECK", "GC", "STATUS"} {
		for stdin, code := range map[string]uint{"{": 6, conf(keys{"cniVersion": "9.9.9"}): 1, conf(keys{"runDir": "run"}): 7, conf(keys{"name": "../x"}): 7} {
			k := h.raw(stdin, "CNI_COMMAND="+verb, "CNI_CONTAINERID=victim", "CNI_NETNS="+p.NetNS, "CNI_IFNAME=eth0")
			if k.code != 1 {
				t.Errorf("exit code %d: %v", k.code, k)
			}
			refusedBy(t, k.refusal(), code)
		}
	}
	for _, verb := range []string{"DEL", "CHECK"} {
		refusedBy(t, h.raw(conf(nil), "CNI_COMMAND="+verb, "CNI_CONTAINERID=../victim", "CNI_NETNS="+p.NetNS, "CNI_IFNAME=eth0").refusal(), 4, "CNI_CONTAINERID")
	}
	refusedBy(t, h.raw(conf(nil), "CNI_COMMAND=CHECK", "CNI_CONTAINERID=victim", "CNI_NETNS="+p.NetNS, "CNI_IFNAME=eth0").refusal(), 7, "prevResult")
	// Nor does it keep what it cannot tell the runtime of.
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	add, err := h.Start(lab.Command{
		Path: filepath.Join(h.path[1], weftType), Stdin: strings.NewReader(conf(nil)), Stdout: full,
		Env: []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=victim", "CNI_NETNS=" + p.NetNS, "CNI_IFNAME=eth0", "CNI_PATH=" + h.path[1]},
	})
	if err := errors.Join(err, full.Close()); err != nil {
		t.Fatal(err)
	}
	if code, err := add.Wait(soon); err != nil || code != 1 {
		t.Errorf("ADD that cannot be answered: exit code %d, %v", code, err)
	}

	before.leaks(t)
	same(t, "the container", inside, snapshot(t, p.Namespace))
	if kept, err := os.ReadDir(h.RunDir() + "/cni"); err == nil && len(kept) != 0 {
		t.Errorf("something is kept for the daemon: %v", kept)
	}
	// Nothing of all that is in the way of what is right.
	h.matches(p, h.add(h.weft(), p))
	h.del(h.weft(), p)
	before.leaks(t)
}
