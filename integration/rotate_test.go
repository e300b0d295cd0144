// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// rotation is what the tests read of a rotation, in `weft status --json` and in the answers of rotate and revoke-old.
type rotation struct {
	Phase     string   `json:"phase"`
	Confirmed int      `json:"confirmed"`
	Total     int      `json:"total"`
	Waiting   []string `json:"waiting"`
	Away      []string `json:"away"`
	Newcomers []string `json:"newcomers"`
}

// rotating is the part of `weft status --json` about rotation and warnings.
type rotating struct {
	Rotation *rotation `json:"rotation"`
	Warnings []string  `json:"warnings"`
}

// noStall is how long the traffic between two workloads may stand still at the most.
const noStall = 2 * time.Second

// TestRotationUnderTraffic rotates the token, and revokes the old one, while all pairs of workloads on five hosts talk. No connection
// breaks, none stalls, and the old token joins nothing any more.
func TestRotationUnderTraffic(t *testing.T) {
	m := lab.Mesh(t, 5)
	allReach(t, patience, m.Workloads...)
	var talks []*lab.Talk
	for i, from := range m.Workloads {
		for j, to := range m.Workloads[i+1:] {
			addr := to.V4
			if (i+j)%2 == 1 {
				addr = to.V6
			}
			k, err := m.Talk(t.Context(), from.Namespace, to.Namespace, addr)
			if err != nil {
				t.Fatal(err)
			}
			talks = append(talks, k)
		}
	}
	time.Sleep(3 * time.Second)
	hosts := m.Hosts()
	since := time.Now()
	for round := range 2 { // sessions of the second one are made with the first one's token
		before := hosts[0].Token()
		began := time.Now()
		res := ask[rotation](t, hosts[round], "token", "rotate")
		if res.Phase != "switched" || res.Confirmed != 5 || res.Total != 5 || len(res.Away)+len(res.Waiting)+len(res.Newcomers) != 0 {
			t.Errorf("rotated: %+v", res)
		}
		took := time.Since(began)
		time.Sleep(3 * time.Second)
		began = time.Now()
		if res = ask[rotation](t, hosts[4-round], "token", "revoke-old"); res.Phase != "revoked" || res.Confirmed != 5 || res.Total != 5 {
			t.Errorf("revoked: %+v", res)
		}
		t.Logf("rotated in %v, revoked in %v", took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		after := hosts[0].Token()
		for _, h := range hosts {
			if h.Token() != after || after == before {
				t.Errorf("%s does not have the new token", h.Name())
			}
			if left, err := filepath.Glob(filepath.Join(h.DataDir(), "token*")); err != nil || len(left) != 1 {
				t.Errorf("%s keeps %v, %v", h.Name(), left, err)
			}
			if strings.Contains(h.Log(), before) || strings.Contains(h.Log(), after) {
				t.Errorf("the log of %s has a token", h.Name())
			}
		}
		time.Sleep(15 * time.Second) // sessions made with the old token have ended
	}
	var sum lab.Count
	for _, k := range talks {
		if o := k.Outage(since); o > noStall {
			t.Errorf("a talk stood still for %v", o)
		}
		c := k.Count(since)
		sum.Sent, sum.Answered = sum.Sent+c.Sent, sum.Answered+c.Answered
		if err := k.Stop(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d of %d datagrams were answered", sum.Answered, sum.Sent)
	if lost := sum.Sent - sum.Answered; lost > sum.Sent/200 {
		t.Errorf("%d of %d datagrams were lost", lost, sum.Sent)
	}

	late := m.Host("late", m.Segment)
	args := []string{"--token-file", late.File("token", m.Token+"\n", 0o600), "--peer", hosts[0].Link().V4().String(), "--range", lab.DefaultRange}
	refusedLaunch(t, late.RunLaunch(args...), "the token is not that of the mesh at "+hosts[0].Link().V4().String())
	late.Join(hosts[3].Token(), hosts[:1], "--range", lab.DefaultRange)
	if err := late.WaitReady(patience); err != nil {
		t.Error(err)
	}
}

// TestRotationThroughDeaths: one host is away from beginning to end, and the daemon on which the rotation was begun is killed (kill -9) in
// the middle of it. Another one goes on; the host that was away is named, refused after the revocation, and brought back.
func TestRotationThroughDeaths(t *testing.T) {
	t.Parallel()
	m := lab.Mesh(t, 4)
	hosts := m.Hosts()
	h1, h2, h3, h4 := hosts[0], hosts[1], hosts[2], hosts[3]
	allReach(t, patience, m.Workloads...)
	h4.Kill()
	eventually(t, patience, func() error {
		if s := ask[status](t, h1, "status"); s.Nodes.Alive != 3 {
			return fmt.Errorf("%d nodes are alive", s.Nodes.Alive)
		}
		return nil
	})

	// A daemon that is stopped for a moment holds the rotation up.
	h3.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	driven := make(chan lab.Result, 1)
	go func() {
		r, err := h1.TryWeft(ctx, "token", "rotate")
		if err != nil {
			t.Error(err)
		}
		driven <- r
	}()
	eventually(t, 5*time.Second, func() error {
		r := ask[rotating](t, h2, "status").Rotation
		if r == nil || r.Phase != "distributing" || r.Confirmed != 2 {
			return fmt.Errorf("host2 shows %+v", r)
		}
		return nil
	})
	h1.Kill()
	h3.Thaw()
	if r := <-driven; r.Code != 1 || !strings.Contains(r.Stderr, "ended before it answered") && !strings.Contains(r.Stderr, "broke off its answer") {
		t.Errorf("the command whose daemon was killed ends with %d: %s", r.Code, r.Stderr)
	}
	res := ask[rotation](t, h2, "token", "rotate")
	if res.Phase != "switched" || res.Confirmed != 3 || res.Total != 4 || !slices.Equal(res.Away, []string{"host4"}) {
		t.Errorf("host2 went on with %+v", res)
	}
	h1.Relaunch()
	if err := h1.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		if h1.Token() != h2.Token() || h1.Token() == m.Token {
			return fmt.Errorf("host1 has not gone over to the new token")
		}
		return nil
	})
	if r := h3.Weft("token", "revoke-old"); r.Code != 0 || !strings.Contains(r.Stdout, "the old token is revoked: 3 of 4 nodes have the new one\n"+
		"cut off: host4; to bring one back, launch it with the token that weft token --raw prints here\n") {
		t.Errorf("revoke-old: %+v", r)
	}
	allReach(t, patience, m.Workloads[:3]...)

	h4.Relaunch()
	eventually(t, 2*patience, func() error {
		var s rotating
		if err := h4.Query(&s, "status"); err != nil { // it may not run yet
			return err
		}
		for _, w := range s.Warnings {
			if strings.HasPrefix(w, "the mesh's token was rotated while this node was away") && strings.Contains(w, "launch again with the new token, which `weft token --raw` prints on host") {
				return nil
			}
		}
		return fmt.Errorf("host4 warns of %q", s.Warnings)
	})
	if s := ask[status](t, h2, "status"); s.Nodes.Alive != 3 || s.Nodes.Total != 4 {
		t.Errorf("host2 counts %+v", s.Nodes)
	}
	h4.Terminate()
	if err := os.WriteFile(h4.File("token", "", 0o600), []byte(h2.Token()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h4.Relaunch()
	if err := h4.WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	allReach(t, patience, m.Workloads...)
	if h4.Token() != h2.Token() {
		t.Error("host4 does not have the new token")
	}
}
