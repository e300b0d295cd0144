// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// attacher returns what connects w.
func (h *testHost) attacher(t *testing.T, w Workload) *attacher {
	t.Helper()
	w, err := h.complete(w)
	must(t, err)
	return &attacher{Workload: w, state: h.last, netns: w.ns(t)}
}

// Both ways lead to the same.
func TestQuickEqualsThorough(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*Workload)
		desired func(*Desired)
		strict  bool
	}{
		"both families": {},
		"small MTU":     {change: func(w *Workload) { w.MTU = 1200 }},
		"own MAC":       {change: func(w *Workload) { w.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 5} }},
		"own name":      {change: func(w *Workload) { w.IfName = "net1" }},
		"v4":            {change: func(w *Workload) { w.Addrs = w.Addrs[:1] }},
		"v6":            {change: func(w *Workload) { w.Addrs = w.Addrs[1:] }},
		"strict":        {strict: true},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			h := newHost(t)
			h.apply(t, desired())
			h.last.strict = c.strict
			var host, inside [2][]string
			var got [2]*attacher
			for i := range 2 {
				w := workload(1, newNamespace(t))
				if c.change != nil {
					c.change(&w)
				}
				a := h.attacher(t, w)
				if i == 0 {
					if done, made := a.quick(h.ns); !done || !made {
						t.Fatalf("done: %v, made: %v", done, made)
					}
				} else {
					must(t, a.thorough(h.ns, false))
				}
				got[i], host[i], inside[i] = a, snapshot(t, h.ns), snapshot(t, w.ns(t))
				for _, addr := range a.used {
					reaches(t, h.ns, w.ns(t), addr)
				}
				must(t, h.Detach(w))
			}
			differ(t, "the host", host[0], host[1])
			differ(t, "the workload", inside[0], inside[1])
			if q, th := got[0], got[1]; !slices.Equal(q.used, th.used) || !slices.Equal(q.ways, th.ways) || len(q.warnings)+len(th.warnings) > 0 || len(q.used) == 0 {
				t.Errorf("%v, %v, %q; thoroughly: %v, %v, %q", q.used, q.ways, q.warnings, th.used, th.ways, th.warnings)
			}
		})
	}
}

// What takes thought is left to the thorough way, untouched.
func TestQuickLeavesAlone(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	first := h.attach(t, 1)
	routed := newNamespace(t)
	l := up(t, connect(t, routed), "lo")
	must(t, connect(t, routed).RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(everywhere(false)), Scope: netlink.SCOPE_LINK}))
	before := snapshot(t, h.ns)
	for name, w := range map[string]Workload{
		"attached already": first,
		"interface there":  workload(2, first.ns(t)),
		"elsewhere":        workload(1, newNamespace(t)),
		"default route":    workload(3, routed),
	} {
		inside := snapshot(t, w.ns(t))
		if done, made := h.attacher(t, w).quick(h.ns); done || made {
			t.Errorf("%s: done: %v, made: %v", name, done, made)
		}
		differ(t, name+": the host", before, snapshot(t, h.ns))
		differ(t, name+": the workload", inside, snapshot(t, w.ns(t)))
	}
}

// A failure half-way is found out and told by the thorough way, and nothing is left.
func TestQuickFails(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	foreign := addAddr(t, h.conn, "lo")
	r := h.last.route(netip.MustParsePrefix("10.32.1.1/32"), foreign.Attrs().Index)
	r.Protocol, r.Src = unix.RTPROT_STATIC, nil
	must(t, h.conn.RouteAdd(&r))
	ns := newNamespace(t)
	up(t, connect(t, ns), "lo") // the only thing that an attempt leaves
	before, inside := snapshot(t, h.ns), snapshot(t, ns)
	_, err := h.Attach(workload(1, ns))
	if want := "there is a route to 10.32.1.1/32 already that is not Weft's; delete it"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	h.Close()
	differ(t, "the host", before, snapshot(t, h.ns))
	differ(t, "the workload", inside, snapshot(t, ns))
}

