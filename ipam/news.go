// SPDX-License-Identifier: Apache-2.0

package ipam

import "github.com/weftnet/weft/ipam/ring"

// NewsKind says what News is about.
type NewsKind uint8

// The kinds of news.
const (
	Granted    NewsKind = iota // this node gave slots to Node, with effect
	Received                   // this node has slots that Node gave
	TookOver                   // this node took over slots of nodes that are gone
	WasRetired                 // Node was declared gone, as this node has just learnt
)

// News is something that has happened to addresses, once. It is durable when it is told; a process that ends between the two
// tells it never.
type News struct {
	Kind       NewsKind
	Node       ring.Owner // 0 for TookOver
	Slots      uint64     // 0 for WasRetired
	Retirement Retirement // of WasRetired
}

// note has something told when the change is current.
func (a *Allocator) note(x *edit, n News) {
	x.after(func() { a.news = append(a.news, n) })
}

// spread tells what has gathered. No lock must be held.
func (a *Allocator) spread(news []News) {
	if a.cfg.OnNews == nil {
		return
	}
	for _, n := range news {
		a.cfg.OnNews(n)
	}
}
