// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// interruptions is how often a list that changes while it is read is read again at once.
const interruptions = 3

// Run serves devices, those that come as well, until ctx ends, which is no error. The programs stay, and do nothing any more. It is called once.
func (b *Bypass) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, part := range []func(context.Context){b.watch, b.serve, b.stir, b.admit} {
		all.Go(func() { part(ctx) })
	}
	b.settle(reasonRun, "")
	<-ctx.Done()
	b.settle(reasonRun, "its daemon ends")
	all.Wait()
	return nil
}

// serve looks at the devices again and again until ctx ends.
func (b *Bypass) serve(ctx context.Context) {
	var late <-chan time.Time
	for {
		wait := lookEvery
		if !b.look(ctx) {
			wait = lookSoon
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-b.again:
			pause(ctx, 10*time.Millisecond) // news come in bursts
			if late == nil {
				late = time.After(lookLate)
			}
		case <-late:
			late = nil
		case <-timer.C:
		}
		timer.Stop()
	}
}

// pause waits, not longer than ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// raise has devices looked at soon.
func (b *Bypass) raise() {
	select {
	case b.again <- struct{}{}:
	default:
	}
}

// Serve has the devices of these names served as well, and no others but those of the groups. What tunnels leave the host by is served for that alone.
func (b *Bypass) Serve(names, tunnels []string) {
	b.mu.Lock()
	next := map[string]bool{}
	for _, n := range tunnels {
		next[n] = false
	}
	for _, n := range names {
		next[n] = true
	}
	same := maps.Equal(b.names, next)
	b.names = next
	b.mu.Unlock()
	if !same {
		b.raise()
	}
}

// ours says whether a device is one to be served. b.mu is held.
func (b *Bypass) ours(a *netlink.LinkAttrs) bool {
	_, named := b.names[a.Name]
	return !b.gone && a.EncapType == "ether" && a.Flags&net.FlagLoopback == 0 && (slices.Contains(b.config.Groups, a.Group) || named)
}

// bothWays says whether a device that is served is for what comes in by it as well. b.mu is held.
func (b *Bypass) bothWays(a *netlink.LinkAttrs) bool {
	return slices.Contains(b.config.Groups, a.Group) || b.names[a.Name]
}

// look looks at all devices, and says whether packets can go around the stack. What could be found out counts; what could not is looked at again.
func (b *Bypass) look(ctx context.Context) (ready bool) {
	why, whole := "", false
	err := b.ns.run(func() error {
		why = b.hindered()
		var links []netlink.Link
		for range interruptions {
			var err error
			if links, err = b.list(); err == nil {
				whole = true
				break
			} else if !errors.Is(err, netlink.ErrDumpInterrupted) {
				return fmt.Errorf("listing devices: %w", err)
			}
		}
		others, known, err := inUse()
		if err != nil {
			return err
		}
		whole = whole && known
		b.settle(reasonHost, why) // the devices may take a while
		there := map[int]bool{}
		for _, l := range links {
			if ctx.Err() != nil {
				return nil
			}
			a := l.Attrs()
			there[a.Index] = true
			b.ignore(a, b.device(l, others[a.Index], known))
		}
		if whole {
			b.prune(there)
		}
		return nil
	})
	if err != nil {
		why = explain(err).Error()
	}
	b.settle(reasonHost, why)
	return why == "" && whole
}

// ignore says once that a device cannot be served; nil: it can.
func (b *Bypass) ignore(a *netlink.LinkAttrs, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch said, text := b.ignored[a.Index], fmt.Sprint(err); {
	case err == nil:
		delete(b.ignored, a.Index)
	case errors.Is(err, unix.ENODEV), said == text:
	default:
		b.ignored[a.Index] = text
		b.log.Warn("packets of a device all go through the host's stack", zap.String("device", a.Name), zap.Error(explain(err)))
	}
}

// prune lets go of devices that are not there any more.
func (b *Bypass) prune(there map[int]bool) {
	var left []places
	b.mu.Lock()
	for device, held := range b.links {
		if !there[device] {
			delete(b.links, device)
			left = append(left, held)
		}
	}
	for device := range b.ignored {
		if !there[device] {
			delete(b.ignored, device)
		}
	}
	b.mu.Unlock()
	for _, held := range left {
		held.close()
	}
}

