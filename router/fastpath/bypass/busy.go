// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// stirEvery is how often it is looked which devices carry something.
const stirEvery = 250 * time.Millisecond

// worth says whether a device carries enough to be served, or has it waited for. b.mu is held.
func (b *Bypass) worth(name string) bool {
	if b.config.Busy == 0 || b.busy[name] {
		delete(b.waiting, name)
		delete(b.busy, name)
		return true
	}
	if _, there := b.waiting[name]; !there {
		b.waiting[name] = ^uint64(0) // not known
	}
	return false
}

// stir has devices served that begin to carry something, until ctx ends.
func (b *Bypass) stir(ctx context.Context) {
	if b.config.Busy == 0 {
		return
	}
	tick := time.NewTicker(stirEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b.mu.Lock()
		none := len(b.waiting) == 0
		b.mu.Unlock()
		if none {
			continue
		}
		var text []byte
		err := b.ns.run(func() (err error) {
			text, err = os.ReadFile("/proc/thread-self/net/dev")
			return err
		})
		if err == nil && b.compare(packets(string(text))) { // what cannot be read now is read next time
			b.raise()
		}
	}
}

// compare takes note of how many packets devices have carried, and says whether one has become busy. What is not there any more is not waited for.
func (b *Bypass) compare(now map[string]uint64) (some bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, before := range b.waiting {
		n, there := now[name]
		switch {
		case !there:
			delete(b.waiting, name)
			continue
		case n >= before && n-before >= b.config.Busy:
			b.busy[name], some = true, true
		}
		b.waiting[name] = n
	}
	for name := range b.busy {
		if _, there := b.waiting[name]; !there {
			delete(b.busy, name)
		}
	}
	return some
}

// packets reads how many packets devices have carried, both ways.
func packets(text string) map[string]uint64 {
	counts := map[string]uint64{}
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 10 {
			continue
		}
		var in, out uint64
		if _, err := fmt.Sscan(fields[1]+" "+fields[9], &in, &out); err == nil {
			counts[strings.TrimSpace(name)] = in + out
		}
	}
	return counts
}
