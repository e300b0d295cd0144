// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// record is the place's entry of a TCP connection; false: there is none.
func (p *place) record(t *testing.T, c *net.TCPConn) (r record, ok bool) {
	t.Helper()
	local, remote := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	x := tracking{ns: p.ns}
	defer x.close()
	r, err := x.get(tuple{local, remote, unix.IPPROTO_TCP})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	return r, err == nil
}

// chat has both ends say something small in turn, often enough to be taken around the stack, for some time.
func chat(t *testing.T, from, to net.Conn, length, gap time.Duration) {
	t.Helper()
	b := make([]byte, 200)
	for i, end := 0, time.Now().Add(length); time.Now().Before(end); i++ {
		for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
			must(t, way[1].SetDeadline(time.Now().Add(patience)))
			_, err := way[0].Write(b[:50+i%100])
			must(t, err)
			_, err = way[1].Read(b)
			must(t, err)
		}
		time.Sleep(gap)
	}
}

// settings reads those of connection tracking that concern the whole host.
func (p *place) settings(t *testing.T) (values string) {
	t.Helper()
	in(t, p.ns, func() error {
		for _, name := range []string{"tcp_be_liberal", "tcp_ignore_invalid_rst", "tcp_loose", "tcp_timeout_unacknowledged", "tcp_timeout_established"} {
			b, err := os.ReadFile(filepath.Join("/proc/sys/net/netfilter", "nf_conntrack_"+name))
			if err != nil {
				return err
			}
			values += strings.TrimSpace(string(b)) + " "
		}
		return nil
	})
	return values
}

// A connection whose packets went around the stack and that has gone quiet is remembered for as long as any other one.
func TestQuietConnectionsAreRemembered(t *testing.T) {
	ps := newPlaces(t)
	for _, p := range ps {
		p.tracked(t)
	}
	before := ps[0].settings(t)
	for range 3 {
		from, to, _ := ends(t, ps)
		around, there := ps[0].count(t), ps[1].count(t)
		chat(t, from, to, 2*time.Second, 5*time.Millisecond)
		if n, m := ps[0].count(t)-around, ps[1].count(t)-there; n < 50 || m < 50 {
			t.Fatalf("%d and %d packets went around the stacks", n, m)
		}
		for i, p := range ps {
			eventually(t, "its entry lasts days", func() bool {
				r, ok := p.record(t, from)
				if !ok {
					t.Fatalf("place %d: it is forgotten", i)
				}
				return r.timeout > 400_000
			})
		}
		time.Sleep(sweepEvery)
		for i, p := range ps {
			if r, ok := p.record(t, from); !ok || r.timeout < 400_000 {
				t.Errorf("place %d: it lasts %d s", i, r.timeout)
			}
		}
	}
	if now := ps[0].settings(t); now != before {
		t.Errorf("settings of the whole host were %s, now %s", before, now)
	}
}

// stateful makes a place let nothing pass but what the first workload begins, as network policies do.
func (p *place) stateful(t *testing.T) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(p.ns)))
	must(t, err)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "stateful"})
	drop := nftables.ChainPolicyDrop
	chain := c.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	const established = 2
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{established, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: v4(1, 2).AsSlice()},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}})
	must(t, c.Flush())
}

// Whoever asks for the states of connections lets one through that went around the stack and was quiet for longer than tracking waits for what it has missed.
func TestQuietConnectionsGoOn(t *testing.T) {
	ps := newPlaces(t)
	for _, p := range ps {
		p.stateful(t)
		set(t, p.ns, "netfilter/nf_conntrack_tcp_timeout_unacknowledged", "4")
		set(t, p.ns, "netfilter/nf_conntrack_tcp_timeout_max_retrans", "4")
	}
	from, to, _ := ends(t, ps)
	around := ps[0].count(t)
	chat(t, from, to, 2*time.Second, 5*time.Millisecond)
	if n := ps[0].count(t) - around; n < 50 {
		t.Fatalf("%d packets went around the stack", n)
	}
	time.Sleep(7 * time.Second)
	must(t, from.SetReadDeadline(time.Now().Add(patience)))
	_, err := to.Write([]byte("here I am"))
	must(t, err)
	if _, err := from.Read(make([]byte, 9)); err != nil {
		t.Errorf("what the other end says after a while does not arrive: %v", err)
	}
}

