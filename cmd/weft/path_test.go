// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

func TestPath(t *testing.T) {
	d := daemon()
	d.Reached = "vxlan"
	dir := apitest.Serve(t, d)
	if code, out, errs := run(t, dir, "path", "n2", "vxlan"); code != exitDone || out != "n2: vxlan (proven)\n" || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	if code, out, errs := run(t, dir, "path", "n2", "auto", "--json"); code != exitDone || !strings.Contains(out, `"want": "auto"`) || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	for args, want := range map[string]string{
		"path n2 fast":  `"fast" is no path; choose auto, udp, vxlan, direct`,
		"path n2 relay": `"relay" is no path; choose auto, udp, vxlan, direct`,
		"path n2":       "accepts 2 arg(s), received 1",
	} {
		if code, out, errs := run(t, dir, strings.Fields(args)...); code != exitUsage || out != "" || errs != "weft: "+want+"\nweft: try: weft help\n" {
			t.Errorf("weft %s: exit %d, %q, %q", args, code, out, errs)
		}
	}
	d.Refuse = "this node trusts no network with plaintext; launch it with --trusted-subnets"
	if code, _, errs := run(t, dir, "path", "n2", "vxlan"); code != exitFailed || errs != "weft: "+d.Refuse+"\n" {
		t.Errorf("exit %d, %q", code, errs)
	}
}

// What travels in plaintext is said in plain words.
func TestKernelPathsAreShown(t *testing.T) {
	d := daemon()
	d.State.Kernel = &api.KernelPaths{
		Trusted: []string{"192.0.2.0/24"}, Possible: []string{"direct", "vxlan"}, VNI: 6783, Port: 6784, Nodes: map[string]int{"direct": 1, "vxlan": 2, "udp": 3, "none": 1},
	}
	since := time.Now().Add(-time.Minute)
	d.Nodes[0].Path, d.Nodes[0].SealedPath = "vxlan", "udp"
	d.Nodes[0].Kernel = &api.KernelPath{Want: "auto", Path: "vxlan", Why: "packets of 1450 bytes pass by vxlan to 192.0.2.2:6784", Since: &since, Kinds: []api.PathKind{}}
	dir := apitest.Serve(t, d)
	for _, c := range []struct {
		change func()
		want   []string
	}{
		{func() {}, []string{
			"\nencryption:    on, but not by kernel paths: in plaintext to nodes in 192.0.2.0/24 that trust this host's address, too\n",
			"\nkernel paths:  direct, vxlan (VNI 6783, UDP port 6784)\n", "\nbypass:        large flows go around this host's stack\n", "\npaths:         1 direct, 2 vxlan, 3 udp, 1 none\n",
		}},
		{func() { d.State.Kernel.Bypass = "launched with --no-bypass" }, []string{"\nbypass:        none: launched with --no-bypass\n"}},
		{func() { d.State.Kernel.Possible = nil }, []string{"\nencryption:    on\n", "\nkernel paths:  none is possible\n"}},
		{func() { d.State.Encrypted = false }, []string{"\nencryption:    off: packets between hosts travel in plaintext wherever the kernel can carry them\n"}},
	} {
		c.change()
		code, out, errs := run(t, dir, "status")
		for _, want := range c.want {
			if code != exitDone || errs != "" || !strings.Contains(out, want) {
				t.Errorf("status: exit %d, %q, printed\n%s\nwant %s", code, errs, out, want)
			}
		}
	}
	if code, out, _ := run(t, dir, "peers"); code != exitDone || !strings.Contains(out, "  vxlan         0.4ms") || !strings.Contains(out, "packets of 1450 bytes pass by vxlan to 192.0.2.2:6784\n") {
		t.Errorf("peers: exit %d,\n%s", code, out)
	}
}

func TestStopKeepsTraffic(t *testing.T) {
	for want, kept := range map[string][]string{
		"packets go on by kernel paths, in plaintext, to n2 (vxlan), n3 (direct)\n":           {"n2 (vxlan)", "n3 (direct)"},
		"no kernel path was in use: nothing goes on but between the workloads of this host\n": nil,
	} {
		d := daemon()
		d.Kept = kept
		if code, out, errs := run(t, apitest.Serve(t, d), "stop", "--keep-traffic"); code != exitDone || out != want || errs != "" {
			t.Errorf("exit %d, %q, %q; want %q", code, out, errs, want)
		}
	}
}
