// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What the CNI specification says of what plugins print (SPEC.md of 0.3.1, 0.4.0, 1.0.0 and 1.1.0, "Result Types" and "Error"), as tables. The
// specification lets plugins add keys of their own; Weft adds none, so one that is not in its tables is an error here.

// cniVersions are the versions of the specification that Weft speaks, oldest first.
var cniVersions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// A shape is what a JSON value must look like; it says what is wrong.
type shape func(v any) error

// fields are the keys of an object. Those that end in "!" must be there.
type fields map[string]shape

func object(f fields) shape {
	return func(v any) error {
		m, ok := v.(map[string]any)
		if !ok {
			return fmt.Errorf("%v is no object", v)
		}
		for k, v := range m {
			s, ok := f[k]
			if !ok {
				s, ok = f[k+"!"]
			}
			if !ok {
				return fmt.Errorf("the specification has no key %q here", k)
			}
			if err := s(v); err != nil {
				return fmt.Errorf("%s: %w", k, err)
			}
		}
		for k := range f {
			if name, must := strings.CutSuffix(k, "!"); must {
				if _, ok := m[name]; !ok {
					return fmt.Errorf("the key %q is missing", name)
				}
			}
		}
		return nil
	}
}

func list(least int, of shape) shape {
	return func(v any) error {
		l, ok := v.([]any)
		if !ok || len(l) < least {
			return fmt.Errorf("%v is no list of at least %d", v, least)
		}
		for i, v := range l {
			if err := of(v); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
		return nil
	}
}

// text is a string that passes a test.
func text(what string, ok func(string) bool) shape {
	return func(v any) error {
		if s, is := v.(string); !is || !ok(s) {
			return fmt.Errorf("%#v is no %s", v, what)
		}
		return nil
	}
}

func anyText() shape { return text("string", func(string) bool { return true }) }

func oneOf(all ...string) shape {
	return text("one of "+strings.Join(all, ", "), func(s string) bool { return slices.Contains(all, s) })
}

func addressText() shape {
	return text("IP address", func(s string) bool { a, err := netip.ParseAddr(s); return err == nil && a.Zone() == "" })
}

func prefixText() shape {
	return text("address in CIDR notation", func(s string) bool { _, err := netip.ParsePrefix(s); return err == nil })
}

func macText() shape {
	return text("hardware address", func(s string) bool { a, err := net.ParseMAC(s); return err == nil && len(a) == 6 })
}

func number() shape {
	return func(v any) error {
		if f, ok := v.(float64); !ok || f < 0 || f != math.Trunc(f) || f > math.MaxUint32 {
			return fmt.Errorf("%#v is no unsigned number", v)
		}
		return nil
	}
}

// resultShape is what ADD of a plugin prints, or of one that gives out addresses only.
func resultShape(version string, ipam bool) shape {
	first := slices.Index(cniVersions, version)
	since := func(v string) bool { return first >= slices.Index(cniVersions, v) }
	iface := fields{
		"name!": text("name of an interface", func(s string) bool { return s != "" && len(s) <= 15 && !strings.ContainsAny(s, "/ \n") }),
		"mac":   macText(), "sandbox": text("absolute path, or empty", func(s string) bool { return s == "" || filepath.IsAbs(s) }),
	}
	ip := fields{"address!": prefixText(), "gateway": addressText(), "interface": number()}
	route := fields{"dst!": prefixText(), "gw": addressText()}
	if !since("1.0.0") {
		ip["version!"] = oneOf("4", "6")
	}
	if since("1.1.0") {
		iface["mtu"], iface["socketPath"], iface["pciID"] = number(), anyText(), anyText()
		for _, k := range []string{"mtu", "advmss", "priority", "table", "scope"} {
			route[k] = number()
		}
	}
	result := fields{
		"cniVersion!": oneOf(version),
		"ips!":        list(1, object(ip)),
		"routes":      list(0, object(route)),
		"dns": object(fields{
			"nameservers": list(0, addressText()), "domain": anyText(), "search": list(0, anyText()), "options": list(0, anyText()),
		}),
	}
	if ipam {
		delete(ip, "interface")
	} else {
		result["interfaces!"] = list(1, object(iface))
	}
	return object(result)
}

// errorShape is what a plugin prints that fails; the version is not known to it when it cannot read the configuration.
func errorShape() shape {
	return object(fields{
		"cniVersion!": oneOf(cniVersions...),
		"code!": func(v any) error {
			f, ok := v.(float64)
			if !ok || f != math.Trunc(f) || f < 100 && !slices.Contains([]float64{1, 2, 3, 4, 5, 6, 7, 11, 50, 51}, f) {
				return fmt.Errorf("%v is no code of the specification, and none that it leaves to plugins", v)
			}
			return nil
		},
		"msg!":    text("message", func(s string) bool { return s != "" && !strings.Contains(s, "\n") }),
		"details": anyText(),
	})
}

// versionShape is what VERSION prints.
func versionShape(asked string) shape {
	return object(fields{"cniVersion!": oneOf(asked), "supportedVersions!": list(1, anyText())})
}

// decodeOne decodes one JSON value, which is all that there is.
func decodeOne(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("%w in %q", err, text)
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("more than one value in %q", text)
	}
	return v, nil
}