// There is no descriptor left, as when too many files are open, for what comes after the interface was made: it does not stay.
func TestThoroughWithoutDescriptors(t *testing.T) {
	const none namespace = 1 << 30 // no descriptor, as one that cannot be had
	h := newHost(t)
	h.apply(t, desired())
	before := snapshot(t, h.ns)
	for _, broken := range []string{"host", "workload"} {
		a := h.attacher(t, workload(1, newNamespace(t)))
		if done, made := a.quick(h.ns); !done || !made {
			t.Fatalf("done: %v, made: %v", done, made)
		}
		host := h.ns
		if broken == "host" {
			host = none
		} else {
			a.netns = none
		}
		if err := a.thorough(host, true); err == nil {
			t.Fatal("it does without")
		}
		a.hangUp()
		differ(t, broken, before, snapshot(t, h.ns))
	}

	// The answer to what made it got lost.
	a := h.attacher(t, workload(1, newNamespace(t)))
	l, err := h.ns.line()
	must(t, err)
	a.exit = l
	if a.begun(h.ns) {
		t.Error("nothing was begun")
	}
	_, err = a.exit.do(a.newVeth())
	must(t, err)
	if !a.begun(h.ns) {
		t.Error("it is not known what was begun")
	}
	must(t, a.discard())
	a.hangUp()
	differ(t, "what was begun", before, snapshot(t, h.ns))
	w := h.attach(t, 1)
	if a := h.attacher(t, w); a.begun(h.ns) {
		t.Error("what is complete is taken for begun")
	} else {
		a.hangUp()
	}
}

func TestLine(t *testing.T) {
	l, err := newNamespace(t).line()
	must(t, err)
	defer l.close()
	dump := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	dump.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	for range 3 {
		answers, err := l.do(setLink(99, unix.IFF_UP), setLink(loopback, unix.IFF_UP), getLink("none", 0), getLink("lo", 0), dump)
		must(t, err)
		var got []string
		for _, a := range answers {
			got = append(got, fmt.Sprint(a.err, len(a.messages)))
		}
		if want := []string{"no such device 0", "<nil> 0", "no such device 0", "<nil> 1", "<nil> 1"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if err := failed(answers); !errors.Is(err, unix.ENODEV) {
			t.Errorf("failed: %v", err)
		}
	}
	lo, err := l.link("lo", 0)
	must(t, err)
	if lo.Attrs().Flags&net.FlagUp == 0 {
		t.Error("the request after one that failed was not carried out")
	}
	if none, err := l.link("", 99); none != nil || err != nil {
		t.Errorf("link 99: %v, %v", none, err)
	}
}

// Who has the rights to in the workload's namespace sends answers of its own to the socket: they are not taken for the kernel's.
func TestLineHearsTheKernelOnly(t *testing.T) {
	ns := newNamespace(t)
	l, err := ns.line()
	must(t, err)
	defer l.close()
	other, err := ns.line()
	must(t, err)
	defer other.close()
	_, err = l.do(getLink("lo", 0)) // by now it has an address
	must(t, err)
	own, err := unix.Getsockname(l.fd)
	must(t, err)
	port := own.(*unix.SockaddrNetlink).Pid
	for seq := l.seq + 1; seq < l.seq+4; seq++ {
		b := binary.NativeEndian.AppendUint32(nil, 20)
		b = binary.NativeEndian.AppendUint16(b, unix.NLMSG_ERROR)
		b = binary.NativeEndian.AppendUint16(b, 0)
		b = binary.NativeEndian.AppendUint32(b, seq)
		b = append(b, 0, 0, 0, 0)
		b = binary.NativeEndian.AppendUint32(b, 0) // done
		must(t, unix.Sendto(other.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port}))
	}
	answers, err := l.do(setLink(99, unix.IFF_UP), getLink("none", 0), getLink("lo", 0))
	must(t, err)
	if !errors.Is(answers[0].err, unix.ENODEV) || !errors.Is(answers[1].err, unix.ENODEV) || len(answers[2].messages) != 1 {
		t.Errorf("got %+v", answers)
	}
}