// Only connections that go around the stack are marked: others are tracked as strictly as without. Short ones never do.
func TestOnlyWhatGoesAroundIsMarked(t *testing.T) {
	ps := newPlaces(t)
	ps[0].tracked(t)
	ps[1].tracked(t)
	quiet, answer, _ := ends(t, ps)
	before := ps[0].count(t)
	for range 100 {
		from, to, _ := ends(t, ps)
		chat(t, from, to, 0, 0)
		_, err := from.Write(make([]byte, 10_000))
		must(t, err)
		_, _ = from.Close(), to.Close()
	}
	if n := ps[0].count(t) - before; n != 0 {
		t.Errorf("%d packets of short connections went around the stack", n)
	}
	chat(t, quiet, answer, 2*time.Second, 100*time.Millisecond)
	big, sink, _ := ends(t, ps)
	converse(t, big, sink, 20)
	for i, p := range ps {
		if r, ok := p.record(t, quiet); !ok || (r.flags[0]|r.flags[1])&flagLiberal != 0 {
			t.Errorf("place %d: one that goes through the stack is marked: %+v", i, r)
		}
		eventually(t, "one that goes around it is marked", func() bool {
			converse(t, big, sink, 2)
			r, ok := p.record(t, big)
			return ok && r.liberal() && r.unfit() == ""
		})
	}
	for _, seq := range []uint32{0x12345678, 0x92345678} {
		ps[0].reset(t, quiet, seq)
	}
	time.Sleep(200 * time.Millisecond)
	for i, p := range ps {
		if r, ok := p.record(t, quiet); !ok || r.timeout < 400_000 {
			t.Errorf("place %d: somebody's reset has counted: %+v", i, r)
		}
	}
	// One of those around the stack goes on, whatever somebody has made tracking believe.
	for _, seq := range []uint32{0x12345678, 0x92345678} {
		ps[0].reset(t, big, seq)
		converse(t, big, sink, 20)
	}
}

// reset sends a reset of the connection with any sequence number from the first workload.
func (p *place) reset(t *testing.T, c *net.TCPConn, seq uint32) {
	t.Helper()
	local, remote := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, local.Port())
	binary.BigEndian.PutUint16(b[2:], remote.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	b[12], b[13] = 5<<4, 4
	pseudo := slices.Concat(local.Addr().AsSlice(), remote.Addr().AsSlice(), []byte{0, unix.IPPROTO_TCP, 0, 20}, b)
	binary.BigEndian.PutUint16(b[16:], checksum(pseudo))
	in(t, p.work, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: remote.Addr().As4()})
	})
}

// The next run keeps what one has marked that was killed.
func TestMarksOfAnEarlierRun(t *testing.T) {
	ps := newPlaces(t)
	p := ps[0]
	p.tracked(t)
	ps[1].end()
	p.end()
	marked, _, _ := ends(t, ps)
	plain, _, _ := ends(t, ps)
	x := tracking{ns: p.ns}
	defer x.close()
	set(t, p.ns, "netfilter/nf_conntrack_tcp_timeout_established", "200") // of what comes in between
	for _, c := range []*net.TCPConn{marked, plain} {
		_, err := c.Write([]byte("x"))
		must(t, err)
	}
	r, ok := p.record(t, marked)
	if !ok {
		t.Fatal("there is no entry")
	}
	must(t, x.mark(r.original, 200))
	set(t, p.ns, "netfilter/nf_conntrack_tcp_timeout_established", "432000")
	p.start(t)
	eventually(t, "it lasts days again", func() bool {
		r, ok := p.record(t, marked)
		return ok && r.timeout > 400_000
	})
	if r, ok := p.record(t, plain); !ok || r.timeout > 200 || r.liberal() {
		t.Errorf("the entry of a connection that nobody has marked is changed: %+v", r)
	}
}

// untracked has a place leave the connections from and to a port out of tracking.
func (p *place) untracked(t *testing.T, port uint16) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(p.ns)))
	must(t, err)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "untracked"})
	chain := c.AddChain(&nftables.Chain{Name: "raw", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	for _, offset := range []uint32{0, 2} {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
			&expr.Notrack{},
		}})
	}
	must(t, c.Flush())
}

