// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// A torrent is a TCP connection by which one workload sends another as much as goes.
type torrent struct {
	ends  [2]net.Conn
	bytes atomic.Uint64
	last  atomic.Pointer[time.Time] // when something has arrived last
	work  sync.WaitGroup
}

// pour begins one. It ends with the test.
func pour(t *testing.T, from, to *lab.Workload, at netip.Addr, port uint16) *torrent {
	t.Helper()
	f := &torrent{}
	var l net.Listener
	err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, port).String())
		return err
	})
	if err == nil {
		err = from.Do(func() (err error) {
			f.ends[0], err = net.DialTimeout("tcp", l.Addr().String(), patience)
			return err
		})
	}
	if err == nil {
		f.ends[1], err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	f.work.Go(func() {
		b := make([]byte, 1<<16)
		for {
			if _, err := f.ends[0].Write(b); err != nil {
				return
			}
		}
	})
	f.work.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, err := f.ends[1].Read(b)
			if err != nil {
				return
			}
			now := time.Now()
			f.bytes.Add(uint64(n))
			f.last.Store(&now)
		}
	})
	t.Cleanup(func() {
		for _, c := range f.ends {
			_ = c.Close()
		}
		f.work.Wait()
	})
	return f
}

// around waits until the hosts' stacks see next to nothing of the torrent.
func (f *torrent) around(t *testing.T, v6 bool, hosts ...*lab.Host) {
	t.Helper()
	eventually(t, patience, func() error {
		bytes := f.bytes.Load()
		before := make([]int, len(hosts))
		for i, h := range hosts {
			before[i] = forwarded(t, h, v6)
		}
		time.Sleep(time.Second)
		bytes = f.bytes.Load() - bytes
		for i, h := range hosts {
			if n := forwarded(t, h, v6) - before[i]; bytes < 10<<20 || n > 100 {
				return fmt.Errorf("%s: of %d MB a second the stack forwards %d packets", h.Name(), bytes>>20, n)
			}
		}
		return nil
	})
}

// TestPoliciesCutTorrents forbids connections that go around the stacks of both hosts with all that fits: none goes on, by no kernel path, neither around the stacks nor through them.
func TestPoliciesCutTorrents(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"vxlan", "direct"} {
		t.Run(path, func(t *testing.T) {
			_, hosts := hostsOf(t, 2, "--trusted-subnets", underlays, "--paths", path+",udp")
			onPath(t, path, hosts...)
			bypasses(t, hosts...)
			attached := func(h *lab.Host, app string) *lab.Workload {
				w := h.Workload(app)
				w.Attach("--label", "app="+app, "--name", app)
				return w
			}
			db, web, far := attached(hosts[0], "db"), attached(hosts[1], "web"), attached(hosts[1], "far")
			allReach(t, patience, db, web, far)
			for i, addr := range db.Addrs() {
				doomed, kept := pour(t, far, db, addr, uint16(8000+i)), pour(t, web, db, addr, uint16(8010+i))
				doomed.around(t, addr.Is6(), hosts...)
				kept.around(t, addr.Is6(), hosts...)
				enact(t, hosts, onlyWeb(t), "default/only-web")
				inForce := time.Now()
				eventually(t, patience, func() error {
					if quiet := time.Since(*doomed.last.Load()); quiet < 2*time.Second {
						return errors.New("what is forbidden still arrives")
					}
					return nil
				})
				took := doomed.last.Load().Sub(inForce)
				t.Logf("%v: the last byte arrived %v after the policy was in force", addr, took.Round(time.Millisecond))
				if took > repairTime {
					t.Errorf("%v: the last byte arrived %v after the policy was in force", addr, took)
				}
				kept.around(t, addr.Is6(), hosts...)
				for _, f := range []*torrent{doomed, kept} {
					_, _ = f.ends[0].Close(), f.ends[1].Close()
				}
				enact(t, hosts, "")
			}
			for _, h := range hosts {
				for _, key := range []string{"tcp_be_liberal", "tcp_ignore_invalid_rst"} {
					if v, err := h.ReadSysctl("net/netfilter/nf_conntrack_" + key); err != nil || v != "0" {
						t.Errorf("%s: nf_conntrack_%s is %q, %v", h.Name(), key, v, err)
					}
				}
			}
		})
	}
}
