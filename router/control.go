// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/router/envelope"
)

// Control datagrams (package envelope): gossip, which goes to Config.Control, the pings by which ways are found, and the
// answers to probes of kernel paths, which go to Config.OnProof. They come to the
// control socket, whose goroutine handles them, or to a shard.

// ControlType is the first byte of control datagrams. No message of a session begins with it.
const ControlType = envelope.Type

// MaxControl is how many bytes SendControl takes at most.
const MaxControl = envelope.MaxBody

// Keys are the keys of the mesh that control datagrams are sealed with.
type Keys struct {
	Envelope envelope.Keyring
}

// ErrNoWay says that a control datagram has nowhere to go: no way to the node is known, and no address was given.
var ErrNoWay = errors.New("no way to it is known")

// Addr is where a control datagram goes to or came from: a node, by whichever way there is to it, or, while none is known,
// an address of the network below.
type Addr struct {
	// Node is the ID of the node; 0: not known. Where something came from it is what the sender says; any holder of the token can name another.
	Node uint64
	// Addr is where something came from, not valid if relays have brought it; or where it is sent if Node is 0 or no way to it is known.
	Addr netip.AddrPort
}

// String returns both, as far as they are known.
func (a Addr) String() string {
	switch {
	case a.Node == 0:
		return a.Addr.String()
	case !a.Addr.IsValid():
		return fmt.Sprintf("node %016x", a.Node)
	}
	return fmt.Sprintf("node %016x, %v", a.Node, a.Addr)
}

// initControl makes what control datagrams need. Called by New.
func (r *Router) initControl() error {
	r.SetKeys(r.config.Keys)
	r.ways = &r.reaching
	r.relayBudget.init(r.config.RelayLimit)
	if c := r.config.ControlConn; c != nil {
		r.apart = newApart(r, c)
	}
	r.sealed.New = func() any { return new([envelope.MaxSize]byte) }
	return r.reaching.init(r)
}

// sieve is what a ControlConn may have besides, as *underlay.Conn has: then the kernel drops what is sealed with a key that we do not have before
// anybody has to look at it, and a flood from outside of the mesh displaces no gossip.
type sieve interface {
	// Require lets nothing in but datagrams with one of the words, big endian, at the offset.
	Require(offset int, words []uint32) error
	// Lost returns how many were dropped therefore, or because there was no room.
	Lost() uint32
}

// SetKeys replaces the keys. Datagrams under way are opened with the new ones.
func (r *Router) SetKeys(k Keys) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys.Store(&k)
	if s, ok := r.config.ControlConn.(sieve); ok {
		if err := s.Require(envelope.KeyOffset, k.Envelope.IDs()); err != nil {
			r.config.Log.Warn("gossip that is sealed with a new token may not come in; restart weft if nodes fail", zap.Error(err))
		}
	}
}

// SendControl sends b, of at most MaxControl bytes, to the mesh's part of another host: to the node by its way, or else to the address. An
// error says why this one datagram could not leave; none does not mean that it arrived: what is for this node itself, by its ID, does not. b is
// not kept. It does not block.
func (r *Router) SendControl(b []byte, to Addr) error {
	if to.Node != 0 && to.Node == r.config.ID { // the mesh may ask for a process that was here before
		r.controlStats.drop(DropControlSource)
		return nil
	}
	now := r.config.Now()
	by, ok := way{}, false
	if to.Node != 0 {
		by, ok = r.ways.use(to.Node, now)
	}
	if !ok {
		by = way{Addr: to.Addr}
	}
	if err := r.sendControl(envelope.KindMesh, to.Node, by, b, now); err != nil {
		return fmt.Errorf("sending a gossip packet to %v: %w", to, err)
	}
	return nil
}

// SendProof answers a probe that has come from a node by a kernel path: it tells the node the echo, by whichever way the router has to it, sealed. An error says
// why the answer could not leave; none does not mean that it arrived. It does not block.
func (r *Router) SendProof(node, echo uint64) error {
	if err := r.sendEcho(envelope.KindProof, node, echo); err != nil {
		return fmt.Errorf("answering a probe of node %016x: %w", node, err)
	}
	r.controlStats.proofsTx.Add(1)
	return nil
}

// SendAsk asks a node, as SendProof answers it, for the answer that a probe would have got: none tells that nobody there answers probes, by whichever path
// they come.
func (r *Router) SendAsk(node, echo uint64) error {
	if err := r.sendEcho(envelope.KindAsk, node, echo); err != nil {
		return fmt.Errorf("asking node %016x: %w", node, err)
	}
	return nil
}

func (r *Router) sendEcho(kind envelope.Kind, node, echo uint64) error {
	now := r.config.Now()
	if node == 0 || node == r.config.ID {
		return ErrNoWay
	}
	by, ok := r.ways.use(node, now)
	if !ok {
		return ErrNoWay
	}
	return r.sendControl(kind, node, by, envelope.Proof{Echo: echo}.Append(nil), now)
}

// Examine tells that a node did not answer by its present way, so that another one is looked for.
func (r *Router) Examine(node uint64) { r.ways.examine(node, r.config.Now()) }

