// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// someBars are of all kinds and families.
func someBars() (all []bar) {
	for _, v6 := range []bool{false, true} {
		for i, p := range []policy.Protocol{policy.UDP, policy.SCTP, unix.IPPROTO_ESP} {
			x, _ := barOf(policy.Connection{Src: podAddr(0, v6), Dst: podAddr(i+1, v6), Protocol: p, Port: uint16(53 + i)}, 4000)
			all = append(all, x)
			if x.breadth == barFlow {
				all = append(all, x.wider())
			}
		}
	}
	return all
}

// A look at the connections of a namespace is by a warden of its own.
func (f *Filter) settled(t testing.TB, w *warden) *barred {
	t.Helper()
	c, err := dial(f.config.NetNS, unix.NETLINK_NETFILTER, 0)
	must(t, err)
	defer c.close()
	must(t, w.settle(c, nil))
	have, err := c.lookBarred()
	must(t, err)
	return have
}

// forbidding is a state in which nothing goes out of any pod, nor in.
func forbidding() *compile.State {
	s := compile.NewState()
	s.Tables[1] = &compile.Table{ID: 1, Default: by(false, "nothing"), Cells: map[compile.Cell]compile.Verdict{}}
	for i := range podCount {
		for _, v6 := range []bool{false, true} {
			for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
				s.Sides[compile.Side{Addr: podAddr(i, v6), Direction: d}] = 1
			}
		}
	}
	return s
}

// What the kernel has of the bars' table is what was to be there, nft(8) lists it, and loads the same from its listing.
func TestBarsInTheKernel(t *testing.T) {
	t.Parallel()
	from, to := newSpace(t), newSpace(t)
	f := newFilter(t, from)
	must(t, f.Replace(forbidding()))
	w := newWarden(f)
	if have := f.settled(t, w); have.present || !w.idle() {
		t.Error("there is a table without bars")
	}
	w.add(someBars()[0], time.Now())
	if have := f.settled(t, w); !have.intact || have.wide || len(have.left) != 1 {
		t.Errorf("of one flow the kernel has %+v", have)
	}
	for _, b := range someBars() {
		w.add(b, time.Now())
	}
	want := len(someBars())
	have := f.settled(t, w)
	if !have.intact || !have.wide || len(have.left) != want {
		t.Fatalf("the kernel has %+v", have)
	}
	for _, b := range someBars() {
		if left, ok := have.left[b]; !ok || left > barredFor || left < barredFor-patience {
			t.Errorf("%+v lasts %v", b, left)
		}
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("there is no nft(8) whose listing could be tried")
	}
	_, err := from.program("", "-j", "list", "table", "inet", CutTable)
	must(t, err)
	listed, err := from.program("", "list", "table", "inet", CutTable)
	must(t, err)
	if _, err := to.program(listed, "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, listed)
	}
	c, err := dial(to.fd, unix.NETLINK_NETFILTER, 0)
	must(t, err)
	defer c.close()
	loaded, err := c.lookBarred()
	must(t, err)
	if !loaded.intact {
		table, err := c.look(CutTable, skeleton)
		must(t, err)
		for i, line := range describeBarred(have.wide) {
			if i < len(table.skeleton) && table.skeleton[i] != line {
				t.Errorf("%q\nis loaded as\n%q", line, table.skeleton[i])
			}
		}
		t.Errorf("another table is loaded from\n%s", listed)
	}
	if len(loaded.left) != want {
		t.Errorf("%d bars are loaded as %+v", want, loaded.left)
	}
}

