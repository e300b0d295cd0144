// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"maps"

	"github.com/weftnet/weft/policy"
)

// A Count is how many connections a policy has decided about: their first packets, each as often as it was sent.
type Count struct{ Allowed, Denied uint64 }

// tallies are what the counters of verdicts have counted. Those in the kernel begin at zero when the table is made anew, and go with their
// verdicts.
type tallies struct {
	gone map[policy.PolicyKey]Count // of verdicts that are no more, and of tables
	base map[uint32]uint64          // of each verdict, what the kernel has counted of it that is in gone, or was before this Filter
	seen map[uint32]uint64          // what was read last
}

// Counters returns how many connections each policy has decided about at the ends that are here, since the Filter was made. A connection that was
// denied because several policies isolate an endpoint is counted for each of them. Policies that have decided nothing need not be in it.
func (f *Filter) Counters() (map[policy.PolicyKey]Count, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.model == nil || f.phase == "" {
		return maps.Clone(f.gone), nil
	}
	if err := f.read(); err != nil {
		return nil, err
	}
	out := maps.Clone(f.gone)
	if out == nil {
		out = map[policy.PolicyKey]Count{}
	}
	for n, packets := range f.seen {
		f.count(out, n, packets)
	}
	return out, nil
}

// read reads the counters.
func (f *Filter) read() error {
	have := newContents()
	kind := setOf(setCounts)
	if err := f.conn.readElements(Table, kind, have); err != nil {
		return err
	}
	f.seen = have.counts
	return nil
}

// count puts what a verdict has counted down to its policies.
func (f *Filter) count(to map[policy.PolicyKey]Count, verdict uint32, packets uint64) {
	v := f.model.verdicts[verdict]
	if packets -= min(packets, f.base[verdict]); v == nil || packets == 0 {
		return
	}
	for _, k := range v.by {
		c := to[k]
		if v.allow {
			c.Allowed += packets
		} else {
			c.Denied += packets
		}
		to[k] = c
	}
}

// keep adds what the counters have counted to what is gone, before they, or the meaning of their numbers, go.
func (f *Filter) keep() {
	if f.gone == nil {
		f.gone = map[policy.PolicyKey]Count{}
	}
	if f.model == nil {
		return
	}
	for n, packets := range f.seen {
		f.count(f.gone, n, packets)
	}
}

// most is how many verdicts that are not in use any more may have counters.
const most = 256

// sweep removes counters of verdicts that nothing leads to any more.
func (f *Filter) sweep() error {
	idle := map[uint32]bool{}
	for n, v := range f.model.verdicts {
		if v.uses == 0 {
			idle[n] = true
		}
	}
	if len(idle) <= most || f.phase == "" || f.dirty {
		return nil
	}
	grace() // what is being judged may count yet
	if err := f.read(); err != nil {
		return err
	}
	e := newEdit()
	for n := range idle {
		e.replace(setCounts, &element{key: number(n)}, nil)
	}
	if err := f.commit(e); err != nil {
		return err
	}
	for n := range idle {
		f.count(f.gone, n, f.seen[n])
		delete(f.base, n)
		delete(f.seen, n)
		delete(f.model.byComment, f.model.verdicts[n].comment)
		delete(f.model.verdicts, n)
	}
	return nil
}
