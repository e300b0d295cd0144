// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// A Talk is traffic that goes on between two namespaces whatever happens to the network: every 20 ms a numbered datagram, which the
// other side sends back, and as often a few bytes over one TCP connection, which come back too. It keeps account of each.
// Its methods are safe for concurrent use.
type Talk struct {
	name     string
	size     int // of a datagram's payload
	udp, far *net.UDPConn
	tcp, tcf net.Conn // both ends of the connection
	quit     chan struct{}
	stopping sync.Once
	workers  sync.WaitGroup

	mu      sync.Mutex
	sent    []datagram // by number
	broken  error      // of the TCP connection
	written int64      // bytes of TCP
	echoed  int64
}

// datagram is what became of one.
type datagram struct {
	at              time.Time // when it was sent
	arrived, echoed int       // how often
}

const (
	talkEvery = 20 * time.Millisecond
	talkBytes = 200
	// answerWithin is how late an answer may be, over a network that works, that is waited for.
	answerWithin = time.Second
	// tcpWithin is how long TCP may take to find out that the network works again after it did not for a few seconds.
	tcpWithin = 15 * time.Second
)

// Talk begins a conversation from one namespace to an address in the other one. It ends with [Talk.Stop], or with the lab.
func (l *Lab) Talk(ctx context.Context, from, to *Namespace, addr netip.Addr) (*Talk, error) {
	return l.TalkOf(ctx, from, to, addr, talkBytes)
}

// TalkOf is [Lab.Talk] with datagrams of size bytes without their headers, from 8 to 65,000: they may be as long as packets get on the way, or longer.
func (l *Lab) TalkOf(ctx context.Context, from, to *Namespace, addr netip.Addr, size int) (*Talk, error) {
	k := &Talk{name: fmt.Sprintf("talk of %s with %s by %v", from.name, to.name, addr), size: size, quit: make(chan struct{})}
	err := k.connect(ctx, from, to, addr)
	if err == nil {
		err = l.add(func() { l.talks = append(l.talks, k) })
	}
	if err != nil {
		k.close()
		return nil, fmt.Errorf("%s: %w", k.name, err)
	}
	for _, f := range []func(){k.sendDatagrams, k.echoDatagrams, k.hearDatagrams, k.sendBytes, k.echoBytes, k.hearBytes} {
		k.workers.Go(f)
	}
	return k, nil
}

func (k *Talk) connect(ctx context.Context, from, to *Namespace, addr netip.Addr) error {
	var listener *net.TCPListener
	free := net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))
	err := to.Do(func() (err error) {
		if k.far, err = net.ListenUDP("udp", free); err != nil {
			return err
		}
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	err = from.Do(func() (err error) {
		if k.udp, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(k.far.LocalAddr().String()))); err != nil {
			return err
		}
		d := net.Dialer{KeepAlive: -1} // that a connection is idle is no reason to end it
		k.tcp, err = d.DialContext(ctx, "tcp", listener.Addr().String())
		return err
	})
	if err != nil {
		return err
	}
	k.tcf, err = listener.Accept()
	return err
}

func (k *Talk) sendDatagrams() {
	tick := time.NewTicker(talkEvery)
	defer tick.Stop()
	for {
		k.mu.Lock()
		number := len(k.sent)
		k.sent = append(k.sent, datagram{at: time.Now()})
		k.mu.Unlock()
		// What cannot be sent gets no answer, and is accounted for.
		_, _ = k.udp.Write(binary.BigEndian.AppendUint64(make([]byte, 0, k.size), uint64(number))[:k.size])
		select {
		case <-k.quit:
			return
		case <-tick.C:
		}
	}
}

// count notes something of a datagram by what is in it.
func (k *Talk) count(b []byte, note func(*datagram)) {
	if len(b) != k.size {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if number := binary.BigEndian.Uint64(b); number < uint64(len(k.sent)) {
		note(&k.sent[number])
	}
}

func (k *Talk) echoDatagrams() {
	buf := make([]byte, k.size+1)
	for {
		n, from, err := k.far.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			k.count(buf[:n], func(d *datagram) { d.arrived++ })
			_, _ = k.far.WriteToUDPAddrPort(buf[:n], from)
		}
	}
}

func (k *Talk) hearDatagrams() {
	buf := make([]byte, k.size+1)
	for {
		n, err := k.udp.Read(buf) // may tell of an ICMP error
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			k.count(buf[:n], func(d *datagram) { d.echoed++ })
		}
	}
}

