// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestAddResult pins what a runtime gets, in each version.
func TestAddResult(t *testing.T) {
	const (
		ips04 = `[{"version":"4","interface":1,"address":"10.32.0.5/32","gateway":"10.32.0.1"},{"version":"6","interface":1,"address":"fd00::5/128","gateway":"fd00::1"}]`
		ips   = `[{"address":"10.32.0.5/32","gateway":"10.32.0.1","interface":1},{"address":"fd00::5/128","gateway":"fd00::1","interface":1}]`
		rts   = `[{"dst":"0.0.0.0/0","gw":"10.32.0.1"},{"dst":"::/0","gw":"fd00::1"}]`
		ifs   = `[{"name":"weft0a","mac":"02:00:00:00:00:01"},{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/run/netns/a"}]`
		mtu   = `[{"mac":"02:00:00:00:00:01","mtu":1380,"name":"weft0a"},{"mac":"02:00:00:00:00:02","mtu":1380,"name":"eth0","sandbox":"/run/netns/a"}]`
		dns   = `{"nameservers":["10.0.0.10"],"domain":"x","search":["a","b"],"options":["ndots:5"]}`
	)
	for version, want := range map[string]string{
		"0.3.0": `{"cniVersion":"0.3.0","interfaces":` + ifs + `,"ips":` + ips04 + `,"routes":` + rts + `,"dns":` + dns + `}`,
		"0.3.1": `{"cniVersion":"0.3.1","interfaces":` + ifs + `,"ips":` + ips04 + `,"routes":` + rts + `,"dns":` + dns + `}`,
		"0.4.0": `{"cniVersion":"0.4.0","interfaces":` + ifs + `,"ips":` + ips04 + `,"routes":` + rts + `,"dns":` + dns + `}`,
		"1.0.0": `{"cniVersion":"1.0.0","interfaces":` + ifs + `,"ips":` + ips + `,"routes":` + rts + `,"dns":` + dns + `}`,
		"1.1.0": `{"cniVersion":"1.1.0","interfaces":` + mtu + `,"ips":` + ips + `,"routes":` + rts + `,"dns":` + dns + `}`,
	} {
		p := newPlugin(t)
		got := p.ok(t, env("ADD"), p.conf("cniVersion", version, "dns", map[string]any{
			"nameservers": []string{"10.0.0.10"}, "domain": "x", "search": []string{"a", "b"}, "options": []string{"ndots:5"},
		}))
		sameJSON(t, version, got, want)
		if again := p.ok(t, env("ADD"), p.conf("cniVersion", version, "dns", json.RawMessage(dns))); again != got {
			t.Errorf("%s: asked again: %s, before: %s", version, again, got)
		}
	}
}

func sameJSON(t *testing.T, what, got, want string) {
	t.Helper()
	var g, w any
	if err := errors.Join(json.Unmarshal([]byte(got), &g), json.Unmarshal([]byte(want), &w)); err != nil {
		t.Fatalf("%s: %v in %s or %s", what, err, got, want)
	}
	gb, _ := json.Marshal(g)
	wb, _ := json.Marshal(w)
	if string(gb) != string(wb) {
		t.Errorf("%s:\ngot  %s\nwant %s", what, gb, wb)
	}
}

// TestAddRequest holds what the daemon is asked for.
func TestAddRequest(t *testing.T) {
	args := "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1;X=y=z"
	key := Key{"c1", "eth0"}
	for name, c := range map[string]struct {
		env  []string
		conf []any
		want Request
	}{
		"plain":             {want: Request{Key: key}},
		"pod":               {env: []string{"CNI_ARGS", args}, want: Request{Key: key, Pod: Pod{"ns", "web-0", "u-1"}}},
		"MTU":               {conf: []any{"mtu", 1280}, want: Request{Key: key, MTU: 1280}},
		"labels":            {conf: []any{"labels", obj{"app": "db"}, "namespace", "shop"}, want: Request{Key: key, Labels: map[string]string{"app": "db"}, Namespace: "shop"}},
		"MTU of the node":   {conf: []any{"mtu", 0}, want: Request{Key: key}},
		"interface":         {env: []string{"CNI_IFNAME", "net1"}, conf: []any{"ifname", "x"}, want: Request{Key: Key{"c1", "net1"}}},
		"interface's name":  {env: []string{"CNI_IFNAME", ""}, conf: []any{"ifname", "x"}, want: Request{Key: Key{"c1", "x"}}},
		"interface unnamed": {env: []string{"CNI_IFNAME", ""}, want: Request{Key: key}},
		"address in CNI_ARGS": {
			env: []string{"CNI_ARGS", "IP=10.32.0.9/12,fd00::9;MAC=02-00-00-00-00-0A"}, want: Request{Key: key, IPs: addrs("10.32.0.9", "fd00::9"), MAC: "02:00:00:00:00:0a"},
		},
		"address in args": {
			env: []string{"CNI_ARGS", "IP=10.32.0.9"}, conf: []any{"args", obj{"cni": obj{"ips": []string{"10.32.0.10/12"}, "labels": []string{}}, "other": 3}},
			want: Request{Key: key, IPs: addrs("10.32.0.10")},
		},
		"address in runtimeConfig": {
			env:  []string{"CNI_ARGS", "IP=10.32.0.9;MAC=02:00:00:00:00:0a"},
			conf: []any{"args", obj{"cni": obj{"ips": []string{"10.32.0.10"}, "mac": "02:00:00:00:00:0b"}}, "runtimeConfig", obj{"ips": []string{"::ffff:10.32.0.11"}, "mac": "02:00:00:00:00:0c"}},
			want: Request{Key: key, IPs: addrs("10.32.0.11"), MAC: "02:00:00:00:00:0c"},
		},
		"keys of the specification": {
			conf: []any{
				"cniVersions",
				[]string{"1.0.0"},
				"ipMasq", true, "ipam",
				obj{},
				"capabilities",
				obj{"ips": true},
				"disableCheck", true, "disableGC", true,
				"loadOnlyInlinedPlugins", false, "cni.dev/x", 1, "prevResult", json.RawMessage("null"),
			},
			want: Request{Key: key},
		},
		"weft as its own ipam": {conf: []any{"ipam", obj{"type": "weft"}}, want: Request{Key: key}},
	} {
		p := newPlugin(t)
		p.ok(t, env("ADD", c.env...), p.conf(c.conf...))
		c.want.Network, c.want.Netns = "net", "/run/netns/a"
		if got := p.daemon.requests[0]; fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, c.want)
		}
	}
}