// fits says how what a plugin has printed deviates from the specification.
func (c *call) fits() error {
	if c.code != 0 {
		v, err := decodeOne(c.stdout)
		if err == nil {
			err = errorShape()(v)
		}
		if err == nil && c.code != 1 {
			err = fmt.Errorf("exit code %d, want 1", c.code)
		}
		return err
	}
	var conf struct {
		CNIVersion string
		Type       string
	}
	if err := json.Unmarshal(c.stdin, &conf); err != nil && c.command != "VERSION" {
		return fmt.Errorf("success with %w on standard input", err)
	}
	var want shape
	switch c.command {
	case "ADD":
		want = resultShape(conf.CNIVersion, c.plugin != conf.Type)
	case "VERSION":
		want = versionShape(conf.CNIVersion)
	default:
		if len(c.stdout) != 0 {
			return fmt.Errorf("%s printed %q", c.command, c.stdout)
		}
		return nil
	}
	v, err := decodeOne(c.stdout)
	if err != nil {
		return err
	}
	if err := want(v); err != nil {
		return err
	}
	if c.command == "ADD" {
		return c.coherent()
	}
	return nil
}

// coherent says what in a result that has the right keys cannot be.
func (c *call) coherent() error {
	var r struct {
		Interfaces []struct{ Name, Sandbox string }
		IPs        []struct {
			Version   string
			Address   netip.Prefix
			Gateway   netip.Addr
			Interface *int
		}
		Routes []struct {
			Dst netip.Prefix
			GW  netip.Addr
		}
	}
	if err := json.Unmarshal(c.stdout, &r); err != nil {
		return err
	}
	inside := -1
	for i, f := range r.Interfaces {
		if f.Sandbox == c.netns && (f.Name == c.ifname || c.ifname == "") {
			inside = i
		}
	}
	if len(r.Interfaces) > 0 && inside < 0 {
		return fmt.Errorf("no interface %s in %s", c.ifname, c.netns)
	}
	for _, ip := range r.IPs {
		switch {
		case ip.Interface != nil && *ip.Interface >= len(r.Interfaces):
			return fmt.Errorf("%v is on interface %d of %d", ip.Address, *ip.Interface, len(r.Interfaces))
		case ip.Version != "" && (ip.Version == "4") != ip.Address.Addr().Is4():
			return fmt.Errorf("%v is said to be of version %s", ip.Address, ip.Version)
		case ip.Gateway.IsValid() && ip.Gateway.Is4() != ip.Address.Addr().Is4():
			return fmt.Errorf("%v has the gateway %v", ip.Address, ip.Gateway)
		}
	}
	for _, route := range r.Routes {
		if route.Dst != route.Dst.Masked() || route.GW.IsValid() && route.GW.Is4() != route.Dst.Addr().Is4() {
			return fmt.Errorf("a route to %v by %v", route.Dst, route.GW)
		}
	}
	return nil
}