// What the node hands on for a client, as IPVS does, is barred like what it forwards, in both directions, and keeps its bar.
func TestBarsMeetWhatIsHandedOn(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		w := newWorld(t)
		client, pod := clientAddr(v6), podAddr(0, v6)
		x, _ := barOf(policy.Connection{Src: client, Dst: pod, Protocol: policy.UDP, Port: 53}, 4000)
		c, err := dial(w.node.fd, unix.NETLINK_NETFILTER, 0)
		must(t, err)
		t.Cleanup(c.close)
		var b buffer
		b.composeBarredTable(CutTable, false)
		b.composeBars([]bar{x}, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE)
		must(t, c.commit(b))
		send := func(from netip.Addr, sport uint16, to netip.Addr, dport uint16) error {
			fd, err := w.node.transparent(from, sport)
			must(t, err)
			defer func() { _ = unix.Close(fd) }()
			return unix.Sendto(fd, []byte("!"), 0, sockaddr(to, dport))
		}
		time.Sleep(1500 * time.Millisecond) // what is left of the bar's time can be told from all of it
		if err := send(pod, 53, client, 4000); !errors.Is(err, unix.EPERM) {
			t.Errorf("v6 %v: against the bar's direction: %v, want %v", v6, err, unix.EPERM)
		}
		have, err := c.lookBarred()
		must(t, err)
		before := have.left[x]
		if err := send(client, 4000, pod, 53); !errors.Is(err, unix.EPERM) {
			t.Errorf("v6 %v: in the bar's direction: %v, want %v", v6, err, unix.EPERM)
		}
		have, err = c.lookBarred()
		must(t, err)
		if after := have.left[x]; after <= before {
			t.Errorf("v6 %v: the bar lasts %v more, and before what was sent %v", v6, after, before)
		}
		if err := send(client, 4001, pod, 53); err != nil {
			t.Errorf("v6 %v: another flow: %v", v6, err)
		}
	}
}

// A bar's element says all of it.
func TestBarsAsElements(t *testing.T) {
	t.Parallel()
	for _, b := range someBars() {
		for _, f := range families() {
			for _, x := range breadths() {
				var got bar
				ok := got.decode(b.key(), f, x.breadth)
				if f.set(x.set) == b.set() && (!ok || got != b) {
					t.Errorf("%+v is read as %+v", b, got)
				}
			}
		}
	}
	for _, p := range []policy.Protocol{policy.TCP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		if _, ok := barOf(policy.Connection{Src: podAddr(0, false), Dst: podAddr(1, false), Protocol: p}, 1); ok {
			t.Errorf("protocol %d is barred", p)
		}
	}
}

// Bars outlive the program and the policies' table; what others take away is put back, and what was allowed again is lifted.
func TestBarsStay(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	f := newFilter(t, s)
	must(t, f.Replace(forbidding()))
	w := newWarden(f)
	for _, b := range someBars() {
		w.add(b, time.Now())
	}
	all := len(someBars())
	f.settled(t, w)
	w = newWarden(f)
	if w.idle() {
		t.Error("a new warden does not look")
	}
	f.settled(t, w)
	if len(w.until) != all {
		t.Errorf("a new warden knows %d bars of %d", len(w.until), all)
	}
	for _, do := range []string{
		"flush ruleset", "flush chain inet weft-policy-cut forward", "flush set inet weft-policy-cut flows4", "insert rule inet weft-policy-cut cut4 accept",
	} {
		s.nft(t, do)
		if have := f.settled(t, w); !have.intact || len(have.left) != all {
			t.Errorf("after %s: %d bars, intact %v", do, len(have.left), have.intact)
		}
	}
	// SCTP to the third pod is allowed, by IPv4, then everything.
	open := forbidding()
	open.Identities[podAddr(0, false)], open.Identities[podAddr(2, false)] = 5, 6
	open.Tables[1].Cells[compile.Cell{Identity: 6, Protocol: policy.SCTP, First: 54, Last: 54}] = by(true, "yes")
	open.Tables[1].Cells[compile.Cell{Identity: 5, Protocol: policy.SCTP, First: 54, Last: 54}] = by(true, "yes")
	must(t, f.Replace(open))
	if have := f.settled(t, w); !have.intact || len(have.left) != all-2 || len(w.until) != all-2 {
		t.Errorf("%d bars are left of %d, two of which are allowed", len(have.left), all)
	}
	must(t, f.Replace(isolated(0)))
	if have := f.settled(t, w); have.present || !w.idle() {
		t.Errorf("all is allowed, and there are %d bars", len(have.left))
	}
	must(t, f.Replace(forbidding()))
	w.add(someBars()[0], time.Now())
	f.settled(t, w)
	must(t, f.Remove())
	c, err := dial(s.fd, unix.NETLINK_NETFILTER, 0)
	must(t, err)
	defer c.close()
	if have, err := c.lookBarred(); err != nil || have.present {
		t.Errorf("the table of bars is left: %v", err)
	}
}

