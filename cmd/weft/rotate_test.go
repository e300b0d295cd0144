// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

func rotateDaemon() *apitest.Daemon {
	d := daemon()
	d.Progress = []string{"1 of 3 nodes have the new token; waiting for n2; away: n3", "2 of 3 nodes send under the new token; away: n3"}
	d.Rotated.Rotation = api.Rotation{
		Phase: "switched", Confirmed: 2, Total: 3, Begun: time.Date(2026, 11, 21, 15, 4, 5, 0, time.UTC),
		Waiting: []string{}, Away: []string{"n3"}, Newcomers: []string{}, LeftOut: []string{},
	}
	return d
}

func TestRotate(t *testing.T) {
	d := rotateDaemon()
	dir := apitest.Serve(t, d)
	progress := strings.Join(d.Progress, "\n") + "\n"
	code, out, errs := run(t, dir, "token", "rotate", "--without", "a", "--without", "b", "--with", "c")
	want := "the mesh has a new token: 2 of 3 nodes have it, and all that answer send under it\n" +
		"away: n3; they get it by themselves when they come back before weft token revoke-old\n" +
		"the old token is accepted, too, until: weft token revoke-old\n"
	if code != exitDone || out != want || errs != progress {
		t.Errorf("exit %d, %q, stderr %q", code, out, errs)
	}
	if asked := (api.RotateRequest{Without: []string{"a", "b"}, With: []string{"c"}}); !reflect.DeepEqual(d.Asked, asked) {
		t.Errorf("the daemon was asked for %+v", d.Asked)
	}
	for _, args := range [][]string{{"token", "rotate", "--json"}, {"token", "revoke-old", "--json"}} {
		code, out, errs = run(t, dir, args...)
		var res api.RotationResult
		if err := json.Unmarshal([]byte(out), &res); code != exitDone || err != nil || !reflect.DeepEqual(res, d.Rotated) || errs != progress {
			t.Errorf("exit %d, %v, %s, stderr %q", code, err, out, errs)
		}
	}
	d.Rotated.Newcomers, d.Rotated.LeftOut = []string{"n7", "n8"}, []string{"n9"}
	code, out, _ = run(t, dir, "token", "rotate")
	if code != exitDone || !strings.Contains(out, "\ncame later with the old token: n7, n8; launch them with the new one, or run weft token rotate --with NODE\nleft out: n9\n") {
		t.Errorf("exit %d, %q", code, out)
	}
	code, out, errs = run(t, dir, "token", "revoke-old")
	want = "the old token is revoked: 2 of 3 nodes have the new one\n" +
		"cut off: n3, n7, n8, n9; to bring one back, launch it with the token that weft token --raw prints here\n"
	if code != exitDone || out != want || errs != progress {
		t.Errorf("exit %d, %q, stderr %q", code, out, errs)
	}
	d.Broken = "no disk is left"
	for _, what := range []string{"rotate", "revoke-old"} {
		if code, out, errs := run(t, dir, "token", what); code != exitFailed || out != "" || errs != progress+"weft: no disk is left\n" {
			t.Errorf("broken off: exit %d, %q, %q", code, out, errs)
		}
	}
	for args, want := range map[string]string{
		"token rotate n3":        `unknown command "n3" for "weft token rotate"`,
		"token rotate --now":     "unknown flag: --now",
		"token revoke-old n3":    `unknown command "n3" for "weft token revoke-old"`,
		"token rotate --without": "flag needs an argument: --without",
	} {
		if code, _, errs := run(t, dir, strings.Fields(args)...); code != exitUsage || errs != "weft: "+want+"\nweft: try: weft help\n" {
			t.Errorf("%s: exit %d, %q", args, code, errs)
		}
	}
}

func TestRotateInterrupted(t *testing.T) {
	for what, want := range map[string]string{
		"rotate":     "weft: interrupted: what was begun stands, and weft token rotate, on any node, goes on with it\n",
		"revoke-old": "weft: interrupted: weft token revoke-old, on any node, goes on with it\n",
	} {
		d := rotateDaemon()
		d.Progress, d.Endless = nil, make(chan struct{})
		dir := apitest.Serve(t, d)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		var out, errs bytes.Buffer
		code := execute(ctx, []string{"token", what}, env{out: &out, err: &errs, getenv: func(k string) string {
			if k == "WEFT_RUN_DIR" {
				return dir
			}
			return ""
		}})
		cancel()
		if code != exitFailed || out.Len() != 0 || errs.String() != want {
			t.Errorf("%s: exit %d, %q, %q", what, code, out.String(), errs.String())
		}
		select {
		case <-d.Endless:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the daemon goes on", what)
		}
	}
}

func TestStatusShowsRotation(t *testing.T) {
	d := rotateDaemon()
	r := d.Rotated.Rotation
	r.Newcomers = []string{"n7"}
	d.State.Rotation = &r
	dir := apitest.Serve(t, d)
	_, out, _ := run(t, dir, "status")
	if !strings.Contains(out, "switched, 2 of 3 nodes; away: n3; came later with the old token: n7") {
		t.Errorf("status is\n%s", out)
	}
	_, out, _ = run(t, dir, "status", "--json")
	var s struct {
		Rotation struct {
			Phase            string
			Confirmed, Total int
			Away             []string
		}
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil || s.Rotation.Phase != "switched" || s.Rotation.Confirmed != 2 || s.Rotation.Total != 3 || len(s.Rotation.Away) != 1 {
		t.Errorf("%v, %+v", err, s)
	}
}
