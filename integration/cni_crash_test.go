// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/integration/lab"
)

// ending is how the daemon and the plugin end at a fault point.
type ending int

const (
	alone    ending = iota // who is at the point is killed; the plugin asks the daemon's successor
	together               // where that is the daemon, the plugin is killed with it
	orphaned               // the daemon is stopped there, the plugin killed, and the daemon goes on
)

// remedy is what the runtime does then.
type remedy int

const (
	again remedy = iota // the same once more
	byDel               // DEL
	byGC                // GC, with no valid attachment
)

func (e ending) String() string { return []string{"alone", "together", "orphaned"}[e] }
func (r remedy) String() string { return []string{"the same again", "DEL", "GC"}[r] }

// crashCase is an operation in which something is killed.
type crashCase struct {
	ipam bool                               // the plugin is the IPAM of another one
	made func(*lab.Workload) error          // what is in the namespace before
	prep func(*crashHost, *container)       // what has happened before
	act  func(*crashHost, *container) *said // starts it; nil: the daemon is launched, which prep has ended
	// refused says that it fails, whatever happens; attached that the container is attached in the end; moves that it has another namespace
	// than in prep.
	refused, attached, moves bool
}

func crashCases() map[string]crashCase {
	added := func(c *crashHost, k *container) { c.done(c.startAdd(k)) }
	ended := func(c *crashHost, k *container) { added(c, k); c.Kill() }
	cut := func(point string, act func(*crashHost, *container) *said) func(*crashHost, *container) {
		return func(c *crashHost, k *container) {
			c.arm(point + " stop")
			s := act(c, k)
			for end := time.Now().Add(verbTimeout); !c.stopped(); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					c.t.Fatalf("the daemon does not come to %s; the plugin: %v", point, s)
				}
			}
			s.proc.Kill() // else it would ask the next daemon
			c.Kill()
		}
	}
	none := func(*crashHost, *container) {}
	return map[string]crashCase{
		"ADD":                              {prep: none, act: (*crashHost).startAdd, attached: true},
		"ADD beside another interface":     {made: otherInterface, prep: none, act: (*crashHost).startAdd, attached: true},
		"ADD of what is added":             {prep: added, act: (*crashHost).startAdd, attached: true},
		"ADD in another namespace":         {prep: added, act: (*crashHost).startAdd, attached: true, moves: true},
		"ADD that is refused":              {made: theirInterface, prep: none, act: (*crashHost).startAdd, refused: true},
		"ADD of addresses":                 {ipam: true, prep: none, act: (*crashHost).startAdd, attached: true},
		"DEL":                              {prep: added, act: (*crashHost).startDel},
		"DEL of addresses":                 {ipam: true, prep: added, act: (*crashHost).startDel},
		"DEL without a daemon":             {prep: ended, act: (*crashHost).startDel},
		"GC":                               {prep: added, act: (*crashHost).startGC},
		"launch after a DEL without it":    {prep: func(c *crashHost, k *container) { ended(c, k); c.done(c.startDel(k)) }},
		"launch after a crash in an ADD":   {prep: cut("attach-connected", (*crashHost).startAdd), attached: true},
		"launch after a crash in a DEL":    {prep: func(c *crashHost, k *container) { added(c, k); cut("forget-disconnected", (*crashHost).startDel)(c, k) }, attached: true},
		"launch after a crash before that": {prep: func(c *crashHost, k *container) { added(c, k); cut("unplug", (*crashHost).startDel)(c, k) }, attached: true},
	}
}

// otherInterface gives a namespace an interface with a default route.
func otherInterface(w *lab.Workload) error {
	nl := w.Netlink()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "other"
	b := &netlink.Bridge{LinkAttrs: attrs}
	if err := nl.LinkAdd(b); err != nil {
		return err
	}
	if err := w.Sysctl("net/ipv6/conf/other/disable_ipv6", "1"); err != nil { // it has no address by and by
		return err
	}
	if err := nl.AddrAdd(b, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 168, 7, 2).To4(), Mask: net.CIDRMask(24, 32)}}); err != nil {
		return err
	}
	if err := nl.LinkSetUp(b); err != nil {
		return err
	}
	return nl.RouteAdd(&netlink.Route{LinkIndex: b.Attrs().Index, Gw: net.IPv4(192, 168, 7, 1).To4(), Flags: int(netlink.FLAG_ONLINK), Table: unix.RT_TABLE_MAIN})
}

// theirInterface gives a namespace an interface of the name that the container's is to have.
func theirInterface(w *lab.Workload) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = containerIf
	return w.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
}

// TestCrashAtEveryStep kills the daemon, or the plugin, or both, at every fault point that there is, in everything that a runtime asks for and
// at the daemon's start. After the runtime has asked again, or for DEL or GC, there is what there should be: the container is attached once,
// with all that belongs to it, or nothing is left: no address, device, route, rule, neighbour, element of a set or entry of the backlog.
func TestCrashAtEveryStep(t *testing.T) {
	points := faultPoints(t)
	maps.DeleteFunc(points, func(_, at string) bool { return strings.Contains(at, "/cniinstall/") })
	unreached := maps.Clone(points)
	var mu sync.Mutex
	kills, ran := 0, 0
	t.Run("cases", func(t *testing.T) {
		for name, c := range crashCases() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := &crashRun{crashHost: newCrashHost(t), crashCase: c, points: points, hit: map[string]bool{}}
				passed := r.rehearse()
				for i, point := range passed {
					// Every ending and every remedy has its turn at each point, in other pairs at the next one.
					for j := range 3 {
						r.strike(point, ending(j), remedy((i+j)%3))
					}
				}
				r.Kill()
				r.up()
				if err := r.is(nil); err != nil {
					t.Errorf("after another launch: %v", err)
				}
				t.Logf("%d points, %d kills: %v", len(passed), r.kills, passed)
				mu.Lock()
				defer mu.Unlock()
				kills += r.kills
				ran++
				maps.DeleteFunc(unreached, func(name, _ string) bool { return r.hit[name] })
			})
		}
	})
	t.Logf("%d fault points, %d kills", len(points), kills)
	if len(unreached) > 0 && ran == len(crashCases()) { // not if only some of them were asked for
		t.Errorf("nothing has come to these points: %v", unreached)
	}
}

