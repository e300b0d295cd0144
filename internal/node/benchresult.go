// SPDX-License-Identifier: Apache-2.0

package node

import (
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/bench"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router"
	"github.com/weftnet/weft/router/session"
)

// describe begins a result with what is known beforehand.
func (b *benches) describe(to mesh.Node, ask bench.Message, p bench.Params) api.BenchResult {
	r := api.BenchResult{
		From: api.BenchNode{Name: b.n.cfg.Name, NodeID: b.n.state.identity.ID.String(), Build: b.n.cfg.Version, Address: ask.From},
		To:   api.BenchNode{Name: to.Name, NodeID: to.ID.String(), Build: to.Build},
		MTU:  b.n.mtu, Started: time.Now(), Time: p.Time.Seconds(), Bytes: p.Bytes,
		TCP: []api.BenchTCP{}, Packets: []api.BenchUDP{},
	}
	if theirs := int(to.MTU); theirs != 0 {
		r.MTU = min(r.MTU, theirs)
	}
	return r
}

// addPath adds which way the packets went.
func (b *benches) addPath(r *api.BenchResult, to mesh.Node) {
	for _, s := range b.e.plane.PeerStats() {
		if s.Key == session.PublicKey(to.PublicKey) {
			i := pathOf(s)
			r.Path = i.path
			if i.path == pathRelay {
				r.Via = namesOf(i.via, shownNames(b.e.mesh.Nodes()))
			}
			if s.Confirmed {
				r.PathMTU = s.MTU
			}
			if s.State != router.Idle {
				r.Suite = s.Suite.String()
			}
		}
	}
}

func addFigures(r *api.BenchResult, out bench.Outcome) {
	r.Elapsed, r.Strangers = out.Elapsed.Seconds(), out.Strangers
	for _, f := range out.Figures {
		direction := "there"
		if f.Back {
			direction = "back"
		}
		cpu := api.BenchCPU{
			From: bench.PerGbit(f.Here.Process, f.Bytes), FromEngine: bench.PerGbit(f.Here.Engine, f.Bytes),
			To: bench.PerGbit(f.There.Process, f.Bytes), ToEngine: bench.PerGbit(f.There.Engine, f.Bytes),
		}
		switch f.Kind {
		case bench.Latency:
			r.Latency = latencyOf(f)
		case bench.Streams:
			r.TCP = append(r.TCP, api.BenchTCP{
				Direction: direction, Streams: f.Streams, Bytes: f.Bytes, Seconds: f.Elapsed.Seconds(),
				Bits: f.BitsPerSecond(), CPU: cpu, Capped: f.Capped,
			})
		case bench.Packets:
			r.Packets = append(r.Packets, api.BenchUDP{
				Direction: direction, Payload: bench.PacketSize, Sent: f.Sent, Delivered: f.Delivered, Seconds: f.Elapsed.Seconds(),
				Rate: f.PacketsPerSecond(), Loss: 100 * f.Loss(), CPU: cpu, Capped: f.Capped,
			})
		}
	}
}

func latencyOf(f bench.Figures) api.BenchLatency {
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	return api.BenchLatency{Samples: f.Samples, P50: us(f.P50), P99: us(f.P99), Max: us(f.Max)}
}

func progressOf(p bench.Progress) api.BenchProgress {
	a := api.BenchProgress{
		Phase: p.Phase.String(), Step: p.Step, Steps: p.Steps, Elapsed: p.Elapsed.Seconds(), Done: p.Done != nil,
	}
	f := bench.Figures{Phase: p.Phase, Bytes: p.Bytes, Delivered: p.Packets, Samples: int(p.Samples), Elapsed: p.Elapsed}
	if p.Done != nil {
		f = *p.Done
	}
	switch p.Phase.Kind {
	case bench.Latency:
		l := latencyOf(f)
		a.Latency = &l
	case bench.Streams:
		a.Bits = f.BitsPerSecond()
	case bench.Packets:
		a.Rate = f.PacketsPerSecond()
		if p.Done != nil {
			loss := 100 * f.Loss()
			a.Loss = &loss
		}
	}
	return a
}
