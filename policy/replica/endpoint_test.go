// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/weftnet/weft/policy"
)

func TestEndpoint(t *testing.T) {
	e := Endpoint{
		Namespace: "shop", Name: "db.1", ID: "net:[4026]", Labels: map[string]string{"app": "db", "example.com/tier": ""},
		Addrs: []netip.Addr{netip.MustParseAddr("10.32.0.2"), netip.MustParseAddr("fd00::2")},
		Ports: []Port{{"pg", policy.TCP, 5432}},
	}
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeEndpoint(b); err != nil || !reflect.DeepEqual(got, e) {
		t.Errorf("%+v, %v", got, err)
	}
	// A newer version may tell more.
	if _, err := DecodeEndpoint([]byte(`{"namespace":"a","name":"b","more":[1]}`)); err != nil {
		t.Error(err)
	}
	if _, err := (Endpoint{Addrs: e.Addrs}).Encode(); err != nil { // the host itself
		t.Error(err)
	}
}

func TestEndpointRefused(t *testing.T) {
	many := map[string]string{}
	for n := range MaxLabels + 1 {
		many[fmt.Sprint("k", n)] = ""
	}
	a4, a6 := netip.MustParseAddr("10.32.0.2"), netip.MustParseAddr("fd00::2")
	for _, c := range []struct {
		e    Endpoint
		want string
	}{
		{Endpoint{Namespace: "a", Name: "b", Labels: many}, "65 labels and 0 ports, and at most 64 and 64 fit"},
		{Endpoint{Namespace: "a"}, `"" in "a" is no name of an endpoint`},
		{Endpoint{Namespace: "A", Name: "b"}, `"b" in "A" is no name of an endpoint`},
		{Endpoint{Namespace: "a", Name: "b..c"}, `"b..c" in "a" is no name of an endpoint`},
		{Endpoint{Addrs: []netip.Addr{a4, a6, a4}}, "it has more than one address of a family"},
		{Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("::ffff:10.32.0.2")}}, "::ffff:10.32.0.2 is no address of an endpoint"},
		{Endpoint{Addrs: []netip.Addr{{}}}, "invalid IP is no address of an endpoint"},
		{Endpoint{Ports: []Port{{"a", policy.TCP, 1}, {"a", policy.UDP, 1}}}, "two ports are called a; give each its own name"},
		{Endpoint{Ports: []Port{{"a", 1, 1}}}, "the port a is of no protocol that has ports; give tcp, udp or sctp"},
		{Endpoint{Ports: []Port{{"a", policy.TCP, 0}}}, "the port a has no number; give one from 1 to 65535"},
		{Endpoint{Labels: map[string]string{"-": ""}}, `"-" is no key of a label; it has to be of 1 to 63 letters, digits, hyphens, dots and underscores, the first and the last a letter or digit, behind example.com/ if it is to have a prefix`},
		{Endpoint{Labels: map[string]string{"a": "b c"}}, `"b c" is no value of the label a; it has to be empty, or of up to 63 letters, digits, hyphens, dots and underscores, the first and the last a letter or digit`},
	} {
		if _, err := c.e.Encode(); err == nil || err.Error() != c.want {
			t.Errorf("%+v: %v\nwant %s", c.e, err, c.want)
		}
	}
	for _, b := range []string{"", "[]", `{"name":3}`, `{"addrs":["x"]}`, `{"namespace":"a","name":"B"}`} {
		if _, err := DecodeEndpoint([]byte(b)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", b, err)
		}
	}
}

func TestNames(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, c := range []struct {
		s           string
		label, name bool
	}{
		{"a", true, true},
		{"a-1", true, true},
		{"1", true, true},
		{long, true, true},
		{long + "a", false, true},
		{"a.b", false, true},
		{"", false, false},
		{"-a", false, false},
		{"a-", false, false},
		{"A", false, false},
		{"a_b", false, false},
		{"a.", false, false},
		{".a", false, false},
		{"a.-b", false, false},
		{strings.Repeat("a", 254), false, false},
		{"ä", false, false},
		{"a/b", false, false},
	} {
		if DNSLabel(c.s) != c.label || ObjectName(c.s) != c.name {
			t.Errorf("%q: %v, %v", c.s, DNSLabel(c.s), ObjectName(c.s))
		}
	}
	for label, ok := range map[[2]string]bool{
		{"app", "db"}: true, {"app", ""}: true, {"example.com/App_1", "A.b-c"}: true, {long, long}: true,
		{"", ""}: false, {"/a", ""}: false, {"a/", ""}: false, {"a/b/c", ""}: false, {"A.com/b", ""}: false, {long + "a", ""}: false, {"a", long + "a"}: false,
		{"a", "-"}: false, {"a", "b/c"}: false, {"a\n", ""}: false,
	} {
		if err := CheckLabel(label[0], label[1]); (err == nil) != ok {
			t.Errorf("%q: %v", label, err)
		}
	}
	for name, ok := range map[string]bool{
		"http": true, "a-b": true, "8080": false, "80a": true, "": false, "a--b": false, "-a": false, "a-": false, "A": false, "abcdefghijklmno": true, "abcdefghijklmnop": false, "a_b": false,
	} {
		if err := CheckPort(Port{name, policy.TCP, 80}); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// What decodes can be encoded, and says the same.
func FuzzEndpoint(f *testing.F) {
	f.Add([]byte(`{"namespace":"a","name":"b","labels":{"app":"db"},"addrs":["10.32.0.2","fd00::2"],"ports":[{"name":"http","protocol":6,"port":80}]}`))
	f.Add([]byte(`{"addrs":["10.32.0.1"]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		e, err := DecodeEndpoint(in)
		if err != nil {
			return
		}
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeEndpoint(b)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(e) {
			t.Fatalf("%+v, %v\n%+v", again, err, e)
		}
	})
}
