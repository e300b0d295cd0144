// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"context"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// watchBuffer is how many bytes of news of devices may wait.
	watchBuffer = 4 << 20
	// watchGap is the shortest time between two attempts to watch devices.
	watchGap = 100 * time.Millisecond
)

// watch hears of devices until ctx ends. While it cannot, and where it may have missed something, nothing counts that was decided before.
func (b *Bypass) watch(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		err := b.hear(ctx)
		if ctx.Err() != nil {
			return
		}
		why := "watching devices has ended; it begins again at once"
		if err != nil {
			why = "devices cannot be watched: " + err.Error()
		}
		b.settle(reasonDevices, why)
		pause(ctx, watchGap-time.Since(began))
	}
}

// hear hears of devices until ctx ends or the kernel has more to tell than there is room for.
func (b *Bypass) hear(ctx context.Context) error {
	events, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	options := netlink.LinkSubscribeOptions{
		ErrorCallback: func(error) { b.raise() }, ReceiveBufferSize: b.newsRoom, ReceiveBufferForceSize: true,
	}
	if b.ns != here {
		h := netns.NsHandle(b.ns)
		options.Namespace = &h
	}
	if err := netlink.LinkSubscribeWithOptions(events, done, options); err != nil {
		return err
	}
	defer func() {
		close(done)
		for range events { // until its goroutine has ended
		}
	}()
	b.heard.Add(1)
	b.settle(reasonDevices, "")
	b.Forget()
	b.raise()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-events:
			if !ok {
				return nil
			}
			b.news(e)
		}
	}
}

// news hears of a device. What was decided for one that is gone, or down, does not count any more. One that is to be served is looked at soon.
func (b *Bypass) news(e netlink.LinkUpdate) {
	a := e.Attrs()
	b.mu.Lock()
	_, served := b.links[a.Index]
	wanted := b.ours(a)
	b.mu.Unlock()
	gone := e.Header.Type == unix.RTM_DELLINK
	if served && (gone || a.Flags&net.FlagUp == 0) {
		b.Forget()
	}
	if gone && served || wanted && !served && !gone {
		b.raise()
	}
}
