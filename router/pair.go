// SPDX-License-Identifier: Apache-2.0

package router

import "github.com/weftnet/weft/router/envelope"

// Who has made a ping, a pong or a punch. Their seal is that of any member; the tag in them is that of one pair of nodes, and made with their own keys. So
// nobody answers pings for another, and nobody has others ping in the name of another.

// maker is who has made a control datagram.
type maker uint8

const (
	byMember  maker = iota // anybody with the token: it has no tag, or not one that this host could check
	byNode                 // the node that it names as its source
	byAnother              // not that node
)

// madeBy tells who has made a datagram that has opened. A tag of a node that is not known cannot be checked, and a pong without one is from a node that
// does not know us.
func (r *Router) madeBy(h *envelope.Header, body []byte) maker {
	if h.Kind == envelope.KindMesh || len(body) < envelope.TagSize {
		return byMember
	}
	if h.Kind == envelope.KindPong && envelope.Tag(body[len(body)-envelope.TagSize:]) == (envelope.Tag{}) {
		return byMember
	}
	pair, known := r.pairWith(h.Source)
	switch {
	case !known:
		return byMember
	case pair.Check(h, body):
		return byNode
	}
	return byAnother
}

// pairWith returns what makes and checks the tags between this host and a node, and whether there is any: the node is known.
func (r *Router) pairWith(node uint64) (envelope.Pair, bool) {
	p := r.current.Load().byID[node]
	if p == nil {
		return envelope.Pair{}, false
	}
	if pair := p.pair.Load(); pair != nil {
		return *pair, true
	}
	secret, err := p.sess.Shared(envelope.PairLabel)
	if err != nil {
		return envelope.Pair{}, false // not with a key that package session has taken
	}
	pair := envelope.NewPair(secret)
	p.pair.Store(&pair)
	return pair, true
}
