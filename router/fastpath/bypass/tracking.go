// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What is asked of connection tracking, and told to it (linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h, nf_conntrack_tcp.h).
const (
	ctNew = 0
	ctGet = 1

	ctaOriginal    = 1
	ctaReply       = 2
	ctaStatus      = 3
	ctaProtocol    = 4 // CTA_PROTOINFO
	ctaHelper      = 5
	ctaTimeout     = 7
	ctaAdjusted    = 15 // CTA_SEQ_ADJ_ORIG, and the next one of the other direction
	ctaAdjustedToo = 16
	ctaZone        = 18
	ctaProxy       = 24 // CTA_SYNPROXY

	ctaTupleAddrs = 1
	ctaTuplePorts = 2
	ctaTupleZone  = 3

	ctaTCP          = 1
	ctaTCPState     = 1
	ctaTCPFlags     = 4 // of what the original direction sends
	ctaTCPFlagsBack = 5

	tcpEstablished = 3

	statusAssured = 1 << 2
	// statusOdd are those of translated, adjusted, dying, fixed, helped and offloaded entries.
	statusOdd = 1<<4 | 1<<5 | 1<<6 | 1<<9 | 1<<10 | 1<<13 | 1<<14 | 1<<15

	flagLiberal = 1 << 3 // the windows do not count
	flagUnacked = 1 << 4 // the timeout is that of data that nobody has acknowledged
)

// trackingPatience is how long the kernel may take to answer.
const trackingPatience = 10 * time.Second

// A tuple is one direction of a connection.
type tuple struct {
	src, dst netip.AddrPort
	protocol uint8
}

func (x tuple) reverse() tuple { return tuple{x.dst, x.src, x.protocol} }

// conn is the tuple of a flow's packets.
func (k *flowKey) conn() tuple {
	f := forms()[k.index]
	addr := func(at int) netip.Addr {
		a, _ := netip.AddrFromSlice(k.key[at : at+f.addr])
		return a
	}
	port := func(at int) uint16 { return binary.BigEndian.Uint16(k.key[at:]) }
	return tuple{
		netip.AddrPortFrom(addr(0), port(f.keyPorts)), netip.AddrPortFrom(addr(f.addr), port(f.keyPorts+2)), uint8(binary.NativeEndian.Uint32(k.key[f.keyProto:])),
	}
}

// A record is an entry of connection tracking, as far as it matters.
type record struct {
	original, reply tuple
	status          uint32
	state           uint8
	flags           [2]uint8
	timeout         uint32 // seconds
	odd             bool   // a helper looks at its packets, sequence numbers are translated, or it is of a zone
}

// liberal says whether connection tracking bears that it does not see all packets of the connection.
func (r *record) liberal() bool { return r.flags[0]&r.flags[1]&flagLiberal != 0 }

// unfit says why packets of the connection are to go through the stack, all of them; "" if they need not.
func (r *record) unfit() string {
	switch {
	case r.odd || r.status&statusOdd != 0 || r.reply != r.original.reverse():
		return "its packets are translated, or somebody looks into them"
	case r.original.protocol == unix.IPPROTO_TCP && (r.state != tcpEstablished || r.status&statusAssured == 0):
		return "it is not established"
	}
	return ""
}

// tracking talks to the connection tracking of a namespace. It is for one goroutine.
type tracking struct {
	ns   namespace
	conn *netlink.Conn // nil: not yet
}

// tracked tells how many entries there are, those of all zones. Where connection tracking is not loaded there are none.
func (t *tracking) tracked() (n int, err error) { return t.setting("count") }

// setting reads a number of connection tracking; 0 where that is not loaded.
func (t *tracking) setting(name string) (n int, err error) {
	err = t.ns.run(func() error {
		text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_" + name)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil {
			n, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		return err
	})
	return n, err
}

func (t *tracking) close() {
	if t.conn != nil {
		_ = t.conn.Close() // nothing waits to be sent
		t.conn = nil
	}
}

// execute sends a message of the family and returns the answers.
func (t *tracking) execute(kind uint16, flags netlink.HeaderFlags, v6 bool, attributes func(e *netlink.AttributeEncoder)) ([]netlink.Message, error) {
	if t.conn == nil {
		var c netlink.Config
		if t.ns != here {
			c.NetNS = int(t.ns)
		}
		var err error
		if t.conn, err = netlink.Dial(unix.NETLINK_NETFILTER, &c); err != nil {
			t.conn = nil
			return nil, err
		}
	}
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	if attributes != nil {
		attributes(e)
	}
	body, err := e.Encode()
	if err != nil {
		return nil, err
	}
	family := byte(unix.AF_INET)
	if v6 {
		family = unix.AF_INET6
	}
	if err := t.conn.SetDeadline(time.Now().Add(trackingPatience)); err != nil {
		return nil, err
	}
	answers, err := t.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | kind), Flags: netlink.Request | flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, body...),
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.close() // what comes late is of no use
	}
	return answers, err
}

// encode writes the tuple as an attribute.
func (x tuple) encode(kind uint16, e *netlink.AttributeEncoder) {
	e.Nested(kind, func(e *netlink.AttributeEncoder) error {
		e.Nested(ctaTupleAddrs, func(e *netlink.AttributeEncoder) error {
			first := uint16(1)
			if x.src.Addr().Is6() {
				first = 3
			}
			e.Bytes(first, x.src.Addr().AsSlice())
			e.Bytes(first+1, x.dst.Addr().AsSlice())
			return nil
		})
		e.Nested(ctaTuplePorts, func(e *netlink.AttributeEncoder) error {
			e.Uint8(1, x.protocol)
			e.Uint16(2, x.src.Port())
			e.Uint16(3, x.dst.Port())
			return nil
		})
		return nil
	})
}

