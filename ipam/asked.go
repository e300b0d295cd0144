// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"time"

	"github.com/weftnet/weft/ipam/ring"
)

// maxOpen is how many nodes are asked the same at a time.
const maxOpen = 32

// asked is whom the same was asked, when last and how often.
type asked map[ring.Owner]inquiry

type inquiry struct {
	at    time.Time
	tries int
}

// ask asks those of a list who have not answered, in its order, so that few questions are open at a time, and the rarer the
// longer somebody has not answered; and those who have answered now and then again, for the answer may have lost its worth.
// What is to be sent is appended to out. question is called once at most, and encoded once, for it may be large.
func (q asked) ask(list []ring.Owner, answers map[ring.Owner]ring.Set, now time.Time, question func() *message, out *[]parcel) {
	var msg []byte
	open := 0
	for _, o := range list {
		last, before := q[o]
		wait := min(retry<<min(last.tries, 4), abstain)
		if _, ok := answers[o]; ok {
			wait = abstain
		} else if before && now.Sub(last.at) < retry {
			open++
		}
		if before && now.Sub(last.at) < wait {
			continue
		}
		if open >= maxOpen {
			return
		}
		if msg == nil {
			msg = question().encode()
		}
		*out = append(*out, parcel{o, msg})
		q[o] = inquiry{now, last.tries + 1}
		open++
	}
}
