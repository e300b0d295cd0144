// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// watcher tells which notifications of the kernel concern kernel paths. It is for one goroutine.
type watcher struct {
	macs map[hopKey]mac // of the hops of direct paths, as they were told last
}

// concerns tells whether one of the netlink messages in b says that something is not as it is in v. What is cut off or makes no
// sense may.
func (w *watcher) concerns(v *view, b []byte) bool {
	if v == nil { // nothing was applied yet
		return false
	}
	some := false
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return true
		}
		size := int(nl.NativeEndian().Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true
		}
		kind, port := nl.NativeEndian().Uint16(b[4:]), nl.NativeEndian().Uint32(b[12:])
		// All of them are looked at: the hardware addresses of hops are kept.
		some = w.message(v, kind, port != 0 && port == v.port, b[unix.SizeofNlMsghdr:size]) || some
		b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return some
}

func (w *watcher) message(v *view, kind uint16, own bool, body []byte) bool {
	switch kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return !own && v.link(kind == unix.RTM_DELLINK, body) // who has changed a link is told since Linux 6.2
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return !own && v.address(body)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return !own && v.route(kind == unix.RTM_DELROUTE, body)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return !own && v.rule(kind == unix.RTM_DELRULE, body)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return w.neighbour(v, kind == unix.RTM_DELNEIGH, own, body)
	}
	return false
}

// link tells whether an interface that is needed is not what it was.
func (v *view) link(gone bool, body []byte) bool {
	l, ok := parseLink(body)
	if !ok {
		return true
	}
	if body[0] == unix.AF_BRIDGE { // what a bridge says of its ports
		return false
	}
	old, known := v.links[l.index]
	if !known {
		return v.names[l.name] && !gone // it is there, or it is up
	}
	same := old.name == l.name && old.up == l.up && old.mtu == l.mtu && old.mac == l.mac
	if _, tunnel := v.want.devices[old.name]; tunnel {
		same = same && l.alias == deviceAlias && old.group == l.group && (l.gen < 0 || l.gen == genNone)
	}
	return gone || !same
}

// address tells whether a source of routes has come or gone, with which the routes go, or an address of a VXLAN device.
func (v *view) address(body []byte) bool {
	a, index, ok := parseAddr(body)
	if !ok || v.sources[a.Addr()] {
		return true
	}
	_, tunnel := v.want.devices[v.links[index].name]
	return tunnel && a.Addr().Is4()
}

func (v *view) name(index int) string { return v.links[index].name }

func (v *view) route(gone bool, body []byte) bool {
	key, r, ours := parseRoute(body, v.name)
	if !ours { // in the place of one of Weft's
		if len(body) < unix.SizeofRtMsg {
			return true
		}
		body = append([]byte(nil), body...)
		nl.DeserializeRtMsg(body).Protocol = RouteProtocol
		if key, _, ours = parseRoute(body, v.name); !ours {
			return false
		}
		_, wanted := v.want.routes[key]
		return wanted
	}
	want, wanted := v.want.routes[key]
	if gone {
		return wanted
	}
	return !wanted || want != r
}

func (v *view) rule(gone bool, body []byte) bool {
	r, ours := parseRule(body)
	if !ours {
		return false
	}
	_, wanted := v.want.rules[r]
	return wanted == gone
}

// neighbour tells whether a neighbour or forwarding entry on a VXLAN device is not as it should be, or a hop of direct paths has
// another hardware address. The kernel does not say who has changed a forwarding entry.
func (w *watcher) neighbour(v *view, gone, own bool, body []byte) bool {
	e, ok := parseEntry(body)
	if !ok {
		return true
	}
	l, known := v.links[e.index]
	if !known {
		return false
	}
	if _, tunnel := v.want.devices[l.name]; !tunnel {
		hop := hopKey{e.index, e.addr}
		if gone || !e.resolved() { // when it comes back, with whatever hardware address, that is told
			delete(w.macs, hop)
			return false
		}
		if !v.hops[hop] || w.macs[hop] == e.mac {
			return false
		}
		if len(w.macs) > len(v.hops) { // some are of earlier ones
			clear(w.macs)
		}
		w.macs[hop] = e.mac
		return true
	}
	if e.family == unix.AF_BRIDGE {
		want, wanted := v.want.fdb[entryKey{l.name, e.mac}]
		if gone {
			return wanted
		}
		return !wanted || want != e.remote(l.port)
	}
	want, wanted := v.want.neighbours[neighbourKey{l.name, e.addr}]
	switch {
	case own:
		return false
	case gone, e.state != unix.NUD_PERMANENT:
		return wanted
	}
	return !wanted || want != e.mac
}