// When Detach returns nobody sees the interface any more, however many go at once.
func TestUnplugMany(t *testing.T) {
	h := newHost(t)
	h.apply(t, desired())
	before, files := snapshot(t, h.ns), openFiles(t)
	var wg sync.WaitGroup
	const n = 2 * maxFreeing
	errs := make(chan error, n)
	for i := range n {
		w := Workload{ID: fmt.Sprintf("many-%d", i), Netns: newNamespace(t).path(), Addrs: []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("10.32.2.%d", i)), netip.MustParseAddr(fmt.Sprintf("fd77::2:%x", i)),
		}}
		_, err := h.Attach(w)
		must(t, err)
		wg.Go(func() {
			err := h.Detach(w)
			if err == nil && h.Present(w.ID) {
				err = fmt.Errorf("%s is still there", w.ID)
			}
			errs <- err
		})
	}
	wg.Wait()
	h.Close()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if got := openFiles(t); got > files+n {
		t.Errorf("%d open files, %d before", got-n, files)
	}
	differ(t, "the host", before, snapshot(t, h.ns))
}

func TestSortOut(t *testing.T) {
	message := func(kind, flags uint16, seq uint32, body ...byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = binary.NativeEndian.AppendUint16(b, flags)
		b = binary.NativeEndian.AppendUint32(b, seq)
		return append(append(b, 0, 0, 0, 0), body...)
	}
	acknowledged := func(seq uint32, e unix.Errno) []byte {
		return message(unix.NLMSG_ERROR, 0, seq, binary.NativeEndian.AppendUint32(nil, -uint32(e))...)
	}
	fresh := func() []answer { return []answer{{asked: unix.NLM_F_ACK}, {}, {asked: unix.NLM_F_DUMP}} }
	const newLink = unix.RTM_NEWLINK
	for name, c := range map[string]struct {
		b        []byte
		complete int
		want     string // errors and numbers of messages
		ok       bool
	}{
		"nothing":          {nil, 0, "<nil> 0, <nil> 0, <nil> 0", true},
		"all":              {slices.Concat(acknowledged(7, 0), message(newLink, 0, 8, 1, 2, 3, 4), message(newLink, 0, 9), message(newLink, 0, 9), message(unix.NLMSG_DONE, 0, 9)), 3, "<nil> 0, <nil> 1, <nil> 2", true},
		"errors":           {slices.Concat(acknowledged(8, unix.ENODEV), acknowledged(7, unix.EEXIST)), 2, "file exists 0, no such device 0, <nil> 0", true},
		"disturbed":        {slices.Concat(message(newLink, unix.NLM_F_DUMP_INTR, 9), message(unix.NLMSG_DONE, 0, 9, 0, 0, 0, 0)), 1, "<nil> 0, <nil> 0, results may be incomplete or inconsistent 1", true},
		"of others":        {slices.Concat(acknowledged(6, unix.EEXIST), message(newLink, 0, 10)), 0, "<nil> 0, <nil> 0, <nil> 0", true},
		"twice":            {slices.Concat(acknowledged(7, 0), acknowledged(7, unix.EEXIST)), 1, "<nil> 0, <nil> 0, <nil> 0", true},
		"no header":        {make([]byte, 15), 0, "<nil> 0, <nil> 0, <nil> 0", false},
		"no length":        {make([]byte, 16), 0, "<nil> 0, <nil> 0, <nil> 0", false},
		"cut off":          {slices.Concat(acknowledged(7, 0), message(newLink, 0, 8, 1, 2, 3, 4)[:18]), 1, "<nil> 0, <nil> 0, <nil> 0", false},
		"an empty refusal": {message(unix.NLMSG_ERROR, 0, 7), 1, "<nil> 0, <nil> 0, <nil> 0", true},
	} {
		answers := fresh()
		complete, ok := sortOut(c.b, 7, answers)
		var got []string
		for _, a := range answers {
			got = append(got, fmt.Sprint(a.err, len(a.messages)))
		}
		if complete != c.complete || ok != c.ok || strings.Join(got, ", ") != c.want {
			t.Errorf("%s: %d, %v: %q", name, complete, ok, got)
		}
	}
}

func FuzzSortOut(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		answers := []answer{{asked: unix.NLM_F_ACK}, {}, {asked: unix.NLM_F_DUMP}}
		complete, _ := sortOut(b, 7, answers)
		var size int
		for _, a := range answers {
			if a.complete {
				complete--
			}
			for _, m := range a.messages {
				size += len(m)
			}
		}
		if complete != 0 || size > len(b) {
			t.Errorf("%d more are complete than said, %d bytes of %d", complete, size, len(b))
		}
	})
}
