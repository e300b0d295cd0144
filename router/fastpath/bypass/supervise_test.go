// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// told is the epoch that the programs are told.
func (b *Bypass) told(t *testing.T) uint32 {
	t.Helper()
	v := make([]byte, 4)
	must(t, element(unix.BPF_MAP_LOOKUP_ELEM, b.tables.epoch, make([]byte, 4), v))
	return binary.NativeEndian.Uint32(v)
}

// pairs makes pairs of veths in the namespace, of which one end each is of the group.
func pairs(t *testing.T, h *netlink.Handle, name string, n int) {
	t.Helper()
	for i := range n {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Group = fmt.Sprintf("%s%d", name, i), testGroup
		v := netlink.NewVeth(attrs)
		v.PeerName = fmt.Sprintf("%s%dp", name, i)
		must(t, h.LinkAdd(v))
	}
}

// A host on which so much happens that not all of it is heard of is looked at anew, and watched on.
func TestNewsAreLost(t *testing.T) {
	ns := newNamespace(t)
	h := handle(t, ns)
	pairs(t, h, "v", 3)
	b, err := newAt(Config{Universe: universe, Groups: []uint32{testGroup}, Log: zap.NewNop()}, ns)
	must(t, err)
	b.newsRoom = 4096
	run(t, b)
	eventually(t, "it is ready", func() bool { return b.State() == "" && len(b.held()) == 3 })
	l, err := h.LinkByName("v0")
	must(t, err)
	before := b.heard.Load()
	eventually(t, "news are lost, and devices are watched again", func() bool {
		b.mu.Lock() // so that nobody reads
		for i := range 200 {
			must(t, h.LinkSetMTU(l, 1000+i))
		}
		b.mu.Unlock()
		return b.heard.Load() > before
	})
	pairs(t, h, "w", 2)
	eventually(t, "new devices are served", func() bool { return b.State() == "" && len(b.held()) == 5 })
	epoch := b.told(t)
	must(t, h.LinkSetUp(l))
	must(t, h.LinkSetDown(l))
	eventually(t, "what was decided before a device went down is forgotten", func() bool { return b.told(t) > epoch })
	must(t, h.LinkDel(l))
	eventually(t, "what is gone is let go of", func() bool { return len(b.held()) == 4 })
}

// While nobody watches devices nothing goes around the stack, and it is said why.
func TestUnwatched(t *testing.T) {
	ns := newNamespace(t)
	b, err := newAt(Config{Universe: universe, Groups: []uint32{testGroup}, Log: zap.NewNop()}, ns)
	must(t, err)
	run(t, b)
	eventually(t, "it is ready", func() bool { return b.State() == "" && b.told(t) > 0 })
	b.settle(reasonDevices, "devices cannot be watched: no memory")
	if b.State() != "devices cannot be watched: no memory" || b.told(t) != 0 || b.current() != 0 {
		t.Errorf("%q, epoch %d", b.State(), b.told(t))
	}
	b.settle(reasonDevices, "")
	if b.State() != "" || b.told(t) == 0 {
		t.Errorf("%q, epoch %d", b.State(), b.told(t))
	}
}

// When Run ends nobody looks after it, and nothing goes around the stack any more.
func TestRunEnds(t *testing.T) {
	ps := newPlaces(t)
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	d.warm(t, ps)
	b := ps[0].Bypass
	b.settle(reasonRun, "its daemon ends") // as Run does first
	if b.told(t) != 0 {
		t.Error("it goes on")
	}
	b.settle(reasonRun, "")
	d.warm(t, ps)
}

// Devices that come and go do not turn it off, and whoever ends it for a change waits for none of them.
func TestChurn(t *testing.T) {
	ns := newNamespace(t)
	h := handle(t, ns)
	pairs(t, h, "v", 30)
	core, logs := observer.New(zap.InfoLevel)
	b, err := newAt(Config{Universe: universe, Groups: []uint32{testGroup}, Log: zap.New(core)}, ns)
	must(t, err)
	end := run(t, b)
	eventually(t, "it is ready", func() bool { return b.State() == "" })
	logs.TakeAll()
	made := make(chan struct{})
	go func() {
		defer close(made)
		for i := range 40 {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.Group = fmt.Sprintf("x%d", i), testGroup
			v := netlink.NewVeth(attrs)
			v.PeerName = fmt.Sprintf("y%d", i)
			if err := h.LinkAdd(v); err != nil {
				t.Error(err)
			}
		}
	}()
	var longest time.Duration
	for more := true; more; {
		select {
		case <-made:
			more = false
		default:
		}
		began := time.Now()
		b.Forget()
		longest = max(longest, time.Since(began))
		time.Sleep(time.Millisecond)
	}
	eventually(t, "all devices are served", func() bool { return len(b.held()) == 70 })
	for _, e := range logs.TakeAll() {
		t.Errorf("it is logged: %s %v", e.Message, e.ContextMap())
	}
	t.Logf("the longest Forget took %v", longest)
	began := time.Now()
	b.Remove()
	took := time.Since(began)
	t.Logf("Remove took %v", took)
	began = time.Now()
	end()
	t.Logf("the end took %v", time.Since(began))
	if b.held() != nil && len(b.held()) > 0 {
		t.Error("devices are left")
	}
}