// A flow of which tracking does not know stays with the stack, where it knows of others: it might know it in another zone.
func TestWhatTrackingDoesNotKnow(t *testing.T) {
	ps := newPlaces(t)
	ps[0].tracked(t)
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	d.warm(t, ps)
	other := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	ps[0].untracked(t, uint16(other.to.LocalAddr().(*net.UDPAddr).Port))
	d.warm(t, ps) // that it is tracked is seen
	before := ps[0].count(t)
	for range 4 * big {
		if !other.passWithin(t, 100, patience) {
			t.Error("a datagram is lost")
		}
	}
	if n := ps[0].count(t) - before; n != 0 {
		t.Errorf("%d packets went around the stack of which tracking does not know", n)
	}
}

// A connection whose packets a helper reads stays with the stack.
func TestHelpersSeeAll(t *testing.T) {
	ps := newPlaces(t)
	p := ps[0]
	c, err := nftables.New(nftables.WithNetNSFd(int(p.ns)))
	must(t, err)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "helpers"})
	c.AddObj(&nftables.NamedObj{Table: table, Name: "ftp", Type: nftables.ObjTypeCtHelper, Obj: &expr.CtHelper{Name: "ftp", L4Proto: unix.IPPROTO_TCP, L3Proto: unix.NFPROTO_IPV4}})
	chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCtHelper), Name: "ftp"}}})
	must(t, c.Flush())
	from, to, _ := ends(t, ps)
	before := p.count(t)
	converse(t, from, to, 100)
	if n := p.count(t) - before; n != 0 {
		t.Errorf("%d packets went around a helper", n)
	}
	r, ok := p.record(t, from)
	if !ok || r.unfit() == "" || r.liberal() {
		t.Errorf("%+v", r)
	}
}

func TestUnfit(t *testing.T) {
	x := tuple{netip.MustParseAddrPort("10.32.1.2:1000"), netip.MustParseAddrPort("10.32.2.2:80"), unix.IPPROTO_TCP}
	good := func() record {
		return record{original: x, reply: x.reverse(), status: statusAssured | 1<<1 | 1<<3 | 1<<7 | 1<<8, state: tcpEstablished}
	}
	if r := good(); r.unfit() != "" {
		t.Errorf("%+v: %s", r, r.unfit())
	}
	for name, change := range map[string]func(r *record){
		"source translated":      func(r *record) { r.status |= 1 << 4 },
		"destination translated": func(r *record) { r.status |= 1 << 5 },
		"numbers translated":     func(r *record) { r.status |= 1 << 6 },
		"dying":                  func(r *record) { r.status |= 1 << 9 },
		"helped":                 func(r *record) { r.status |= 1 << 13 },
		"offloaded":              func(r *record) { r.status |= 1 << 14 },
		"odd":                    func(r *record) { r.odd = true },
		"another way back":       func(r *record) { r.reply.src = netip.MustParseAddrPort("10.32.2.3:80") },
		"not assured":            func(r *record) { r.status &^= statusAssured },
		"ending":                 func(r *record) { r.state = 4 },
	} {
		r := good()
		if change(&r); r.unfit() == "" {
			t.Errorf("%s: fit", name)
		}
	}
}

func TestKept(t *testing.T) {
	ts := timeouts{established: 120 * time.Hour, short: 5 * time.Minute, closing: 10 * time.Second}
	now := time.Now()
	for _, x := range []struct {
		name    string
		before  kept
		left    time.Duration
		restore bool
	}{
		{"something is missed", kept{}, 4 * time.Minute, true},
		{"nothing is missed", kept{}, 119 * time.Hour, false},
		{"reset", kept{}, 9 * time.Second, false},
		{"something is missed later", kept{expires: now.Add(100 * time.Hour)}, 5 * time.Minute, true},
		{"it expires as it should", kept{expires: now.Add(4 * time.Minute)}, 4 * time.Minute, false},
		{"reset later", kept{expires: now.Add(100 * time.Hour)}, 9 * time.Second, false},
	} {
		restore, next := x.before.judge(now, x.left, ts)
		if restore != x.restore || next.due != now.Add(keepEvery) {
			t.Errorf("%s: %v, %+v", x.name, restore, next)
		}
		if again, _ := next.judge(now.Add(time.Second), ts.short, ts); again != (x.name != "it expires as it should") && x.name != "reset" {
			t.Errorf("%s, and something is missed then: %v", x.name, again)
		}
	}
	if restore, _ := (kept{}).judge(now, time.Minute, timeouts{established: 2 * time.Minute, short: 5 * time.Minute}); restore {
		t.Error("what lasts long is shorter than what lasts short")
	}
}
