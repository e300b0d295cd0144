// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tracked makes a place follow connections, as hosts do whose rules ask for their states.
func (p *place) tracked(t *testing.T) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(p.ns)))
	must(t, err)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "others"})
	chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	const invalid = 1
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{ // as kube-proxy does
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{invalid, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	must(t, c.Flush())
}

// entry returns the place's entry of the connections from and to a port; nil if there is none.
func (p *place) entry(t *testing.T, proto uint8, port uint16) (found *netlink.ConntrackFlow) {
	t.Helper()
	in(t, p.ns, func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		for _, f := range flows {
			if f.Forward.Protocol == proto && f.Forward.DstPort == port {
				found = f
			}
		}
		return err
	})
	return found
}

// ends are both ends of a TCP connection from the first place's workload to the second one's.
func ends(t *testing.T, ps [2]*place) (from, to *net.TCPConn, port uint16) {
	t.Helper()
	var l *net.TCPListener
	in(t, ps[1].work, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(v4(2, 2), 0)))
		return err
	})
	defer l.Close()
	at := l.Addr().(*net.TCPAddr)
	in(t, ps[0].work, func() (err error) {
		from, err = net.DialTCP("tcp", nil, at)
		return err
	})
	to, err := l.AcceptTCP()
	must(t, err)
	t.Cleanup(func() { _, _ = from.Close(), to.Close() })
	return from, to, uint16(at.Port)
}

// converse has both ends say something in turn, so much that connection tracking's idea of the windows is of long ago.
func converse(t *testing.T, from, to net.Conn, rounds int) {
	t.Helper()
	b := make([]byte, 1<<15)
	for range rounds {
		for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
			must(t, way[0].SetDeadline(time.Now().Add(patience)))
			must(t, way[1].SetDeadline(time.Now().Add(patience)))
			_, err := way[0].Write(b)
			must(t, err)
			for n := 0; n < len(b); {
				k, err := way[1].Read(b[n:])
				must(t, err)
				n += k
			}
		}
	}
}

// Connection tracking sees how a connection ends whose packets went around it, in order or by a reset, and lets that through where what is invalid is dropped.
func TestTrackingSeesTheEnd(t *testing.T) {
	ps := newPlaces(t)
	for _, p := range ps {
		p.tracked(t)
	}
	for _, reset := range []bool{false, true} {
		from, to, port := ends(t, ps)
		before := ps[0].count(t)
		converse(t, from, to, 200)
		if n := ps[0].count(t) - before; n < 200 {
			t.Fatalf("%d packets went around the stack", n)
		}
		state := func(p *place) uint8 {
			e := p.entry(t, unix.IPPROTO_TCP, port)
			if e == nil {
				return 0
			}
			return e.ProtoInfo.(*netlink.ProtoInfoTCP).State
		}
		const established, timeWait = 3, 7 // enum tcp_conntrack
		if s := state(ps[0]); s != established {
			t.Fatalf("the state is %d", s)
		}
		if reset {
			must(t, from.SetLinger(0))
			must(t, from.Close())
			if _, err := to.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the other end learns nothing of a reset: %v", err)
			}
		} else {
			must(t, from.CloseWrite())
			_, _ = to.Read(make([]byte, 1))
			must(t, to.Close())
			_, _ = from.Read(make([]byte, 1))
		}
		for _, p := range ps {
			eventually(t, "the entry is that of a connection that has ended", func() bool {
				e := p.entry(t, unix.IPPROTO_TCP, port)
				return e == nil || reset && e.TimeOut <= 10 || !reset && state(p) == timeWait
			})
		}
	}
}

