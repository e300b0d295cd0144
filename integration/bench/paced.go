// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"math"
	"time"
)

const (
	pacedProbes = 7    // of one search
	pacedLoss   = 0.01 // share that may be lost
	pacedOffer  = 0.95 // share of the rate that a sender must manage
)

// paced searches for the highest rate at which less than 1% of the datagrams are lost, by halving. The sender wakes up every
// 100 µs and sends what is due.
func (b *bench) paced(c *contender) error {
	for _, m := range []struct {
		bytes int
		key   string
	}{{shortBytes, pacedShort}, {longBytes, pacedLong}} {
		length := max(b.length/5, 100*time.Millisecond)
		rate, err := search(func(rate float64) (datagrams, error) { return udp(b.ctx, c, m.bytes, rate, length) })
		if err != nil {
			return err
		}
		c.samples.add(m.key, rate/1000)
	}
	return nil
}

// search returns the highest rate of datagrams a second that passed when it was tried; 0 if none did.
func search(try func(rate float64) (datagrams, error)) (float64, error) {
	open, err := try(0)
	if err != nil {
		return 0, err
	}
	low, high, best := open.rate/8, open.rate*4, 0.0 // 32 times: seven halvings leave 3%
	for range pacedProbes {
		rate := math.Sqrt(low * high)
		d, err := try(rate)
		switch {
		case errors.Is(err, errNothing):
			high = rate
		case err != nil:
			return 0, err
		case d.loss < pacedLoss && d.offered >= pacedOffer*rate:
			low, best = rate, max(best, d.offered*(1-d.loss))
		default:
			high = rate
		}
	}
	return best, nil
}
