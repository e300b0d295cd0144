// SPDX-License-Identifier: Apache-2.0

package router

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/memberlist"   // want library
	"github.com/weftnet/weft/ipam/ring" // want engine
	"github.com/weftnet/weft/router/tun"
)

const X = 1

var (
	names  = map[int]string{1: "one"}
	count  int
	lock   sync.Mutex            // want global
	wakeup = make(chan struct{}) // want global
	hits   atomic.Int64          // want global
	pool   = &sync.Pool{}        // want global
)

type s struct{ n int }

var held s

func init() {} // want init

func (s) init() {}

func F() {
	count++          // want global
	names[2] = "two" // want global
	held.n = 3       // want global
	p := &count      // want global
	_, _, _, _, _ = p, memberlist.X, ring.X, tun.X, names[1]
	lock.Lock()
	<-wakeup
	hits.Add(1)
	pool.Get()
	{
		count := 1
		count = 2
		_ = &count
		names := map[int]string{}
		names[1] = "fine"
	}
}