// A list of devices that changed while it was read takes nothing back, and what it says counts; one that cannot be read turns it off.
func TestInterruptedLists(t *testing.T) {
	ns := newNamespace(t)
	h := handle(t, ns)
	pairs(t, h, "v", 4)
	core, logs := observer.New(zap.InfoLevel)
	b, err := newAt(Config{Universe: universe, Groups: []uint32{testGroup}, Log: zap.New(core)}, ns)
	must(t, err)
	var lists atomic.Int32
	var fails atomic.Pointer[error]
	b.list = func() ([]netlink.Link, error) {
		lists.Add(1)
		all, err := netlink.LinkList()
		if f := fails.Load(); f != nil {
			return all[:len(all)/2], *f
		}
		return all, err
	}
	run(t, b)
	eventually(t, "it is ready", func() bool { return b.State() == "" && len(b.held()) == 4 })
	logs.TakeAll()
	var interrupted error = netlink.ErrDumpInterrupted
	fails.Store(&interrupted)
	before := lists.Load()
	b.raise()
	eventually(t, "devices are listed again and again", func() bool { return lists.Load() > before+2*interruptions })
	if b.State() != "" || len(b.held()) != 4 || logs.Len() > 0 {
		t.Errorf("%q, %d devices, %v", b.State(), len(b.held()), logs.All())
	}
	broken := errors.New("no memory")
	fails.Store(&broken)
	b.raise()
	eventually(t, "it is said why", func() bool { return b.State() == "listing devices: no memory" && b.told(t) == 0 })
	fails.Store(nil)
	eventually(t, "it goes on", func() bool { return b.State() == "" && b.told(t) > 0 })
}

// Nobody who changes rules waits for a look at devices, which takes the kernel tens of milliseconds for each.
func TestForgetWaitsForNobody(t *testing.T) {
	ns := newNamespace(t)
	b, err := newAt(Config{Universe: universe, Groups: []uint32{testGroup}, Log: zap.NewNop()}, ns)
	must(t, err)
	run(t, b)
	eventually(t, "it is ready", func() bool { return b.State() == "" })
	b.mu.Lock()
	defer b.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Forget()
		b.Pause()()
		_ = b.State()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("it waits for a look at devices")
	}
}

// A device that cannot be served is left alone; the others are served.
func TestDeviceThatFails(t *testing.T) {
	ps := newPlaces(t)
	p := ps[0]
	pairs(t, p.handle, "bad", 1)
	l, err := p.handle.LinkByName("bad0")
	must(t, err)
	eventually(t, "it is served", func() bool { return len(p.held()) == 3 })
	p.end()
	code := newAssembler()
	code.math(mov, r0, resultNext)
	code.exit()
	program, err := code.program()
	must(t, err)
	for full := false; !full; { // as many as fit
		in(t, p.ns, func() error {
			fd, err := newProgram("theirs", program)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = unix.Close(fd) })
			link, err := attach(l.Attrs().Index, fd, hookOut)
			if full = err != nil; !full {
				t.Cleanup(func() { _ = unix.Close(link) })
			}
			return nil
		})
	}
	core, logs := observer.New(zap.WarnLevel)
	b, err := newAt(Config{Universe: universe, Groups: []uint32{testGroup}, Log: zap.New(core)}, p.ns)
	must(t, err)
	p.Bypass, p.end = b, run(t, b)
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	d.warm(t, ps)
	time.Sleep(2 * lookEvery)
	if b.State() != "" || logs.Len() != 1 || logs.All()[0].ContextMap()["device"] != "bad0" {
		t.Errorf("%q, %v", b.State(), logs.All())
	}
	d.warm(t, ps)
}

