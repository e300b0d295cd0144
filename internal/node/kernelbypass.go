// SPDX-License-Identifier: Apache-2.0

package node

import (
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/weftnet/weft/router/fastpath"
)

// Packets of established flows go around the host's stack, where there are kernel paths and the kernel can do it. Whatever changes routes and rules pauses
// it meanwhile, so that nothing is repeated that was decided before.

// findBypass finds out whether it is possible.
func (k *kernelPaths) findBypass() {
	switch {
	case !k.on():
		k.through = "there are no kernel paths"
		return
	case k.n.cfg.Kernel.NoBypass:
		k.through = "launched with --no-bypass"
		return
	}
	b, err := k.n.sys.bypass(k.e.universe.Prefixes(), k.log)
	if err != nil {
		k.through = oneLine(err)
		k.log.Info("packets of established flows go through the host's stack", zap.String("why", k.through))
		return
	}
	k.bypass = b
	k.n.flows.serve(b)
}

// pauseBypass has all packets go through the stack until resume.
func (k *kernelPaths) pauseBypass() (resume func()) {
	if k.bypass == nil {
		return func() {}
	}
	return k.bypass.Pause()
}

// flows is what others tell of the flows that go around the host's stack, from any goroutine. The zero value is ready for use.
type flows struct {
	mu      sync.Mutex
	bypass  flowBypass // nil: none
	inForce bool       // the network policies
	resume  func()     // ends the pause as long as they are not; nil: there is none
}

// serve hands over who takes them around it.
func (f *flows) serve(b flowBypass) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bypass, f.resume = b, nil
	if !f.inForce {
		f.resume = b.Pause()
	}
}

// forget lets nothing count any more that the stack has decided so far.
func (f *flows) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bypass != nil {
		f.bypass.Forget()
	}
}

// policed says whether network policies are in force as they should be. Nothing goes around the stack while they are not: it is not known what the stack lets
// pass then.
func (f *flows) policed(are bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inForce = are
	switch {
	case f.bypass == nil:
	case !are && f.resume == nil:
		f.resume = f.bypass.Pause()
	case are && f.resume != nil:
		f.resume()
		f.resume = nil
	}
}

// held says whether nothing goes around the stack as policies are not in force.
func (f *flows) held() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.resume != nil
}

// done says that nobody takes them around it any more.
func (f *flows) done() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bypass, f.resume = nil, nil
}

// serveBypass names the devices by which peers are reached without a tunnel, and those by which tunnels leave the host; the others are known by their groups.
func (k *kernelPaths) serveBypass() {
	if k.bypass == nil {
		return
	}
	var devices, tunnels []string
	for _, p := range k.desired.Peers {
		if p.Path == fastpath.Direct && !slices.Contains(devices, p.Device) {
			devices = append(devices, p.Device)
		}
	}
	for i := range k.candidates {
		c := &k.candidates[i]
		w, ok := c.Way(fastpath.VXLAN)
		if ok && k.machine.Status(c.ID).Path == fastpath.VXLAN && w.Remote.Addr().Is4() && !slices.Contains(tunnels, w.Link) {
			tunnels = append(tunnels, w.Link)
		}
	}
	k.bypass.Serve(devices, tunnels)
}

// removeBypass has all packets go through the stack, for good: kernel paths go.
func (k *kernelPaths) removeBypass() {
	if k.bypass != nil {
		k.bypass.Remove()
	}
}

// closeBypass takes it off the host, once the paths are gone: that takes tens of milliseconds for each device.
func (k *kernelPaths) closeBypass() {
	if k.bypass != nil {
		k.n.flows.done()
		k.bypass.Close()
	}
}

// bypassState is why packets of established flows go through the stack; "" if they do not.
func (k *kernelPaths) bypassState() string {
	switch {
	case k.bypass == nil:
		return k.through
	case !k.on():
		return "there are no kernel paths"
	case k.n.flows.held():
		return "the network policies are not known to be in force"
	}
	return k.bypass.State()
}
