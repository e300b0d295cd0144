// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"cmp"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Health is what [Filter.Run] cannot do. It tries again by itself.
type Health struct {
	Judging error // the kernel has not what it was told to have, and that could not be put right; nil: it has, for all that is known
	Cutting error // connections that are not allowed any more go on; nil: they are cut
}

// condition is the health as it was told last. It is made by New.
type condition struct {
	mu     sync.Mutex
	is     Health
	lack   error       // what the probe of cutting has found last
	walked error       // how the last attempt to cut has ended
	news   chan Health // capacity 1
}

// Health returns how Run fares, whenever that changes, and again whenever it has failed again to judge. What nobody has read when there is something newer
// is not told any more. The channel is the same for all who ask, and is never closed.
func (f *Filter) Health() <-chan Health { return f.health.news }

// judging and cutting take down how an attempt has ended.
func (c *condition) judging(err error) { c.tell(func(h *Health) { h.Judging = err }, err != nil) }

func (c *condition) cutting(err error) {
	c.tell(func(h *Health) { c.walked, h.Cutting = err, cmp.Or(err, c.lack) }, false)
}

// probed takes down what the kernel lacks to cut connections, nil if nothing: that it had nothing to do takes nothing back. It says whether that is new.
func (c *condition) probed(err error) (news bool) {
	c.tell(func(h *Health) {
		news = fmt.Sprint(err) != fmt.Sprint(c.lack)
		c.lack, h.Cutting = err, cmp.Or(c.walked, err)
	}, false)
	return news
}

// lacking says whether the last probe has found that the kernel lacks something.
func (c *condition) lacking() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lack != nil
}

func (c *condition) tell(change func(h *Health), always bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := fmt.Sprint(c.is)
	if change(&c.is); fmt.Sprint(c.is) == was && !always {
		return
	}
	select {
	case <-c.news: // it is out of date
	default:
	}
	c.news <- c.is
}

// tryCutting tells whether connections can be cut here.
func (f *Filter) tryCutting() {
	err := f.cuts()
	if news := f.health.probed(err); news && err != nil {
		f.log.Warn("network policy: connections that are not allowed any more cannot be cut on this host", zap.Error(err))
	}
}

// cuts says what the kernel lacks to cut connections, nil if there is all of it.
func (f *Filter) cuts() error {
	c, err := dial(f.config.NetNS, unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return err
	}
	defer c.close()
	var b buffer
	b.end(b.begin(conntrack(ctStats), 0, unix.AF_UNSPEC, 0))
	if err := c.ask(b, false, func(header, []byte) error { return nil }); err != nil {
		return unread("reading how many connections there are", err)
	}
	b = nil
	const table = CutTable + "-probe"
	b.composeBarredTable(table, true)
	b.composeRemoval(table, newContents())
	if err := c.commit(b); err != nil {
		return fmt.Errorf("making nftables table inet %s, by which they stay cut: %w", CutTable, err)
	}
	return nil
}

// unread says why connection tracking could not be read, and what to do.
func unread(doing string, err error) error {
	hint := "the next attempt follows"
	switch {
	case lacks(err):
		hint = "use a kernel with CONFIG_NF_CT_NETLINK"
	case errors.Is(err, unix.EPERM):
		hint = "CAP_NET_ADMIN is needed"
	}
	return fmt.Errorf("%s: %w; %s", doing, err, hint)
}