// A device that carries next to nothing is not served, which costs nobody anything.
func TestIdleDevices(t *testing.T) {
	ps := newPlaces(t)
	p := ps[0]
	p.end()
	b, err := newAt(Config{Universe: universe, Groups: []uint32{testGroup}, Busy: 25, Log: zap.NewNop()}, p.ns)
	must(t, err)
	p.Bypass, p.end = b, run(t, b)
	eventually(t, "it is ready", func() bool { return b.State() == "" })
	time.Sleep(lookEvery)
	if n := len(b.held()); n != 0 {
		t.Errorf("%d idle devices are served", n)
	}
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	d.warm(t, ps)
}

// The number that traffic control may attach to a packet is not its sender's to choose: whoever guesses that of the last note is obeyed by nobody.
func TestForgedNumbers(t *testing.T) {
	ps := newPlaces(t)
	ps[1].end() // only the first is tried
	p := ps[0]
	defer pinned(t)()
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	around := func() bool {
		n := p.count(t)
		return d.pass(t, 100) && p.count(t) > n
	}
	eventually(t, "datagrams go around the stack", around)
	n, err := possible()
	must(t, err)
	notes := make([]byte, n*noteSize)
	eventually(t, "the last note is that of the flow", func() bool {
		time.Sleep(fresh * time.Nanosecond)
		if !d.pass(t, 100) {
			return false
		}
		must(t, element(unix.BPF_MAP_LOOKUP_ELEM, p.tables.notes, make([]byte, 4), notes))
		return around()
	})
	number(t, p.work, binary.NativeEndian.Uint32(notes[noteNumber:]))
	p.forbid(t)
	since := time.Now()
	for d.passWithin(t, 100, 50*time.Millisecond) {
		if took := time.Since(since); took > 2500*time.Millisecond {
			t.Fatalf("datagrams arrive %v after they were forbidden", took)
		}
	}
}

// pinned has the test run on the first processor until the function that it returns is called.
func pinned(t *testing.T) (end func()) {
	t.Helper()
	runtime.LockOSThread()
	var before, one unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &before))
	one.Set(0)
	must(t, unix.SchedSetaffinity(0, &one))
	return func() {
		_ = unix.SchedSetaffinity(0, &before)
		runtime.UnlockOSThread()
	}
}

// number has all that leaves a namespace by eth0 bear a number, until the test ends.
func number(t *testing.T, n namespace, value uint32) {
	t.Helper()
	code := newAssembler()
	code.math(mov, r2, int64(value))
	code.store(word32, r1, ctxIndex, r2)
	code.math(mov, r0, resultNext)
	code.exit()
	program, err := code.program()
	must(t, err)
	forger, err := newProgram("forger", program)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(forger) })
	in(t, n, func() error {
		l, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		link, err := attach(l.Index, forger, hookOut)
		if err == nil {
			t.Cleanup(func() { _ = unix.Close(link) })
		}
		return err
	})
}

// forbid has a rule of somebody forbid all datagrams.
func (p *place) forbid(t *testing.T) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(p.ns)))
	must(t, err)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "forbidden"})
	chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}}, &expr.Verdict{Kind: expr.VerdictDrop},
	}})
	must(t, c.Flush())
}

// Where a rule copies packets nothing goes around the stack: what leaves first is the copy, and may go elsewhere.
func TestCopies(t *testing.T) {
	ps := newPlaces(t)
	p := ps[0]
	ps[1].end()
	d := newDatagrams(t, ps[0], ps[1], v4(2, 2))
	around := func() bool {
		n := p.count(t)
		return d.pass(t, 100) && p.count(t) > n
	}
	eventually(t, "datagrams go around the stack", around)
	c, err := nftables.New(nftables.WithNetNSFd(int(p.ns)))
	must(t, err)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "monitor"})
	chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Immediate{Register: 1, Data: net.IPv4(10, 32, 7, 99).To4()}, &expr.Immediate{Register: 2, Data: binary.NativeEndian.AppendUint32(nil, uint32(p.vxlan.Attrs().Index))},
		&expr.Dup{RegAddr: 1, RegDev: 2, IsRegDevSet: true},
	}})
	must(t, c.Flush())
	p.raise()
	eventually(t, "it is said why", func() bool { return strings.Contains(p.State(), "copies packets (dup, or TEE)") })
	if around() {
		t.Error("packets go around the stack")
	}
	c.DelTable(table)
	must(t, c.Flush())
	p.raise()
	eventually(t, "datagrams go around the stack again", around)
}
