// SPDX-License-Identifier: Apache-2.0

package underlay

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// apartPriority is for queueing disciplines of this host (TC_PRIO_CONTROL; without CAP_NET_ADMIN one less is allowed), and apartTOS
	// for the network: class selector 6, network control (RFC 4594 §3.1). Neither may mark congestion.
	apartPriority = 7
	apartTOS      = 6 << 5
	// Sizes asked for the socket buffers, in bytes. Of short datagrams the kernel reckons about 1 KiB each.
	apartReceiveBuffer = 4 << 20
	apartSendBuffer    = 1 << 20
)

// LightTOS is in the type of service of light datagrams, by which ListenApart tells them apart: the bit that RFC 1349 called low delay. To networks with
// Differentiated Services it is an unassigned code point (4), which they forward like the default one (RFC 2474 §3); queueing disciplines of Linux that still
// know it let such packets go first.
const LightTOS = 0x10

// ListenApart is Listen with one socket more, which gets all datagrams whose first byte is first, and no other; the kernel spreads the senders
// of the rest over the data sockets, each of which has a second queue, for those of its senders' datagrams that bear LightTOS: see Conn.RecvLight. (Datagrams that it has joined to a run go where the first of the run does: rarely that brings one to
// a socket of the other sort.) What the socket sends goes before other traffic of this host, is marked as network control, and may be fragmented. It is
// nil where the kernel cannot tell datagrams apart (Linux 4.5 can), and o.NotApart is told why; then there are no second queues either.
//
// Data sockets may be closed, from the last to the first: then call Spread.
func ListenApart(port uint16, n int, first byte, o Options) (data []*Conn, apart *Conn, err error) {
	conns, err := Listen(port, 1+2*max(n, 1), o)
	if err != nil {
		return nil, nil, err
	}
	return setApart(conns, first, o)
}

// setApart makes the first of the sockets, which were bound in this order, the one apart, and of those that follow each second one the second queue of the
// one before it.
func setApart(conns []*Conn, first byte, o Options) (data []*Conn, apart *Conn, err error) {
	apart = conns[0]
	apart.first = first
	err = apart.goApart()
	for i := 1; i+1 < len(conns); i += 2 {
		d, light := conns[i], conns[i+1]
		data, d.light = append(data, d), light
	}
	if err == nil {
		err = apart.Spread(len(data))
	}
	if err == nil {
		return data, apart, nil
	}
	if o.NotApart != nil {
		o.NotApart(err)
	}
	failed := apart.Close()
	for _, c := range data {
		failed = errors.Join(failed, c.light.Close())
		c.light = nil
	}
	if failed != nil {
		for _, c := range data {
			failed = errors.Join(failed, c.Close())
		}
		return nil, nil, failed
	}
	return data, nil, nil
}

// goApart makes a socket one for what is not to wait.
func (c *Conn) goApart() error {
	options := []struct{ level, name, value int }{
		{unix.SOL_IP, unix.IP_MTU_DISCOVER, fragmentsV4},
		{unix.SOL_IP, unix.IP_TOS, apartTOS}, // sets a priority, too
	}
	if c.family == unix.AF_INET6 {
		options = append(options, []struct{ level, name, value int }{
			{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, fragmentsV6},
			{unix.SOL_IPV6, unix.IPV6_TCLASS, apartTOS},
		}...)
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(c.fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("socket option %d/%d: %w", o.level, o.name, err)
		}
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_PRIORITY, apartPriority); err != nil {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_PRIORITY, apartPriority-1); err != nil {
			return fmt.Errorf("socket priority: %w", err)
		}
	}
	if err := enlarge(c.fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, apartReceiveBuffer); err != nil {
		return fmt.Errorf("receive buffer: %w", err)
	}
	if err := enlarge(c.fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, apartSendBuffer); err != nil {
		return fmt.Errorf("send buffer: %w", err)
	}
	c.fragments = true
	return nil
}

// Spread makes the kernel spread datagrams over the first n data sockets of ListenApart, of which there must be as many.
func (c *Conn) Spread(n int) error {
	program := spread(c.first, n)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return c.explain("spreading datagrams", unix.EBADF)
	}
	err := unix.SetsockoptSockFprog(c.fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err != nil {
		return fmt.Errorf("telling datagrams on UDP port %d apart (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5): %w", c.port, err)
	}
	return nil
}

// Require makes the kernel drop all datagrams but those that have one of the words, big endian, at an offset in bytes; they are counted by
// Lost. What the kernel has joined to a run is judged by the first of it. It replaces what was required before.
func (c *Conn) Require(offset int, words []uint32) error {
	program := require(offset, words)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return c.explain("filtering datagrams", unix.EBADF)
	}
	err := unix.SetsockoptSockFprog(c.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err != nil {
		return fmt.Errorf("filtering datagrams on UDP port %d: %w", c.port, err)
	}
	return nil
}