// device gives a device the programs that it should have. Where somebody filters what comes in, or has a program there, packets are not taken around it; if that is
// not known it stays as it is.
func (b *Bypass) device(l netlink.Link, others use, known bool) error {
	a := l.Attrs()
	b.mu.Lock()
	held, served := b.links[a.Index]
	if !served {
		held = places{-1, -1}
	}
	ours := b.ours(a)
	if ours && !served && !b.worth(a.Name) {
		ours = false
	}
	bothWays := b.bothWays(a)
	in := ours && !others.filtered && bothWays
	b.mu.Unlock()
	if !known || !ours && !served {
		return nil
	}
	out := b.out
	switch l.Type() {
	case "vxlan":
		out = b.tunnel
	case "veth":
		passable, err := b.passable(a, others)
		if err != nil {
			return err
		}
		if passable && bothWays {
			out = b.inward
		}
	}
	var err error
	if held.in, err = b.in.put(a.Index, held.in, in, true); err == nil {
		held.out, err = out.put(a.Index, held.out, ours, false)
	}
	b.mu.Lock()
	keep := ours && !b.gone
	if keep {
		b.links[a.Index] = held
	} else {
		delete(b.links, a.Index)
	}
	b.mu.Unlock()
	if !keep {
		held.close()
	}
	return err
}

// passable says whether packets may be taken past what is between the two ends of a veth pair: the other end is in another namespace, and nobody has a queue,
// a filter or a program there.
func (b *Bypass) passable(a *netlink.LinkAttrs, others use) (bool, error) {
	if a.NetNsID < 0 || others.filtered || others.queued {
		return false, nil
	}
	ids, err := attached(a.Index, hookOut)
	ours := []uint32{b.out.id, b.tunnel.id, b.inward.id}
	return !slices.ContainsFunc(ids, func(id uint32) bool { return !slices.Contains(ours, id) }), err
}

// use is what somebody has set up at a device for traffic control.
type use struct {
	filtered bool // a place for filters of what comes in
	queued   bool // a queue for what leaves
}

// inUse tells that of devices by their numbers; not known if they change all the time.
func inUse() (devices map[int]use, known bool, err error) {
	for range interruptions {
		list, err := netlink.QdiscList(nil)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, false, fmt.Errorf("listing queues: %w", err)
		}
		devices := map[int]use{}
		for _, q := range list {
			u := devices[q.Attrs().LinkIndex]
			switch q.Type() {
			case "ingress", "clsact":
				u.filtered = true
			case "noqueue":
			default:
				u.queued = true
			}
			devices[q.Attrs().LinkIndex] = u
		}
		return devices, true, nil
	}
	return nil, false, nil
}

// put lets the program be at a device or not; not if it is to be alone and is not. Link is what keeps it there, or -1, and so is what it returns.
func (p program) put(device, link int, wanted, alone bool) (int, error) {
	ids, err := attached(device, p.hook)
	if err != nil {
		return link, err
	}
	if alone && slices.ContainsFunc(ids, func(id uint32) bool { return id != p.id }) {
		wanted = false
	}
	there := slices.Contains(ids, p.id)
	if link >= 0 && !(wanted && there) { // somebody may have taken it away
		_ = unix.Close(link) // nothing is written
		link = -1
	}
	if wanted && link < 0 {
		if link, err = attach(device, p.fd, p.hook); err != nil {
			return -1, err
		}
	}
	return link, nil
}

func (p places) close() {
	for _, fd := range []int{p.in, p.out} {
		if fd > 0 { // the zero value is none
			_ = unix.Close(fd) // nothing is written
		}
	}
}

// Remove has all packets go through the stack, for good. It waits for nothing; the programs stay until Close.
func (b *Bypass) Remove() {
	b.mu.Lock()
	b.gone = true
	b.mu.Unlock()
	b.turn.Lock()
	defer b.turn.Unlock()
	b.pauses++ // which does not end
	b.tell()
}

// release takes the programs from all devices.
func (b *Bypass) release() {
	b.mu.Lock()
	held := b.links
	b.links = map[int]places{}
	b.mu.Unlock()
	if n := len(held); n > 0 {
		b.log.Info("bypass removed", zap.Int("devices", n))
	}
	for _, p := range held {
		p.close()
	}
}
