// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// A table with a bulk that is not read is taken over by its digest, which says what its maker has put into it, not what others have made of it since then, as
// while no daemon ran. So the bulk is compared afterwards, beside everything else: the kernel is asked for each element by its key, and for how many
// there are. Linux before 6.16 does not say how many: there, what others have added is not found.

const (
	// askAtOnce is for how many elements the kernel is asked at once: the answers have to fit into the socket's buffer.
	askAtOnce = 64
	// compareAgain is how long after a change a comparison that it has disturbed goes on.
	compareAgain = 200 * time.Millisecond
)

// errOther is that the kernel has something else than what was asked for.
var errOther = errors.New("the kernel has something else")

// adopted has the bulk compared, which was taken over by its digest.
func (f *Filter) adopted() {
	select {
	case f.inherited <- struct{}{}:
	default:
	}
}

// compare compares the bulk with the model each time that it was taken over unread, and puts it right.
func (f *Filter) compare(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.inherited:
		}
		same, err := f.collate(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			f.adopted() // once more
			return err
		case same:
			continue
		}
		f.mu.Lock()
		f.distrust = true
		if err = f.sync(); err != nil {
			f.log.Warn("the next attempt is in a few seconds", zap.Error(err))
		}
		f.mu.Unlock()
		if err == nil {
			f.tellRepaired([]string{changed})
		}
	}
}

// tellRepaired tells what was put right.
func (f *Filter) tellRepaired(lines []string) {
	f.log.Warn("network policy: nftables were changed by somebody", zap.Strings("repaired", lines))
	if f.config.Repaired != nil {
		f.config.Repaired(lines)
	}
}

// collate says whether the kernel has what is in the bulk, and nothing else. It does not hold up changes: what they disturb it looks at again.
func (f *Filter) collate(ctx context.Context) (same bool, err error) {
	c, err := dial(f.config.NetNS, unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return false, err
	}
	defer c.close()
	f.mu.Lock()
	var todo []uint32
	if f.model != nil {
		for n := range f.model.byNumber {
			todo = append(todo, n)
		}
	}
	f.mu.Unlock()
	for len(todo) > 0 && ctx.Err() == nil {
		elements, now, ok := f.bulkOf(todo[0])
		if !ok {
			return true, nil
		}
		if err := c.has(elements); err == nil {
			todo = todo[1:]
		} else if !errors.Is(err, errOther) {
			return false, err
		} else if f.still(now) {
			return false, nil
		} else {
			pause(ctx, compareAgain)
		}
	}
	for ctx.Err() == nil {
		want, now, ok := f.sizes()
		if !ok {
			return true, nil
		}
		have := newContents()
		switch err := c.readSets(Table, have); {
		case errors.Is(err, errInterrupted):
			pause(ctx, compareAgain)
			continue
		case err != nil:
			return false, err
		}
		if sized(have.sizes, want) {
			return true, nil
		}
		if f.still(now) {
			return false, nil
		}
		pause(ctx, compareAgain)
	}
	return true, nil
}

// sized says whether the sets of the bulk have as many elements as they should, as far as the kernel has told.
func sized(have, want map[string]uint32) bool {
	return !slices.ContainsFunc(sets(), func(k setKind) bool {
		n, told := have[k.name]
		return bulk(k.name) && told && n != want[k.name]
	})
}

// A moment is between two transactions of the Filter: the kernel has what the model has.
type moment struct {
	model *model
	sent  uint64
}

func (f *Filter) moment() moment { return moment{f.model, f.sent} }

// still says whether nothing has changed since a moment.
func (f *Filter) still(m moment) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.dirty && m == f.moment()
}

// bulkOf returns what of the bulk is of a table; false if there is nothing to compare any more.
func (f *Filter) bulkOf(number uint32) (elements map[string][]element, now moment, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.model == nil || f.model.empty() || f.dirty {
		return nil, now, false
	}
	elements = map[string][]element{}
	if t := f.model.byNumber[number]; t != nil {
		t.each(func(set string, x element) { elements[set] = append(elements[set], x) })
	}
	return elements, f.moment(), true
}

// sizes returns how many elements the sets of the bulk have.
func (f *Filter) sizes() (sizes map[string]uint32, now moment, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.model == nil || f.model.empty() || f.dirty {
		return nil, now, false
	}
	sizes = map[string]uint32{}
	for _, t := range f.model.byNumber {
		t.each(func(set string, _ element) { sizes[set]++ })
	}
	return sizes, f.moment(), true
}

// has says whether there are all these elements, by set: errOther if not.
func (c *conn) has(elements map[string][]element) error {
	for set, all := range elements {
		for some := range slices.Chunk(all, askAtOnce) {
			b := request(unix.NFT_MSG_GETSETELEM, unix.NFTA_SET_ELEM_LIST_TABLE, Table)
			b.text(unix.NFTA_SET_ELEM_LIST_SET, set)
			list := b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			for _, x := range some {
				at := b.nest(unix.NFTA_LIST_ELEM)
				b.value(unix.NFTA_SET_ELEM_KEY, x.key)
				b.close(at)
			}
			b.close(list)
			b.end(0)
			have := newContents()
			r := reader{kind: setOf(set), have: have, into: map[string]element{}}
			err := c.ask(b, false, func(_ header, body []byte) error {
				if !r.message(body) {
					return errNonsense
				}
				return nil
			})
			switch {
			case errors.Is(err, unix.ENOENT):
				return errOther
			case err != nil:
				return err
			}
			for _, x := range some {
				if got, ok := r.into[string(x.key)]; !ok || got.data != x.data || have.broken[set] {
					return errOther
				}
			}
		}
	}
	return nil
}