// TestCNISchema has the tables find what is planted.
func TestCNISchema(t *testing.T) {
	const (
		conf = `{"cniVersion": "%s", "name": "n", "type": "%s"}`
		good = `{"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/ns", "mac": "02:00:00:00:00:01", "mtu": 1400}],
			"ips": [{"address": "10.0.0.1/32", "gateway": "10.0.0.2", "interface": 0}], "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.2"}], "dns": {"nameservers": ["::1"]}}`
		refusal = `{"cniVersion": "1.1.0", "code": 7, "msg": "no", "details": "do"}`
	)
	replaced := func(s string, pairs ...string) string { return strings.NewReplacer(pairs...).Replace(s) }
	for name, c := range map[string]struct {
		command, version, kind, stdout string
		code                           int
		wrong                          string // part of what is found, "": nothing
	}{
		"good":               {command: "ADD", stdout: good},
		"mtu in 1.0.0":       {command: "ADD", version: "1.0.0", stdout: replaced(good, "1.1.0", "1.0.0"), wrong: `no key "mtu"`},
		"good in 1.0.0":      {command: "ADD", version: "1.0.0", stdout: replaced(good, "1.1.0", "1.0.0", `, "mtu": 1400`, "")},
		"no version in 0.4":  {command: "ADD", version: "0.4.0", stdout: replaced(good, "1.1.0", "0.4.0", `, "mtu": 1400`, ""), wrong: `"version" is missing`},
		"good in 0.4":        {command: "ADD", version: "0.4.0", stdout: replaced(good, "1.1.0", "0.4.0", `, "mtu": 1400`, "", `"interface"`, `"version": "4", "interface"`)},
		"other version":      {command: "ADD", version: "1.0.0", stdout: replaced(good, `, "mtu": 1400`, ""), wrong: "one of 1.0.0"},
		"version of a v6":    {command: "ADD", version: "0.4.0", stdout: replaced(good, "1.1.0", "0.4.0", `, "mtu": 1400`, "", `"interface"`, `"version": "6", "interface"`), wrong: "of version 6"},
		"no CIDR":            {command: "ADD", stdout: replaced(good, "10.0.0.1/32", "10.0.0.1"), wrong: "CIDR"},
		"interface 1 of 1":   {command: "ADD", stdout: replaced(good, `"interface": 0`, `"interface": 1`), wrong: "interface 1 of 1"},
		"gateway of others":  {command: "ADD", stdout: replaced(good, `"gateway": "10.0.0.2"`, `"gateway": "::1"`), wrong: "gateway ::1"},
		"other sandbox":      {command: "ADD", stdout: replaced(good, "/ns", "/other"), wrong: "no interface eth0 in /ns"},
		"host bits":          {command: "ADD", stdout: replaced(good, "0.0.0.0/0", "10.0.0.1/8"), wrong: "a route to"},
		"bad name server":    {command: "ADD", stdout: replaced(good, `"::1"`, `"one"`), wrong: "nameservers: [0]"},
		"two values":         {command: "ADD", stdout: good + "{}", wrong: "more than one value"},
		"nothing":            {command: "ADD", wrong: "EOF"},
		"interfaces of IPAM": {command: "ADD", kind: "ptp", stdout: good, wrong: `no key "interface`},
		"good of IPAM":       {command: "ADD", kind: "ptp", stdout: `{"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.1/32"}]}`},
		"DEL":                {command: "DEL"},
		"DEL that talks":     {command: "DEL", stdout: "{}", wrong: "DEL printed"},
		"VERSION":            {command: "VERSION", stdout: `{"cniVersion": "1.1.0", "supportedVersions": ["1.1.0"]}`},
		"VERSION of none":    {command: "VERSION", stdout: `{"cniVersion": "1.1.0", "supportedVersions": []}`, wrong: "at least 1"},
		"error":              {command: "ADD", code: 1, stdout: refusal},
		"exit code":          {command: "ADD", code: 2, stdout: refusal, wrong: "exit code 2"},
		"reserved code":      {command: "ADD", code: 1, stdout: replaced(refusal, "7", "8"), wrong: "8 is no code"},
		"no message":         {command: "ADD", code: 1, stdout: replaced(refusal, `"no"`, `""`), wrong: "no message"},
		"error of no JSON":   {command: "ADD", code: 1, stdout: "panic: ", wrong: "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.version == "" {
				c.version = "1.1.0"
			}
			if c.kind == "" {
				c.kind = weftType
			}
			given := call{plugin: weftType, command: c.command, netns: "/ns", ifname: "eth0", stdin: fmt.Appendf(nil, conf, c.version, c.kind), stdout: []byte(c.stdout), code: c.code}
			err := given.fits()
			if (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("found %v, want %q", err, c.wrong)
			}
		})
	}
}