// The entry of a connection does not run out below it, however long it goes on around the stack.
func TestTrackingLasts(t *testing.T) {
	ps := newPlaces(t)
	for _, p := range ps {
		p.tracked(t)
		for _, key := range []string{"udp_timeout", "udp_timeout_stream", "tcp_timeout_established"} {
			set(t, p.ns, "netfilter/nf_conntrack_"+key, "3")
		}
	}
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	d.warm(t, ps)
	port := uint16(d.to.LocalAddr().(*net.UDPAddr).Port)
	from, to, stream := ends(t, ps)
	converse(t, from, to, 1)
	type which struct {
		p     *place
		proto uint8
	}
	ids := map[which]string{}
	for end, first := time.Now().Add(7*time.Second), true; time.Now().Before(end); first = false {
		if !d.passWithin(t, 100, patience) {
			t.Fatal("a datagram is lost")
		}
		converse(t, from, to, 1)
		for _, p := range ps {
			for proto, port := range map[uint8]uint16{unix.IPPROTO_UDP: port, unix.IPPROTO_TCP: stream} {
				e := p.entry(t, proto, port)
				if e == nil {
					t.Fatalf("protocol %d: there is no entry", proto)
				}
				id := fmt.Sprint(e.Forward.SrcPort, e.TimeStart)
				if w := (which{p, proto}); first {
					ids[w] = id
				} else if ids[w] != id {
					t.Fatalf("protocol %d: the entry is another one", proto)
				}
			}
		}
	}
}

// A connection whose sequence numbers the stack translates, as a SYN proxy does, stays with it.
func TestSequenceNumbersAreTheStacks(t *testing.T) {
	ps := newPlaces(t)
	from, to, _ := ends(t, ps)
	for _, f := range []struct {
		name   string
		offset uint32
	}{{"sequence number", 4}, {"acknowledgment", 8}} {
		converse(t, from, to, 20)
		c, err := nftables.New(nftables.WithNetNSFd(int(ps[0].ns)))
		must(t, err)
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "translating"})
		chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
		const checksum = 16
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Immediate{Register: 1, Data: []byte{1, 2, 3, 4}},
			&expr.Payload{
				OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: f.offset, Len: 4,
				CsumType: expr.CsumTypeInet, CsumOffset: checksum,
			},
		}})
		must(t, c.Flush())
		ps[0].Forget()
		before := ps[0].count(t)
		for range 50 {
			_, err := from.Write([]byte("word"))
			must(t, err)
			time.Sleep(time.Millisecond)
		}
		if n := ps[0].count(t) - before; n != 0 {
			t.Errorf("%s: %d packets went around what translates it", f.name, n)
		}
		c.DelTable(table)
		must(t, c.Flush())
		must(t, to.SetReadDeadline(time.Now().Add(patience)))
		for n, b := 0, make([]byte, 1000); n < 200; {
			k, err := to.Read(b)
			must(t, err)
			n += k
		}
	}
}

// What is lacking is said in one line, with what to do.
func TestExplain(t *testing.T) {
	for _, x := range []struct {
		err  error
		want string
	}{
		{unix.EPERM, "this host lets no program be loaded: CAP_NET_ADMIN and CAP_SYS_ADMIN are needed (operation not permitted)"},
		{unix.ENOSYS, "this kernel has no BPF with tcx: Linux 6.6 has, with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS (function not implemented)"},
		{unix.EINVAL, "this kernel has no BPF with tcx: Linux 6.6 has, with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS (invalid argument)"},
		{&refusal{unix.EINVAL, ""}, "this kernel has no BPF with tcx: Linux 6.6 has, with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS (invalid argument)"},
		{&refusal{unix.EACCES, "12: R2 is no pointer"}, "this kernel refuses the programs; report that, with its version: permission denied: 12: R2 is no pointer"},
		{unix.ENOMEM, "cannot allocate memory"},
	} {
		if got := explain(x.err).Error(); got != x.want {
			t.Errorf("%v: %s", x.err, got)
		}
	}
	_, err := newProgram("test", make([]byte, 8))
	var refused *refusal
	if !errors.As(err, &refused) || refused.words == "" {
		t.Errorf("a program of nonsense: %v", err)
	}
}