// Lost returns how many datagrams, and runs of them, the kernel has dropped that were for this socket: because of Require, and those for which there was no
// room in its buffer. It counts up to 2^32 and begins anew, and is 0 where the kernel does not tell (before Linux 4.12).
func (c *Conn) Lost() uint32 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return 0
	}
	var info [unix.SK_MEMINFO_VARS]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(c.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return info[unix.SK_MEMINFO_DROPS]
}

// require returns the program that lets a datagram in if it has one of the words at the offset. Its own offsets count from the UDP header.
func require(offset int, words []uint32) []unix.SockFilter {
	const udpHeader = 8
	p := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_ABS | unix.BPF_W, K: uint32(udpHeader + offset)}} // a shorter one is dropped
	for _, w := range words {
		p = append(p,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | unix.BPF_JEQ, Jf: 1, K: w},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1})
	}
	return append(p, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0})
}

// spread returns the program that finds the socket of a datagram in its group, in the order in which they were bound: 0 if the first byte of the payload
// is first; else one of the n pairs that follow, by a hash of the sender's address and port: the second of the pair if the datagram is light.
//
// Offsets count from the payload; behind netOffset, from the IP header (SKF_NET_OFF). Ports are sought where they are without IP options and
// extension headers: with them the hash is a worse one, and still the same for one sender.
func spread(first byte, n int) []unix.SockFilter {
	const (
		netOffset = 1<<32 - 0x100000
		mix       = 0x9e3779b1 // odd, so that a product loses nothing
		mix2      = 0x85ebca6b
		dscp      = 0xff &^ 3
		light     = 0 // the scratch word that says so
	)
	var p []unix.SockFilter
	add := func(code uint16, k uint32) { p = append(p, unix.SockFilter{Code: code, K: k}) }
	load := func(size uint16, at uint32) { add(unix.BPF_LD|unix.BPF_ABS|size, at) }
	alu := func(op uint16, k uint32) { add(unix.BPF_ALU|unix.BPF_K|op, k) }
	// hash adds what follows in the header to the hash, which is in X, as A is what is loaded.
	hash := func(size uint16, at uint32) {
		load(size, netOffset+at)
		add(unix.BPF_ALU|unix.BPF_X|unix.BPF_XOR, 0)
		alu(unix.BPF_MUL, mix)
		add(unix.BPF_MISC|unix.BPF_TAX, 0)
	}

	add(unix.BPF_LD|unix.BPF_LEN|unix.BPF_W, 0)
	p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | unix.BPF_JEQ, Jt: 3}) // empty
	load(unix.BPF_B, 0)
	p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | unix.BPF_JEQ, Jf: 1, K: uint32(first)})
	add(unix.BPF_RET|unix.BPF_K, 0)
	// Type of service and traffic class: version and header length, or version alone, are before it.
	load(unix.BPF_B, netOffset)
	alu(unix.BPF_RSH, 4)
	p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | unix.BPF_JEQ, K: 4, Jt: 3})
	load(unix.BPF_H, netOffset)
	alu(unix.BPF_RSH, 4)
	add(unix.BPF_JMP|unix.BPF_JA, 1)
	load(unix.BPF_B, netOffset+1)
	alu(unix.BPF_AND, dscp)
	p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | unix.BPF_JEQ, K: LightTOS, Jf: 2})
	add(unix.BPF_LD|unix.BPF_IMM, 1)
	add(unix.BPF_JMP|unix.BPF_JA, 1)
	add(unix.BPF_LD|unix.BPF_IMM, 0)
	add(unix.BPF_ST, light)
	if n <= 1 {
		alu(unix.BPF_ADD, 1)
		add(unix.BPF_RET|unix.BPF_A, 0)
		return p
	}
	add(unix.BPF_LDX|unix.BPF_IMM, 0)
	load(unix.BPF_B, netOffset)
	alu(unix.BPF_RSH, 4)
	v4 := len(p)
	p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | unix.BPF_JEQ, K: 4})
	for at := uint32(8); at < 24; at += 4 {
		hash(unix.BPF_W, at)
	}
	hash(unix.BPF_H, 40)
	end := len(p)
	add(unix.BPF_JMP|unix.BPF_JA, 0)
	p[v4].Jt = uint8(len(p) - v4 - 1)
	hash(unix.BPF_W, 12)
	hash(unix.BPF_H, 20)
	p[end].K = uint32(len(p) - end - 1)
	// The high bits depend on all others: the low ones shall.
	add(unix.BPF_MISC|unix.BPF_TXA, 0)
	alu(unix.BPF_RSH, 15)
	add(unix.BPF_ALU|unix.BPF_X|unix.BPF_XOR, 0)
	alu(unix.BPF_MUL, mix2)
	alu(unix.BPF_RSH, 16)
	alu(unix.BPF_MOD, uint32(n))
	alu(unix.BPF_LSH, 1)
	alu(unix.BPF_ADD, 1)
	add(unix.BPF_LDX|unix.BPF_MEM, light)
	add(unix.BPF_ALU|unix.BPF_X|unix.BPF_ADD, 0)
	add(unix.BPF_RET|unix.BPF_A, 0)
	return p
}