// crashRun is what is done in one case.
type crashRun struct {
	*crashHost
	crashCase
	points    map[string]string // with their places
	reference []string          // what there is if it goes well
	hit       map[string]bool
	kills     int
}

// begin prepares a container; all are its namespaces, the former one included.
func (r *crashRun) begin() (k *container, all []*container) {
	r.t.Helper()
	k = r.container("c", r.ipam)
	all = []*container{k}
	if r.made != nil {
		if err := r.made(k.netns); err != nil {
			r.t.Fatal(err)
		}
		k.look(r.t)
	}
	r.prep(r.crashHost, k)
	if r.moves {
		k = r.container("c", r.ipam)
		all = append(all, k)
	}
	return k, all
}

// perform starts it, and returns the plugin, nil if it is not asked.
func (r *crashRun) perform(k *container) *said {
	r.t.Helper()
	if r.act == nil {
		r.Relaunch()
		return nil
	}
	return r.act(r.crashHost, k)
}

// ended checks how the plugin has ended that was asked for it, and not killed.
func (r *crashRun) ended(s *said) {
	r.t.Helper()
	if s == nil {
		return
	}
	if code := r.code(s); (code != 0) != r.refused {
		r.t.Fatalf("exit code %d, %v", code, s)
	}
}

// rehearse does it without a fault, and returns the points that were passed.
func (r *crashRun) rehearse() []string {
	r.t.Helper()
	k, all := r.begin()
	r.arm("trace")
	r.ended(r.perform(k))
	if r.act == nil {
		r.ready()
	}
	points := r.traced()
	r.up()
	for end := time.Now().Add(settling); ; { // some of it the kernel does by and by
		before := r.reference
		if r.reference = r.extra(all...); len(before) > 0 == r.attached && slices.Equal(before, r.reference) || time.Now().After(end) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if (len(r.reference) > 0) != r.attached {
		r.t.Fatalf("without a fault there is:\n%s", strings.Join(r.reference, "\n"))
	}
	r.gone(k, all, "without a fault")
	return points
}

// gone has the container deleted, and nothing must be left.
func (r *crashRun) gone(k *container, all []*container, what string) {
	r.t.Helper()
	r.done(r.startDel(k))
	if err := r.is(nil, all...); err != nil {
		r.t.Fatalf("%s, and DEL: %v", what, err)
	}
	for _, k := range all {
		k.netns.Delete()
	}
}

// strike does it with a fault, and then what the runtime does.
func (r *crashRun) strike(point string, e ending, then remedy) {
	r.t.Helper()
	k, all := r.begin()
	what := fmt.Sprintf("kill at %s, %v, then %v", point, e, then)
	ofDaemon := !strings.HasPrefix(r.points[point], "../cni/")
	if !ofDaemon || r.act == nil {
		e = alone
	}
	if e == orphaned {
		r.arm(point + " stop")
	} else {
		r.arm(point)
	}
	victim := r.Daemon()
	running := alive(victim)
	s := r.perform(k)
	if s == nil {
		victim = r.Daemon()
	}
	r.watch(s, e, running)
	if r.disarm() { // what comes here by the daemon's own clock came another time
		r.t.Logf("%s: nothing has come there", what)
	} else {
		r.kills++
		r.hit[point] = true
		if ofDaemon && e != orphaned {
			<-victim.Done()
		}
	}
	if e == alone && ofDaemon {
		r.ended(s)
	}
	r.up()
	switch then {
	case again:
		if r.act != nil {
			r.ended(r.perform(k))
		}
		if err := r.is(r.reference, all...); err != nil {
			r.t.Fatalf("%s: %v", what, err)
		}
	case byDel:
		r.done(r.startDel(k))
		if e != orphaned { // whose request may come after the DEL: that is for GC
			if err := r.is(nil, all...); err != nil {
				r.t.Fatalf("%s: %v", what, err)
			}
			break
		}
		fallthrough
	case byGC:
		var err error
		for range 3 {
			r.done(r.startGC(k))
			if err = r.is(nil, all...); err == nil || e != orphaned {
				break
			}
		}
		if err != nil {
			r.t.Fatalf("%s: %v", what, err)
		}
	}
	r.gone(k, all, what)
}

// watch sees to it that who is to be killed is, until the plugin has ended or, if it is not asked, the daemon has come to the point or is ready. A
// daemon that was running, or is being launched, gets a successor.
func (r *crashRun) watch(s *said, e ending, launched bool) {
	r.t.Helper()
	for end := time.Now().Add(verbTimeout); ; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("it takes too long; the plugin: %v", s)
		}
		switch {
		case s != nil && !alive(s.proc):
			return
		case s == nil && !r.Running():
			return
		case s == nil && r.isArmed():
			if r.WaitReady(time.Millisecond) == nil {
				return
			}
		case s != nil && launched && !r.Running():
			if e == together {
				s.proc.Kill()
			}
			r.Relaunch()
		case e == orphaned && !r.isArmed() && r.stopped():
			s.proc.Kill()
			r.resume()
			return
		}
	}
}

func alive(p *lab.Process) bool {
	select {
	case <-p.Done():
		return false
	default:
		return true
	}
}
