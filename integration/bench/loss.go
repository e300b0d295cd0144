// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math"

	"github.com/weftnet/weft/integration/lab"
)

// wireFrame is the longest frame of the network between the hosts, in bytes: 1500 and the Ethernet header.
const wireFrame = 1514

// loss measures one TCP stream while the switch loses frames by chance, in both directions alike. The hosts cut what they
// send to single frames, as a network card would, so that chance picks frames and not runs of them; the switch does not join
// them again.
func (b *bench) loss(c *contender) error {
	for _, h := range b.hosts {
		h.Link().Segmented()
	}
	defer func() {
		b.hosts[1].Link().Lose(0)
		for _, h := range b.hosts {
			h.Link().Whole()
		}
	}()
	var whole float64
	for _, m := range []struct {
		percent   float64
		rate, rel string
	}{{0, loss0, ""}, {1, loss1, loss1Rel}, {5, loss5, loss5Rel}} {
		b.hosts[1].Link().Lose(m.percent / 100) // each frame passes the switch's port to this host once
		before, err := b.sentFrames()
		if err != nil {
			return err
		}
		f, err := stream(b.ctx, c, 1, b.length)
		if err != nil && (m.percent == 0 || !errors.Is(err, errSilent)) { // losing all its probes, a stream may stand still
			return fmt.Errorf("%g%% loss: %w", m.percent, err)
		}
		after, err := b.sentFrames()
		if err != nil {
			return err
		}
		if mean := after.sub(before).mean(); mean > wireFrame {
			return fmt.Errorf("the hosts sent frames of %.0f bytes on average: the link takes more than a wire would", mean)
		}
		c.samples.add(m.rate, f.rate)
		if m.rel == "" {
			whole = f.rate
		} else {
			c.samples.add(m.rel, ratio(f.rate, whole)*100)
		}
	}
	return nil
}

// frames is what a link has carried.
type frames struct{ packets, bytes uint64 }

func (f frames) sub(g frames) frames { return frames{f.packets - g.packets, f.bytes - g.bytes} }

// mean is the mean length of a frame, in bytes.
func (f frames) mean() float64 { return float64(f.bytes) / math.Max(1, float64(f.packets)) }

// sentFrames returns what the first host, which sends the stream, has sent so far.
func (b *bench) sentFrames() (frames, error) { return sentBy(b.hosts[0]) }

func sentBy(h *lab.Host) (frames, error) {
	dev, err := h.Netlink().LinkByName(h.Link().Device())
	if err != nil {
		return frames{}, err
	}
	s := dev.Attrs().Statistics
	return frames{s.TxPackets, s.TxBytes}, nil
}