// Too many flows to the same port are barred by one bar; too many of these are counted, and none lasts longer than it should.
func TestBarsAreBounded(t *testing.T) {
	t.Parallel()
	f := newFilter(t, newSpace(t))
	must(t, f.Replace(forbidding()))
	w := newWarden(f)
	flow := func(port, sport int) bar {
		x, _ := barOf(policy.Connection{Src: podAddr(0, false), Dst: podAddr(1, false), Protocol: policy.UDP, Port: uint16(port)}, uint16(sport))
		return x
	}
	most, services := breadths()[barFlow].most, breadths()[barService].most
	for i := range most + 3 {
		w.add(flow(53, i), time.Now())
	}
	if len(w.until) != most+1 || w.lost != 0 {
		t.Fatalf("%d bars, %d lost", len(w.until), w.lost)
	}
	if _, ok := w.until[flow(53, 0).wider()]; !ok {
		t.Error("what is beyond the bound is not barred")
	}
	for i := range services + 2 {
		w.add(flow(100+i, 1), time.Now())
	}
	if len(w.until) != most+services || w.lost != 3 {
		t.Errorf("%d bars, %d lost", len(w.until), w.lost)
	}
	began := time.Now()
	have := f.settled(t, w)
	if len(have.left) != most+services {
		t.Errorf("the kernel has %d bars", len(have.left))
	}
	t.Logf("%d bars took %v", len(have.left), time.Since(began))
	must(t, f.Replace(isolated(3)))
	if have := f.settled(t, w); have.present || len(w.counted) > 0 && slices.Max([]int{w.counted[place{barFlow, true}], w.counted[place{barService, true}]}) != 0 {
		t.Errorf("after all are lifted: %+v", w.counted)
	}
	w.report()
	if w.lost != 0 {
		t.Error("what was lost is told twice")
	}
}

// A datagram of another end, or of the same one, is what a talk sends and counts.
type talk struct{ near, far int }

func (s *space) talk(t testing.TB, a netip.Addr, b *space, to netip.Addr, nearPort, farPort uint16) talk {
	t.Helper()
	near, err := s.socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, a, nearPort)
	must(t, err)
	far, err := b.socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, to, farPort)
	must(t, err)
	must(t, unix.Connect(near, sockaddr(to, farPort)))
	must(t, unix.Connect(far, sockaddr(a, nearPort)))
	t.Cleanup(func() { _, _ = unix.Close(near), unix.Close(far) })
	return talk{near, far}
}