// text returns the bytes that the connection carries from a position on.
func text(at int64, b []byte) {
	for i := range b {
		b[i] = byte((at + int64(i)) % 251)
	}
}

func (k *Talk) sendBytes() {
	tick := time.NewTicker(talkEvery)
	defer tick.Stop()
	buf := make([]byte, talkBytes)
	for {
		k.mu.Lock()
		text(k.written, buf)
		k.written += talkBytes
		k.mu.Unlock()
		if _, err := k.tcp.Write(buf); err != nil {
			k.fail(fmt.Errorf("sending: %w", err))
			return
		}
		select {
		case <-k.quit:
			return
		case <-tick.C:
		}
	}
}

func (k *Talk) echoBytes() {
	if _, err := io.Copy(k.tcf, k.tcf); err != nil {
		k.fail(fmt.Errorf("the other side: %w", err))
	}
}

func (k *Talk) hearBytes() {
	buf, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := k.tcp.Read(buf)
		k.mu.Lock()
		at := k.echoed
		k.echoed += int64(n)
		k.mu.Unlock()
		if text(at, want[:n]); !bytes.Equal(buf[:n], want[:n]) {
			err = fmt.Errorf("other bytes came back than were sent, of the %d from byte %d on", n, at)
		}
		if err != nil {
			k.fail(fmt.Errorf("receiving: %w", err))
			return
		}
	}
}

// fail notes why the connection broke, unless it was ended.
func (k *Talk) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken == nil && !errors.Is(err, net.ErrClosed) {
		k.broken = err
	}
}

// Outage returns the longest time for which nothing that was sent after since was answered: from the moment at which the first
// datagram of such a stretch was sent to that at which the first one was sent that got an answer again, or to now.
func (k *Talk) Outage(since time.Time) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	var longest time.Duration
	var began time.Time
	for _, d := range k.sent {
		switch {
		case d.at.Before(since):
		case d.echoed == 0 && began.IsZero():
			began = d.at
		case d.echoed != 0 && !began.IsZero():
			longest = max(longest, d.at.Sub(began))
			began = time.Time{}
		}
	}
	if !began.IsZero() {
		longest = max(longest, time.Since(began))
	}
	return longest
}

// A Count says what became of datagrams.
type Count struct {
	Sent, Arrived, Answered int // each once
	Copies                  int // that came besides, on either side
}

// Count returns what became of the datagrams that were sent after since, but for those of the last second, whose answer may still come.
func (k *Talk) Count(since time.Time) Count {
	k.mu.Lock()
	defer k.mu.Unlock()
	var c Count
	until := time.Now().Add(-answerWithin)
	for _, d := range k.sent {
		if d.at.Before(since) || d.at.After(until) {
			continue
		}
		c.Sent++
		c.Arrived += min(d.arrived, 1)
		c.Answered += min(d.echoed, 1)
		c.Copies += max(d.arrived-1, 0) + max(d.echoed-max(d.arrived, 1), 0)
	}
	return c
}

// Stop ends the conversation: it sends no more, waits for the answers, and returns why the TCP connection broke, or that not all of its
// bytes came back; nil if they did.
func (k *Talk) Stop() error {
	k.stopping.Do(func() { close(k.quit) })
	deadline := time.Now().Add(tcpWithin)
	for start := time.Now(); ; time.Sleep(talkEvery) {
		k.mu.Lock()
		left, broken := k.written-k.echoed, k.broken
		k.mu.Unlock()
		late := time.Now().After(deadline)
		if broken == nil && left > 0 && !late || time.Since(start) < answerWithin && !k.lastAnswered() {
			continue
		}
		k.end()
		switch {
		case broken != nil:
			return fmt.Errorf("%s: TCP broke: %w", k.name, broken)
		case left > 0:
			return fmt.Errorf("%s: TCP stands still: %d of %d bytes have not come back after %v", k.name, left, k.written, tcpWithin)
		}
		return nil
	}
}

// lastAnswered reports whether the last datagram was answered.
func (k *Talk) lastAnswered() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.sent) > 0 && k.sent[len(k.sent)-1].echoed > 0
}

// end ends all at once.
func (k *Talk) end() {
	k.stopping.Do(func() { close(k.quit) })
	k.close()
	k.workers.Wait()
}

func (k *Talk) close() {
	for _, c := range []io.Closer{k.udp, k.far} {
		if c != (*net.UDPConn)(nil) {
			_ = c.Close()
		}
	}
	for _, c := range []net.Conn{k.tcp, k.tcf} {
		if c != nil {
			_ = c.Close()
		}
	}
}
