// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/weftnet/weft/integration/lab"
)

// What the test of policies applies: all workloads are isolated, and app=web reaches the port pg of app=db.
const (
	policyDeny = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {}, policyTypes: [Ingress]}
`
	policyAllow = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-to-db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: pg}]
`
)

// serve accepts TCP connections on two ports of a workload until the test ends.
func serve(t *testing.T, w *lab.Workload, ports ...uint16) {
	t.Helper()
	for _, port := range ports {
		var l net.Listener
		if err := w.Do(func() (err error) {
			l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
		t.Cleanup(func() {
			_ = l.Close()
			<-done
		})
	}
}

// connects tells whether a TCP connection comes to be.
func connects(from *lab.Workload, to netip.Addr, port uint16) bool {
	return from.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), silence)
		defer cancel()
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(to, port).String())
		if err == nil {
			err = c.Close()
		}
		return err
	}) == nil
}

// agrees waits until real connections, and what `weft policy why` says of them on each host, are as they should be.
func agrees(t *testing.T, want bool, hosts []*lab.Host, from, to *lab.Workload, names [2]string, port uint16) {
	t.Helper()
	eventually(t, patience, func() error {
		for _, a := range to.Addrs() {
			if got := connects(from, a, port); got != want {
				return fmt.Errorf("%s to %s (%v), port %d: connects %v, want %v", names[0], names[1], a, port, got, want)
			}
		}
		for _, h := range hosts {
			r := h.Weft("policy", "why", names[0], names[1], fmt.Sprint(port))
			if (r.Code == 0) != want || r.Code > 1 || r.Stderr != "" {
				return fmt.Errorf("weft policy why %s %s %d on %s: %d, %s%s", names[0], names[1], port, h.Name(), r.Code, r.Stdout, r.Stderr)
			}
		}
		return nil
	})
}

// TestPoliciesOnPlainHosts applies policies on one of three hosts, and makes real connections between workloads of all of them.
func TestPoliciesOnPlainHosts(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch("lan")
	var hosts []*lab.Host
	for i := range 3 {
		hosts = append(hosts, l.Host(fmt.Sprintf("host%d", i+1), lan))
	}
	secret := token(t, hosts[0])
	var ws []*lab.Workload
	for i, app := range []string{"db", "web", "other"} {
		hosts[i].Join(secret, hosts[:min(i, 1)], "--range", lab.DefaultRange)
		if err := hosts[i].WaitReady(patience); err != nil {
			t.Fatal(err)
		}
		w := hosts[i].Workload(app)
		w.Attach("--label", "app="+app, "--name", app, "--port", "pg=5432/tcp")
		serve(t, w, 5432, 80)
		ws = append(ws, w)
	}
	db, web, other := ws[0], ws[1], ws[2]
	toDB, fromOther := [2]string{"web", "db"}, [2]string{"other", "db"}
	agrees(t, true, hosts, other, db, fromOther, 80)

	file := hosts[0].File("policies.yaml", policyDeny+policyAllow, 0o600)
	if out := done(t, hosts[0].Weft("policy", "apply", "-f", file)); out != "NetworkPolicy default/deny created\nNetworkPolicy default/web-to-db created\n" {
		t.Errorf("apply: %s", out)
	}
	agrees(t, false, hosts, other, db, fromOther, 5432)
	agrees(t, true, hosts, web, db, toDB, 5432)
	agrees(t, false, hosts, web, db, toDB, 80)
	agrees(t, false, hosts, db, web, [2]string{"db", "web"}, 80)
	eventually(t, patience, func() error { // in the log of the host that denied it
		connects(other, db.Addrs()[0], 5432)
		if out := done(t, hosts[0].Weft("policy", "log")); !strings.Contains(out, "default/other@host3") || !strings.Contains(out, "web-to-db") {
			return errors.New("the log has: " + out)
		}
		return nil
	})

	done(t, hosts[2].Weft("label", "other", "app=web"))
	agrees(t, true, hosts, other, db, fromOther, 5432)
	done(t, hosts[2].Weft("label", "other", "app-"))
	agrees(t, false, hosts, other, db, fromOther, 5432)

	// A daemon that is killed leaves all as it is, and knows it all when it is back: between workloads of its host packets flow meanwhile.
	beside := hosts[0].Workload("beside")
	beside.Attach("--label", "app=web", "--name", "beside")
	serve(t, beside, 80)
	agrees(t, true, hosts, beside, db, [2]string{"beside", "db"}, 5432)
	hosts[0].Kill()
	for range 5 {
		if !connects(beside, db.Addrs()[0], 5432) || connects(beside, db.Addrs()[0], 80) || connects(db, beside.Addrs()[0], 80) {
			t.Error("without the daemon it is otherwise")
		}
	}
	done(t, hosts[1].Weft("policy", "delete", "networkpolicy/web-to-db"))
	hosts[0].Relaunch()
	if err := hosts[0].WaitReady(patience); err != nil {
		t.Fatal(err)
	}
	agrees(t, false, hosts, web, db, toDB, 5432)
	again := hosts[0].Workload("again")
	again.Attach("--name", "again")
	serve(t, again, 80)
	agrees(t, false, hosts, web, again, [2]string{"web", "again"}, 80)

	yaml := done(t, hosts[2].Weft("policy", "list", "-o", "yaml"))
	if !strings.Contains(yaml, "name: deny") || strings.Contains(yaml, "web-to-db") {
		t.Errorf("what is applied:\n%s", yaml)
	}
	done(t, hosts[2].Weft("policy", "delete", "netpol/deny"))
	agrees(t, true, hosts, other, db, fromOther, 80)
	refused(t, hosts[1].Weft("policy", "apply", "-f", hosts[1].File("bad.yaml", policyDeny+"x: 1\n", 0o600)), "nothing was done", "line 5", "x: such a field")
}
