// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestPlanForetellsApply(t *testing.T) {
	h := newHost(t)
	before := snapshot(t, h.ns)
	planned, err := h.Plan(desired(), Changes{})
	must(t, err)
	differ(t, "Plan has changed something", before, snapshot(t, h.ns))
	res := h.apply(t, desired())
	if !reflect.DeepEqual(planned, res.Changes) {
		t.Errorf("planned %+v, made %+v", planned, res.Changes)
	}
	var keys []string
	for _, s := range res.Changes.Sysctls {
		keys = append(keys, s.Key)
	}
	// Advertisements before forwarding: the other way round the kernel would drop the routes that it learned.
	if got := strings.Join(keys, " "); !strings.HasSuffix(got, "net/ipv6/conf/eth0/accept_ra "+forward6) {
		t.Errorf("order: %s", got)
	}
}

func TestChangesSurviveRestarts(t *testing.T) {
	h := newHost(t)
	first := h.apply(t, desired()).Changes
	b, err := json.Marshal(first)
	must(t, err)
	var loaded Changes
	must(t, json.Unmarshal(b, &loaded))
	if !reflect.DeepEqual(first, loaded) {
		t.Errorf("%+v became %+v", first, loaded)
	}
	// Another interface comes, another process applies.
	v := netlink.NewVeth(netlink.NewLinkAttrs())
	v.Name, v.PeerName = "eth1", "peer"
	must(t, h.conn.LinkAdd(v))
	res, err := newAt(h.log, h.ns).Apply(desired(), loaded)
	must(t, err)
	if got := sysctl(t, h.ns, "net/ipv6/conf/eth1/accept_ra"); got != "2" {
		t.Errorf("accept_ra of the new interface is %s", got)
	}
	for _, s := range first.Sysctls {
		if !res.Changes.has(s.Key) {
			t.Errorf("%s is lost", s.Key)
		}
	}
	// Without the prior changes there is nothing to be found out any more: an empty value must not wipe out what is known.
	if again, err := h.Apply(desired(), res.Changes); err != nil || !reflect.DeepEqual(again.Changes, res.Changes) {
		t.Errorf("%v: %+v became %+v", err, res.Changes, again.Changes)
	}
}

func TestRemoveRestoresSysctls(t *testing.T) {
	for name, c := range map[string]struct {
		before map[string]string
		during map[string]string // by somebody else
		after  map[string]string // where not as before
	}{
		"a plain host": {},
		"a router":     {before: map[string]string{forward4: "1", forward6: "1"}},
		"a careful host": {before: map[string]string{
			"net/ipv4/conf/all/accept_redirects": "0", "net/ipv4/conf/eth0/forwarding": "1", "net/ipv6/conf/eth0/forwarding": "1",
			"net/ipv4/conf/all/rp_filter": "1", "net/ipv6/conf/eth0/accept_ra": "0", "net/ipv6/conf/default/forwarding": "1",
		}},
		"somebody else decides": {
			during: map[string]string{forward4: "0", "net/ipv6/conf/eth0/accept_ra": "0"},
			after:  map[string]string{"net/ipv6/conf/eth0/accept_ra": "0", "net/ipv4/conf/all/accept_redirects": "1"},
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			h := newHost(t)
			must(t, h.conn.LinkDel(up(t, h.conn, DefaultDevice)))
			for k, v := range c.before {
				setSysctl(t, h.ns, k, v)
			}
			before := snapshot(t, h.ns)
			h.tun = openTUN(t, h.ns, DefaultDevice)
			h.apply(t, desired())
			h.attach(t, 1)
			h.apply(t, desired())
			for k, v := range c.during {
				setSysctl(t, h.ns, k, v)
			}
			_, err := h.Remove(h.changes)
			must(t, err)
			if len(c.after) == 0 {
				differ(t, "not as before", before, snapshot(t, h.ns))
			}
			for k, want := range c.after {
				if got := sysctl(t, h.ns, k); got != want {
					t.Errorf("%s is %s, want %s", k, got, want)
				}
			}
		})
	}
}

func TestReadOnlySysctls(t *testing.T) {
	s := settings{todo: []Sysctl{{Key: "net/ipv4/weft_none", Set: "1"}, {Key: "kernel/osrelease", Set: "1"}}}
	got := s.apply()
	if len(got) != 1 || !strings.HasPrefix(got[0], "kernel/osrelease cannot be set to 1: ") || !strings.HasSuffix(got[0], "; set it on the host, or workloads do not reach others") {
		t.Errorf("warnings %q", got)
	}
}