// get returns the entry to which packets of a direction belong. There is none: unix.ENOENT.
func (t *tracking) get(x tuple) (r record, err error) {
	// The kernel calls its answer one of many: only what acknowledges the request is the last one.
	answers, err := t.execute(ctGet, netlink.Acknowledge, x.src.Addr().Is6(), func(e *netlink.AttributeEncoder) { x.encode(ctaOriginal, e) })
	if err != nil {
		return r, err
	}
	for _, m := range answers {
		if r.decode(m.Data) && (r.original == x || r.reply == x) {
			return r, nil
		}
	}
	return r, errors.New("the kernel's answer makes no sense")
}

// mark lets connection tracking bear that it does not see all packets of the connection; if seconds are not 0 its entry lasts that long from now on, until its next packet.
func (t *tracking) mark(x tuple, seconds uint32) error {
	_, err := t.execute(ctNew, netlink.Acknowledge, x.src.Addr().Is6(), func(e *netlink.AttributeEncoder) {
		x.encode(ctaOriginal, e)
		if seconds != 0 {
			e.Uint32(ctaTimeout, seconds)
		}
		e.Nested(ctaProtocol, func(e *netlink.AttributeEncoder) error {
			e.Nested(ctaTCP, func(e *netlink.AttributeEncoder) error {
				flags := []byte{flagLiberal, flagLiberal | flagUnacked} // and which are meant
				e.Bytes(ctaTCPFlags, flags)
				e.Bytes(ctaTCPFlagsBack, flags)
				return nil
			})
			return nil
		})
	})
	return err
}

// list calls each with the entries of a family.
func (t *tracking) list(v6 bool, each func(r record)) error {
	answers, err := t.execute(ctGet, netlink.Dump, v6, nil)
	for _, m := range answers {
		var r record
		if r.decode(m.Data) {
			each(r)
		}
	}
	return err
}

// probe says why connection tracking cannot be talked to, and what to do; "" if it can, or is not there.
func (t *tracking) probe() string {
	if there, err := t.setting("max"); err == nil && there == 0 {
		return ""
	}
	none := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	_, err := t.get(tuple{none, none, unix.IPPROTO_TCP})
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return ""
	case errors.Is(err, unix.EPERM):
		return fmt.Sprintf("connection tracking cannot be told of it: CAP_NET_ADMIN is needed (%v)", err)
	}
	t.close()
	return fmt.Sprintf("connection tracking cannot be told of it: use a kernel with CONFIG_NF_CT_NETLINK (%v)", err)
}

// decode reads the body of a message; false if it is no entry.
func (r *record) decode(body []byte) bool {
	if len(body) < 4 {
		return false
	}
	d, err := netlink.NewAttributeDecoder(body[4:])
	if err != nil {
		return false
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case ctaOriginal:
			d.Nested(r.direction(&r.original))
		case ctaReply:
			d.Nested(r.direction(&r.reply))
		case ctaStatus:
			r.status = d.Uint32()
		case ctaTimeout:
			r.timeout = d.Uint32()
		case ctaHelper, ctaAdjusted, ctaAdjustedToo, ctaZone, ctaProxy:
			r.odd = true
		case ctaProtocol:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if d.Type() == ctaTCP {
						d.Nested(r.tcp)
					}
				}
				return nil
			})
		}
	}
	return d.Err() == nil && r.original.src.IsValid() && r.original.dst.IsValid() && r.reply.src.IsValid() && r.reply.dst.IsValid()
}

func (r *record) tcp(d *netlink.AttributeDecoder) error {
	for d.Next() {
		switch b := d.Bytes(); {
		case len(b) == 0:
		case d.Type() == ctaTCPState:
			r.state = b[0]
		case d.Type() == ctaTCPFlags:
			r.flags[0] = b[0]
		case d.Type() == ctaTCPFlagsBack:
			r.flags[1] = b[0]
		}
	}
	return nil
}

// direction reads a tuple.
func (r *record) direction(to *tuple) func(d *netlink.AttributeDecoder) error {
	return func(d *netlink.AttributeDecoder) error {
		var addrs [2]netip.Addr
		var ports [2]uint16
		for d.Next() {
			switch d.Type() {
			case ctaTupleAddrs:
				d.Nested(func(d *netlink.AttributeDecoder) error {
					for d.Next() {
						if kind := d.Type(); kind >= 1 && kind <= 4 {
							addrs[(kind-1)&1], _ = netip.AddrFromSlice(d.Bytes())
						}
					}
					return nil
				})
			case ctaTuplePorts:
				d.Nested(func(d *netlink.AttributeDecoder) error {
					for d.Next() {
						switch d.Type() {
						case 1:
							to.protocol = d.Uint8()
						case 2, 3:
							ports[d.Type()-2] = d.Uint16()
						}
					}
					return nil
				})
			case ctaTupleZone:
				r.odd = true
			}
		}
		to.src, to.dst = netip.AddrPortFrom(addrs[0], ports[0]), netip.AddrPortFrom(addrs[1], ports[1])
		return nil
	}
}
