// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

func TestLabels(t *testing.T) {
	dir := apitest.Serve(t, daemon())
	code, out, errs := run(t, dir, "attach", "--netns", "/a", "-l", "app=db", "--label", "tier=", "--namespace", "shop", "--name", "db", "--port", "pg=5432/tcp", "--port", "dns=53/UDP",
		"--port", "web=80", "--json")
	var w api.Workload
	want := &api.Identity{
		Namespace: "shop", Name: "db", Labels: map[string]string{"app": "db", "tier": ""},
		Ports: []api.NamedPort{{Name: "pg", Protocol: "tcp", Port: 5432}, {Name: "dns", Protocol: "udp", Port: 53}, {Name: "web", Protocol: "tcp", Port: 80}},
	}
	if err := json.Unmarshal([]byte(out), &w); code != exitDone || err != nil || !reflect.DeepEqual(w.Policy, want) {
		t.Errorf("exit %d, %v, %s%s", code, err, out, errs)
	}
	for _, c := range []struct {
		args, out, errs string
		code            int
	}{
		{"label /a/eth0 app=web x.y/z=1", "app=web,tier=,x.y/z=1\n", "", exitDone},
		{"label /a/eth0 app- tier- x.y/z-", "no labels\n", "", exitDone},
		{"label /b/eth0 app=web", "", "weft: no workload of this host is called \"/b/eth0\"\n", exitFailed},
		{"label /a/eth0 app", "", "weft: \"app\" is no change of a label; give KEY=VALUE to set it, or KEY- to remove it\nweft: try: weft help\n", exitUsage},
		{"label /a/eth0 =x", "", "weft: \"=x\" is no change of a label; give KEY=VALUE to set it, or KEY- to remove it\nweft: try: weft help\n", exitUsage},
		{"label /a/eth0", "", "weft: requires at least 2 arg(s), only received 1\nweft: try: weft help\n", exitUsage},
		{"attach --netns /a --label app", "", "weft: --label \"app\" is no label; give KEY=VALUE, as app=db\nweft: try: weft help\n", exitUsage},
		{"attach --netns /a --label a=1 --label a=2", "", "weft: --label a is given twice; a workload has one value of it\nweft: try: weft help\n", exitUsage},
		{"attach --netns /a --port 80/tcp", "", "weft: --port \"80/tcp\" is no port; give NAME=PORT/PROTOCOL, as http=80/tcp, with tcp, udp or sctp\nweft: try: weft help\n", exitUsage},
		{"attach --netns /a --port a=0", "", "weft: --port \"a=0\" is no port; give NAME=PORT/PROTOCOL, as http=80/tcp, with tcp, udp or sctp\nweft: try: weft help\n", exitUsage},
		{"attach --netns /a --port a=1/icmp", "", "weft: --port \"a=1/icmp\" is no port; give NAME=PORT/PROTOCOL, as http=80/tcp, with tcp, udp or sctp\nweft: try: weft help\n", exitUsage},
	} {
		if code, out, errs := run(t, dir, strings.Fields(c.args)...); code != c.code || out != c.out || errs != c.errs {
			t.Errorf("weft %s: exit %d, %q, %q", c.args, code, out, errs)
		}
	}
	code, out, _ = run(t, dir, "label", "/a/eth0", "app=db", "--json")
	if err := json.Unmarshal([]byte(out), &w); code != exitDone || err != nil || w.Policy.Labels["app"] != "db" {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
}
