// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// rulesShare is how many times as long as the last look at the rules of nftables has taken there is none, should they change all the time.
	rulesShare = 200
	// rulesPatience is how long the kernel may take to tell them.
	rulesPatience = 10 * time.Second
)

// A rulesLook looks for rules that copy packets. What of a packet leaves first is taken for the packet, and a copy may go elsewhere.
type rulesLook struct {
	generation uint32 // of the rules that were looked at
	known      bool
	found      bool
	next       time.Time // before which there is no other look
}

// copies says whether there is a rule of nftables that copies packets, in the namespace of the calling thread: looked at when rules have changed.
func (l *rulesLook) copies(now time.Time) (bool, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, nil // there are no rules
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = c.Close() }() // nothing waits to be sent
	generation, err := generation(c)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return false, nil // there is no nftables
	}
	if err != nil {
		return false, err
	}
	if l.known && (generation == l.generation || now.Before(l.next) && !l.found) {
		return l.found, nil
	}
	found, err := copying(c)
	if err != nil {
		l.known = false
		return false, err
	}
	*l = rulesLook{generation: generation, known: true, found: found, next: now.Add(rulesShare * time.Since(now))}
	return found, nil
}

// ask is a message about nftables.
func ask(kind uint16, flags netlink.HeaderFlags) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags}, Data: make([]byte, 4),
	}
}

// generation is the number of the last change of rules.
func generation(c *netlink.Conn) (uint32, error) {
	answers, err := c.Execute(ask(unix.NFT_MSG_GETGEN, 0))
	if err != nil {
		return 0, err
	}
	for _, m := range answers {
		if len(m.Data) < 4 {
			continue
		}
		d, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, err
		}
		d.ByteOrder = binary.BigEndian
		for d.Next() {
			if d.Type() == unix.NFTA_GEN_ID {
				return d.Uint32(), nil
			}
		}
	}
	return 0, errors.New("the kernel does not tell the generation of nftables")
}

// copying reads all rules, which may be many: a piece at a time, and none is kept.
func copying(c *netlink.Conn) (found bool, err error) {
	if err := c.SetDeadline(time.Now().Add(rulesPatience)); err != nil {
		return false, err
	}
	if _, err := c.Send(ask(unix.NFT_MSG_GETRULE, netlink.Dump)); err != nil {
		return false, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false, err
	}
	buffer := make([]byte, 1<<16)
	for {
		var n int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, _, failed = unix.Recvfrom(int(fd), buffer, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err = errors.Join(err, failed); err != nil {
			return false, err
		}
		here, done, err := scan(buffer[:n])
		found = found || here
		if err != nil || done {
			return found, err
		}
	}
}

// scan looks for what copies in a piece of the answer, and says whether it is the last one. The rules may have changed meanwhile: then the generation has, too.
func scan(b []byte) (found, done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return found, true, errors.New("the kernel's answer makes no sense")
		}
		body := b[unix.SizeofNlMsghdr:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return found, true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return found, true, errors.New("the kernel's answer makes no sense")
			}
			if e := -int32(binary.NativeEndian.Uint32(body)); e != 0 {
				return found, true, fmt.Errorf("reading rules: %w", syscall.Errno(e))
			}
			return found, true, nil
		default:
			found = found || copyingRule(body)
		}
		b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return found, false, nil
}

// copyingRule says whether a rule has an expression, or a target of iptables, by which packets are copied: an attribute that is its name.
func copyingRule(body []byte) bool {
	for _, name := range []string{"dup", "TEE"} {
		attribute := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(name)+1))
		attribute = append(binary.NativeEndian.AppendUint16(attribute, 1), name...) // NFTA_EXPR_NAME, NFTA_TARGET_NAME
		if bytes.Contains(body, append(attribute, 0)) {
			return true
		}
	}
	return false
}
