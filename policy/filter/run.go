// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// checkEvery is the time between two looks at the table, should a message about it have been lost.
	checkEvery = 4 * time.Second
	// repairPause is the time between two repairs, if somebody keeps on changing the table.
	repairPause = 100 * time.Millisecond
	// retryEvery is the time between two attempts at what does not work.
	retryEvery = 10 * time.Second
)

// Run keeps the table as it was told to be, cuts connections that are not allowed any more, and hears of denied packets, until ctx ends, which
// is no error. One Run at a time. What does not work is logged, and tried again.
func (f *Filter) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"watching nftables", f.guard},
		{"cutting connections", f.cut},
		{"hearing of denied packets", f.hear},
		{"comparing what an earlier run has left", f.compare},
	} {
		all.Go(func() {
			for ctx.Err() == nil {
				err := part.run(ctx)
				if err == nil || ctx.Err() != nil {
					continue
				}
				f.log.Warn("network policy: "+part.name+" fails; the next attempt is in a few seconds", zap.Error(err))
				pause(ctx, retryEvery)
			}
		})
	}
	all.Wait()
	return nil
}

// pause waits, not longer than ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// listen opens a socket to netfilter that is read as a file, so that closing it ends the reading.
func (f *Filter) listen(groups uint32) (*os.File, error) {
	var file *os.File
	err := inside(f.config.NetNS, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "netlink")
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) // the rest is for the looks
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	})
	if err != nil {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return file, nil
}

// attend reads datagrams of file until ctx ends or read says that it failed. It closes file.
func attend(ctx context.Context, file *os.File, read func() error, during func(failed <-chan error) error) (err error) {
	failed := make(chan error, 1)
	var done sync.WaitGroup
	done.Go(func() { failed <- read() })
	defer func() {
		err = errors.Join(err, file.Close()) // ends the reader
		done.Wait()
	}()
	return during(failed)
}

// guard puts the table right as soon as somebody has changed it.
func (f *Filter) guard(ctx context.Context) error {
	file, err := f.listen(1 << (unix.NFNLGRP_NFTABLES - 1))
	if err != nil {
		return err
	}
	news := make(chan struct{}, 1)
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	return attend(ctx, file, func() error { return f.watch(file, news) }, func(failed <-chan error) error {
		for {
			everything := true
			select {
			case <-ctx.Done():
				return nil
			case err := <-failed:
				return err
			case <-news:
			case <-tick.C:
				everything = false
			}
			lines, err := f.repair(everything)
			if err != nil {
				err = fmt.Errorf("nftables are not as they should be, and could not be put right: %w", err)
				f.log.Warn("the next attempt is in a few seconds", zap.Error(err))
			}
			f.health.judging(err)
			if len(lines) > 0 {
				f.tellRepaired(lines)
				pause(ctx, repairPause)
			}
		}
	})
}

// watch raises news for what others do to the table, until file is closed.
func (f *Filter) watch(file *os.File, news chan<- struct{}) error {
	b := make([]byte, answerSize)
	for {
		n, err := file.Read(b)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS): // some have been dropped
		case err != nil:
			return err
		default:
			about, elements := strange(b[:n], f.conn.port)
			if !about {
				continue
			}
			if elements {
				f.tampered.Store(true)
			}
		}
		select {
		case news <- struct{}{}:
		default:
		}
	}
}

// strange says whether one of the messages is about the table and not of the port, and whether about elements of the bulk. What makes no sense may be.
func strange(b []byte, own uint32) (about, elements bool) {
	ok := messages(b, func(h header, body []byte) bool {
		if h.port == own || h.kind>>8 != unix.NFNL_SUBSYS_NFTABLES || h.kind&0xff == unix.NFT_MSG_NEWGEN {
			return true
		}
		var table, set string
		ok := len(body) >= 4 && attributes(body[4:], func(kind uint16, v []byte) bool {
			switch kind { // the table's is the same in all messages
			case unix.NFTA_SET_ELEM_LIST_TABLE:
				table = stringOf(v)
			case unix.NFTA_SET_ELEM_LIST_SET:
				set = stringOf(v)
			}
			return true
		})
		if ok && (table != Table || body[0] != unix.NFPROTO_INET) {
			return true
		}
		about = true
		switch h.kind & 0xff {
		case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
			elements = elements || bulk(set)
		}
		return ok
	})
	return about || !ok, elements
}

// repair puts the table right if it is not, and says what was wrong. It looks at the elements only if it is to look at everything. After an error
// the next call tries again.
func (f *Filter) repair(everything bool) (lines []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.model == nil {
		return nil, nil
	}
	if f.dirty {
		return nil, f.sync()
	}
	tampered := f.tampered.Swap(false)
	everything = everything || tampered
	if f.untouched() && !everything { // a look without everything may have noted the generation since then
		return nil, nil
	}
	what := skeleton
	if everything {
		what = whole
		if f.digest.count > readable {
			what = small
		}
	}
	have, err := f.conn.look(Table, what)
	if err == nil {
		if lines = f.damage(have, what); len(lines) == 0 && what == small && tampered {
			lines, f.distrust = []string{changed}, true
		}
		if len(lines) == 0 {
			return nil, nil
		}
		err = f.sync()
	}
	if err != nil {
		f.dirty = true // the next look puts it right
		return nil, err
	}
	return lines, nil
}

// untouched says whether nobody has changed nftables, of whatever table, since the last transaction of the Filter or the last look.
func (f *Filter) untouched() bool {
	generation, ok := f.current()
	same := ok && generation == f.generation
	f.generation = generation
	return same
}

// current returns the generation of nftables: each transaction, of whatever table, makes the next one.
func (f *Filter) current() (generation uint32, ok bool) {
	var b buffer
	b.end(b.begin(nft(unix.NFT_MSG_GETGEN), 0, unix.AF_UNSPEC, 0))
	err := f.conn.ask(b, false, func(_ header, body []byte) error {
		return fields(body, func(kind uint16, v []byte) {
			if kind == unix.NFTA_GEN_ID {
				generation, ok = word(v), true
			}
		})
	})
	return generation, ok && err == nil
}

const (
	whose   = "nftables table inet " + Table
	changed = whose + " was changed by somebody; put right"
)

// damage says what somebody has changed, and that it will be put right. Have is as much of the table as is said.
func (f *Filter) damage(have *contents, what extent) []string {
	switch {
	case have == nil && f.phase == "":
		return nil
	case have == nil:
		return []string{whose + " was removed by somebody; made again"}
	case f.phase == "":
		return []string{whose + " was made by somebody; removed"}
	}
	if !slices.Equal(have.skeleton, f.layout.describe()) || !f.planted(have) || what > skeleton && (have.phase != f.phase || len(have.broken) > 0) {
		return []string{changed}
	}
	if what == skeleton {
		return nil
	}
	others, lost, added := 0, 0, 0
	for _, m := range f.model.difference(have, what == whole).sets {
		for _, c := range m {
			switch {
			case c.old == nil:
				lost++
			case c.now == nil:
				added++
			default:
				others++
			}
		}
	}
	if others+lost+added == 0 {
		return nil
	}
	return []string{fmt.Sprintf("elements of %s were changed by somebody: %d lost, %d added, %d others; put right", whose, lost, added, others)}
}

// planted says whether the chains of tables are there.
func (f *Filter) planted(have *contents) bool {
	if have.broken[setLeaves] || len(have.leaves) != len(f.model.leaves) {
		return false
	}
	for name := range f.model.leaves {
		if have.leaves[name] == nil {
			return false
		}
	}
	return true
}
