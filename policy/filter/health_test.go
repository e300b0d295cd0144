// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// healthy waits for a health.
func healthy(t *testing.T, f *Filter, what string, ok func(h Health) bool) (h Health) {
	t.Helper()
	for end := time.After(2 * patience); ; {
		select {
		case h = <-f.Health():
			if ok(h) {
				return h
			}
		case <-end:
			t.Fatalf("not told in time: %s; last %+v", what, h)
		}
	}
}

// A table that somebody else owns cannot be put right, and that is told, each time, until it can.
func TestTellsOfFailedRepair(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	f := newFilter(t, s)
	must(t, f.Replace(sample()))
	run(t, f)
	c, err := dial(s.fd, unix.NETLINK_NETFILTER, 0)
	must(t, err)
	defer c.close()
	var b buffer
	b.composeRemoval(Table, newContents())
	at := b.begin(nft(unix.NFT_MSG_NEWTABLE), unix.NLM_F_CREATE, unix.NFPROTO_INET, 0)
	b.text(unix.NFTA_TABLE_NAME, Table)
	const owner = 2 // NFT_TABLE_F_OWNER
	b.word(unix.NFTA_TABLE_FLAGS, owner)
	b.end(at)
	must(t, c.commit(b))
	for range 2 {
		h := healthy(t, f, "a repair fails", func(h Health) bool { return h.Judging != nil })
		if !strings.HasPrefix(h.Judging.Error(), "nftables are not as they should be, and could not be put right: network policy: ") {
			t.Error(h.Judging)
		}
	}
	c.close() // the table goes with its owner
	healthy(t, f, "it is repaired", func(h Health) bool { return h.Judging == nil })
	f.mu.Lock()
	defer f.mu.Unlock()
	have, err := f.conn.look(Table, whole)
	must(t, err)
	if lines := f.damage(have, whole); len(lines) > 0 {
		t.Error(lines)
	}
}

// That connections cannot be cut is told, soon tried again, and told when they can.
func TestTellsOfUncut(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	f := newFilter(t, s)
	must(t, f.Replace(sample()))
	file, err := os.Open(os.DevNull)
	must(t, err)
	defer func() { must(t, file.Close()) }()
	cut := func(netns int, until func(h Health) bool, what string) {
		ctx, cancel := context.WithCancel(t.Context())
		f.config.NetNS = netns
		done := make(chan error, 1)
		go func() { done <- f.cut(ctx) }()
		healthy(t, f, what, until)
		cancel()
		must(t, <-done)
	}
	cut(int(file.Fd()), func(h Health) bool { return h.Cutting != nil }, "a walk fails")
	cut(s.fd, func(h Health) bool { return h == Health{} }, "a walk succeeds")
	f.config.NetNS = int(file.Fd())
	f.tryCutting()
	healthy(t, f, "it is not supported", func(h Health) bool { return h.Cutting != nil })
	f.config.NetNS = s.fd
	if err := f.cuts(); err != nil {
		t.Error(err)
	}
	must(t, f.Support())
}

// What the kernel lacks to cut connections is told until it does not lack it any more, however many walks have nothing to cut.
func TestTellsOfLackUntilItEnds(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	f := newFilter(t, s)
	must(t, f.Replace(sample()))
	const inTheWay = CutTable + "-probe"
	s.nft(t, "add table inet "+inTheWay)
	s.nft(t, "add set inet "+inTheWay+" flows4 { type ipv4_addr; }")
	must(t, f.Support())
	want := "making nftables table inet weft-policy-cut, by which they stay cut: "
	h := healthy(t, f, "it is not supported", func(h Health) bool { return h.Cutting != nil })
	if !strings.HasPrefix(h.Cutting.Error(), want) {
		t.Errorf("%v, want %s", h.Cutting, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.cut(ctx) }()
	select {
	case h := <-f.Health():
		t.Errorf("a walk without anything to cut tells %+v", h)
	case <-time.After(cutAgain + time.Second):
	}
	s.nft(t, "delete table inet "+inTheWay)
	f.news()
	healthy(t, f, "it is supported", func(h Health) bool { return h == Health{} })
	cancel()
	must(t, <-done)
}

func TestUnread(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]string{
		unix.EINVAL: "reading connections: invalid argument; use a kernel with CONFIG_NF_CT_NETLINK",
		unix.EBUSY:  "reading connections: device or resource busy; the next attempt follows",
		unix.EPERM:  "reading connections: operation not permitted; CAP_NET_ADMIN is needed",
	} {
		if got := unread("reading connections", err).Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