// heard says whether datagrams from one socket arrive at the other within a time.
func heard(from, to int, limit time.Duration) bool {
	b := make([]byte, 64)
	for { // what has arrived before does not count
		if _, err := unix.Read(to, b); err != nil {
			break
		}
	}
	word := fmt.Sprint(rand.Uint64())
	for end := time.Now().Add(limit); ; {
		_, _ = unix.Write(from, []byte(word))
		if ready(to, unix.POLLIN, 20*time.Millisecond) == nil {
			if n, err := unix.Read(to, b); err == nil && string(b[:n]) == word {
				return true
			}
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// Of a flow of datagrams that a new state forbids in the direction in which it was begun nothing goes through any more, in either direction, though the
// other end may begin one of its own: neither by what it sends on, nor after a restart. Another flow is judged anew, and what is allowed again goes on.
func TestCutsDatagrams(t *testing.T) {
	t.Parallel()
	for _, direction := range []policy.Direction{policy.Egress, policy.Ingress} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprint(direction, v6), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				f := newFilter(t, w.node)
				must(t, f.Replace(isolated(3)))
				run(t, f)
				from, to, side := podAddr(0, v6), clientAddr(v6), podAddr(0, v6)
				if direction == policy.Ingress {
					from, to = to, from
				}
				x := w.of(from).talk(t, from, w.of(to), to, 4000, 53)
				if !heard(x.near, x.far, patience) || !heard(x.far, x.near, patience) {
					t.Fatal("the flow does not go through at first")
				}
				closed := isolated(3)
				closed.Tables[2] = &compile.Table{ID: 2, Default: by(false, "none"), Cells: map[compile.Cell]compile.Verdict{}}
				closed.Sides[compile.Side{Addr: side, Direction: direction}] = 2
				must(t, f.Replace(closed))
				eventually(t, "the flow is cut", func() bool { return !heard(x.near, x.far, never) })
				for range 3 {
					if heard(x.far, x.near, never) || heard(x.near, x.far, never) {
						t.Error("the flow goes on")
					}
				}
				// What lasts is renewed by the end that must not send, and not by the other one.
				left := func() time.Duration {
					f.mu.Lock()
					defer f.mu.Unlock()
					have, err := f.conn.lookBarred()
					must(t, err)
					return have.left[bar{src: from, dst: to, protocol: policy.UDP, sport: 4000, dport: 53}]
				}
				time.Sleep(time.Second)
				heard(x.far, x.near, never)
				if l := left(); l == 0 || l > barredFor-time.Second {
					t.Errorf("it lasts %v after the other end has sent", l)
				}
				before := time.Now()
				heard(x.near, x.far, never)
				eventually(t, "what lasts is renewed by the end that began it", func() bool { return left() >= barredFor-never-time.Since(before) })
				other := w.of(to).talk(t, to, w.of(from), from, 53, 4001)
				if !heard(other.near, other.far, patience) || !heard(other.far, other.near, patience) {
					t.Error("a flow that the other end begins, and may, does not go through")
				}
				must(t, f.Replace(isolated(3)))
				if !heard(x.near, x.far, patience) || !heard(x.far, x.near, patience) {
					t.Error("the flow does not go on when it is allowed again")
				}
				eventually(t, "nothing is left", func() bool {
					f.mu.Lock()
					defer f.mu.Unlock()
					have, err := f.conn.look(CutTable, skeleton)
					return err == nil && have == nil
				})
			})
		}
	}
}

// What is barred of a flow to a Service is what is between it and the workload behind it, as the rules meet it.
func TestBarsBehindDNAT(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		w := newWorld(t)
		f := newFilter(t, w.node)
		must(t, f.Replace(isolated(3)))
		run(t, f)
		service := pick(v6, "198.51.100.1", "2001:db8:1::1")
		w.node.nft(t, "add table inet nat")
		w.node.nft(t, "add chain inet nat pre { type nat hook prerouting priority dstnat; }")
		w.node.nft(t, "add chain inet nat post { type nat hook postrouting priority srcnat; }")
		name, to := "ip", netip.AddrPortFrom(podAddr(2, v6), 53)
		if v6 {
			name = "ip6"
		}
		w.node.nft(t, fmt.Sprintf("add rule inet nat pre %s daddr %s udp dport 5353 dnat %s to %s", name, service, name, to))
		w.node.nft(t, fmt.Sprintf("add rule inet nat post %s daddr %s udp dport 53 masquerade", name, to.Addr()))
		near, err := w.pods[0].socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, podAddr(0, v6), 4000)
		must(t, err)
		defer func() { _ = unix.Close(near) }()
		far, err := w.pods[1].socket(unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, to.Addr(), 53)
		must(t, err)
		defer func() { _ = unix.Close(far) }()
		must(t, unix.Connect(near, sockaddr(service, 5353)))
		if !heard(near, far, patience) {
			t.Fatal("the Service is not reached")
		}
		closed := isolated(3)
		closed.Tables[2] = &compile.Table{ID: 2, Default: by(false, "none"), Cells: map[compile.Cell]compile.Verdict{}}
		closed.Sides[compile.Side{Addr: podAddr(0, v6), Direction: policy.Egress}] = 2
		must(t, f.Replace(closed))
		want := bar{src: podAddr(0, v6), dst: podAddr(2, v6), protocol: policy.UDP, sport: 4000, dport: 53}
		eventually(t, "the flow is barred", func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			have, err := f.conn.lookBarred()
			must(t, err)
			_, ok := have.left[want]
			return ok
		})
		if heard(near, far, never) {
			t.Error("the flow goes on")
		}
	}
}