type obj = map[string]any

func addrs(s ...string) (a []netip.Addr) {
	for _, x := range s {
		a = append(a, netip.MustParseAddr(x))
	}
	return a
}

func TestAddDNSOfTheRuntime(t *testing.T) {
	p := newPlugin(t)
	out := p.ok(t, env("ADD"), p.conf("dns", obj{"nameservers": []string{"1.1.1.1"}, "domain": "d"},
		"runtimeConfig", obj{"dns": obj{"servers": []string{"10.0.0.10"}, "searches": []string{"s"}, "options": []string{"o"}}}))
	if want := `"dns":{"domain":"d","nameservers":["10.0.0.10"],"options":["o"],"search":["s"]}`; !strings.Contains(out, want) {
		t.Errorf("got %s\nwant %s", out, want)
	}
}

// TestAddInChain keeps what an earlier plugin has made.
func TestAddInChain(t *testing.T) {
	for version, ver := range map[string]string{"0.4.0": `"version":"4",`, "1.0.0": "", "1.1.0": ""} {
		p := newPlugin(t)
		out := p.ok(t, env("ADD"), p.conf("cniVersion", version, "prevResult", json.RawMessage(`{"interfaces":[{"name":"br0"},{"name":"net0","sandbox":"/run/netns/a"}],
			"ips":[{`+ver+`"interface":1,"address":"192.0.2.9/24"}],"routes":[{"dst":"192.0.2.0/24"}],"dns":{"nameservers":["9.9.9.9"]}}`)))
		var r struct {
			Interfaces []struct{ Name string }
			IPs        []struct {
				Address   string
				Interface int
			}
			Routes []struct{ Dst string }
			DNS    struct{ Nameservers []string }
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatal(err)
		}
		want := "{[{br0} {net0} {weft0a} {eth0}] [{192.0.2.9/24 1} {10.32.0.5/32 3} {fd00::5/128 3}] [{192.0.2.0/24} {0.0.0.0/0} {::/0}] {[9.9.9.9]}}"
		if got := fmt.Sprint(r); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", version, got, want)
		}
	}
}

// TestAddAsIPAM: the configuration is that of another plugin, which makes the interface.
func TestAddAsIPAM(t *testing.T) {
	for _, name := range []string{"weft", "weft-cni"} {
		p := newPlugin(t)
		p.name = name
		conf := p.conf("type", "ptp", "runDir", nil, "mtu", "of ptp", "unknown", 1, "ipam", obj{"type": "weft", "runDir": p.runDir}, "dns", obj{"domain": "d"},
			"runtimeConfig", obj{"ips": []string{"10.32.0.9"}, "mac": "of ptp", "portMappings": []int{}}, "prevResult", obj{"interfaces": "of ptp"})
		sameJSON(t, name, p.ok(t, env("ADD", "CNI_ARGS", "MAC=02:00:00:00:00:0a"), conf), `{"cniVersion":"1.1.0",
			"ips":[{"address":"10.32.0.5/12","gateway":"10.32.0.1"},{"address":"fd00::5/64","gateway":"fd00::1"}],
			"routes":[{"dst":"0.0.0.0/0","gw":"10.32.0.1"},{"dst":"::/0","gw":"fd00::1"}],"dns":{"domain":"d"}}`)
		want := Request{Key: Key{"c1", "eth0"}, Network: "net", Netns: "/run/netns/a", AddressesOnly: true, IPs: addrs("10.32.0.9")}
		if got := p.daemon.requests[0]; fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, want)
		}
	}
}

func TestAddressesOnly(t *testing.T) {
	for _, c := range []struct {
		name, typ, ipam string
		want            bool
	}{
		{"weft", "weft", "", false},
		{"weft", "weft", "weft", false},
		{"weft", "ptp", "weft", true},
		{"weft", "weft", "host-local", false},
		{"weft-cni", "weft", "", false},
		{"weft-cni", "ptp", "weft", true},
		{"w2", "w2", "weft", false},
		{"w2", "weft", "w2", true},
		{"weft", "ptp", "", false},
	} {
		if got := addressesOnly(c.name, c.typ, c.ipam); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestAddWarns(t *testing.T) {
	p := newPlugin(t)
	p.daemon.warnings = []string{"no IPv6\nhere", "x"}
	code, _, stderr := p.run(t.Context(), env("ADD"), p.conf())
	if want := "weft: no IPv6 here\nweft: x\n"; code != 0 || stderr != want {
		t.Errorf("exit %d, %q, want %q", code, stderr, want)
	}
	p.daemon.warnings = make([]string, 20)
	if _, _, stderr = p.run(t.Context(), env("ADD"), p.conf()); strings.Count(stderr, "\n") != 9 || !strings.HasSuffix(stderr, "weft: and 12 other warnings: see weft ps\n") {
		t.Errorf("%q", stderr)
	}
}
