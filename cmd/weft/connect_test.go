// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

func TestConnectAndDisconnect(t *testing.T) {
	dir := apitest.Serve(t, daemon())
	for _, c := range []struct {
		args, out, errs string
		code            int
	}{
		{"connect host-2:6783 n9:6783", "host-2:6783: joined\nn9:6783: waiting: no such host n9\n", "", exitDone},
		{"disconnect n9:6783", "n9:6783: disconnected\n", "", exitDone},
		{"disconnect host-2:6783", "host-2:6783: disconnected; n9, which was found there, stays a member of the mesh\n", "", exitDone},
		{"disconnect host-2:6783", "", "weft: this node was not told to connect to host-2:6783\n", exitFailed},
		{"connect", "", "weft: weft connect needs a HOST or HOST:PORT, or several\nweft: try: weft help\n", exitUsage},
		{"disconnect", "", "weft: weft disconnect needs a HOST or HOST:PORT, or several\nweft: try: weft help\n", exitUsage},
	} {
		if code, out, errs := run(t, dir, strings.Fields(c.args)...); code != c.code || out != c.out || errs != c.errs {
			t.Errorf("weft %s: exit %d, %q, %q", c.args, code, out, errs)
		}
	}
	var connected api.ConnectResult
	code, out, _ := run(t, dir, "connect", "a:1", "--json")
	if err := json.Unmarshal([]byte(out), &connected); code != exitDone || err != nil || len(connected.Targets) != 1 || connected.Targets[0].Host != "a:1" {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
	if code, out, _ := run(t, dir, "__complete", "disconnect", ""); code != exitDone || !strings.HasPrefix(out, "a:1\n:4\n") {
		t.Errorf("completion: exit %d, %q", code, out)
	}
	if code, out, _ := run(t, dir, "__complete", "disconnect", "a:1", ""); code != exitDone || !strings.HasPrefix(out, ":4\n") {
		t.Errorf("completion of what is named already: exit %d, %q", code, out)
	}
	var gone api.DisconnectResult
	code, out, _ = run(t, dir, "disconnect", "a:1", "--json")
	if err := json.Unmarshal([]byte(out), &gone); code != exitDone || err != nil || len(gone.Disconnected) != 1 || len(gone.Disconnected[0].Notes) != 1 {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
}