// sendControl seals a body and sends it to a node, 0 if it is not known, by the given way. It makes the tag of a body that has one.
func (r *Router) sendControl(kind envelope.Kind, to uint64, by way, body []byte, now time.Time) error {
	first := by.Addr
	if by.N > 0 {
		var ok bool
		if first, ok = r.ways.direct(by.Relays[0], now); !ok {
			return ErrNoWay
		}
	}
	if !first.IsValid() {
		return ErrNoWay
	}
	buf := r.sealed.Get().(*[envelope.MaxSize]byte)
	defer r.sealed.Put(buf)
	h := envelope.Header{Kind: kind, Source: r.config.ID, Destination: to, N: by.N, Relays: by.Relays}
	if kind != envelope.KindMesh {
		pair, _ := r.pairWith(to)
		pair.Put(&h, body)
	}
	msg, err := r.keys.Load().Envelope.Seal(buf[:0], h, body, r.config.Rand)
	if err != nil {
		return err
	}
	if err := r.controlConn().SendTo(msg, first, 0); err != nil {
		return err
	}
	r.controlStats.controlTx.Add(1)
	return nil
}

// controlConn returns the socket by which control datagrams leave.
func (r *Router) controlConn() Conn {
	if c := r.config.ControlConn; c != nil {
		return c
	}
	return r.config.Conns[0]
}

// controller handles control datagrams for one goroutine.
type controller struct {
	r     *Router
	stats *counters
	body  [envelope.MaxBody]byte
	reply [envelope.MaxBody]byte
}

// handle handles a control datagram, which it may change. Until it is opened it causes nothing but a count.
func (c *controller) handle(b []byte, from netip.AddrPort, now time.Time) {
	r := c.r
	h, err := envelope.Parse(b)
	if err != nil {
		c.stats.drop(controlReason(err))
		return
	}
	switch next := h.Next(); {
	case h.Source == r.config.ID:
		c.stats.drop(DropControlSource)
		return
	case next != r.config.ID && next != 0:
		c.stats.drop(DropControlDestination)
		return
	case !h.Final() && r.config.NoRelay:
		c.stats.drop(DropControlRelay)
		return
	}
	h, body, err := r.keys.Load().Envelope.Open(c.body[:0], b)
	if err != nil {
		c.stats.drop(controlReason(err))
		return
	}
	if !h.Final() {
		c.relay(b, now)
		return
	}
	back := way{Addr: from}
	if h.N > 0 {
		back = way{Relays: h.Reversed(), N: h.N}
	}
	c.take(h, body, back, now)
}

// relay passes a datagram on whose next hop we are. It goes to a node that we reach directly, or nowhere.
func (c *controller) relay(b []byte, now time.Time) {
	r := c.r
	envelope.Advance(b)
	h, err := envelope.Parse(b)
	if err != nil {
		c.stats.drop(controlReason(err))
		return
	}
	to, ok := r.ways.direct(h.Next(), now)
	if !ok {
		c.stats.drop(DropControlRelay)
		return
	}
	if !r.relayBudget.take(now, len(b), true) {
		c.stats.drop(DropControlLimit)
		return
	}
	if err := r.controlConn().SendTo(b, to, 0); err != nil {
		c.stats.drop(DropSend)
		return
	}
	c.stats.controlRelayed.Add(1)
}

// take handles a datagram that is for this host.
func (c *controller) take(h envelope.Header, body []byte, back way, now time.Time) {
	r := c.r
	c.stats.controlRx.Add(1)
	made := r.madeBy(&h, body)
	if made == byAnother {
		c.stats.drop(DropControlForged)
		return
	}
	r.ways.heard(h.Source, back, made == byNode, now)
	switch h.Kind {
	case envelope.KindMesh:
		if r.config.Control == nil {
			c.stats.drop(DropControl)
			return
		}
		r.config.Control(body, Addr{Node: h.Source, Addr: back.Addr}, now)
	case envelope.KindPing:
		p, err := envelope.ParsePing(body)
		if err != nil {
			c.stats.drop(controlReason(err))
			return
		}
		pong := envelope.Pong{Echo: p.Echo, Seen: back.Addr, Boot: r.config.Boot}
		if err := r.sendControl(envelope.KindPong, h.Source, back, pong.Append(c.reply[:0]), now); err != nil {
			c.stats.drop(DropSend)
		}
	case envelope.KindPong:
		p, err := envelope.ParsePong(body)
		if err != nil {
			c.stats.drop(controlReason(err))
			return
		}
		r.ways.ponged(h.Source, back, p, made == byNode, now)
	case envelope.KindPunch:
		p, err := envelope.ParsePunch(body)
		if err != nil {
			c.stats.drop(controlReason(err))
			return
		}
		if made == byNode {
			r.ways.punched(h.Source, p, now)
		}
	case envelope.KindProof, envelope.KindAsk:
		p, err := envelope.ParseProof(body)
		if err != nil {
			c.stats.drop(controlReason(err))
			return
		}
		tell := r.config.OnProof
		if h.Kind == envelope.KindAsk {
			tell = r.config.OnAsk
		}
		if tell == nil {
			c.stats.drop(DropControl)
			return
		}
		if h.Kind == envelope.KindProof {
			c.stats.proofsRx.Add(1)
		}
		tell(h.Source, p.Echo, now)
	}
}

// controlReason maps what package envelope says of a datagram to what is counted.
func controlReason(err error) Reason {
	switch {
	case errors.Is(err, envelope.ErrKey):
		return DropControlKey
	case errors.Is(err, envelope.ErrAuth):
		return DropControlAuth
	}
	return DropControlForm
}
