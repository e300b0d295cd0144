// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/fault"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/mesh"
)

// Keys in the store's IPAM bucket.
const (
	keyRing    = "ring"
	keyGrants  = "grants"
	prefixRest = "rest/" // + slot -> Unix nanoseconds
)

// oldRing is the first byte of a ring of before the first release. It has no log of who was declared gone, nor do the nodes
// that it names keep one, so nothing can be concluded from it.
const oldRing = 1

// usable is the [store.Check] of a node's state.
func usable(tx *store.Tx) error {
	if b := tx.Get(store.IPAM, keyRing); len(b) > 0 && b[0] == oldRing {
		return errors.New("was written by a build from before the first release, whose address ring cannot be taken over, and stays as it is; " +
			"run that build again and leave the mesh with it (weft leave), or run weft reset, launch this host as a new node, and run weft forget for the old one on another node")
	}
	return nil
}

// ipamStore keeps the allocator's state; it implements ipam.Store. The record of a workload comes and goes in the transaction in which its addresses do: one
// commit for an attach and one for a detach, and those of several at a time are shared.
type ipamStore struct {
	st        *store.Store
	workloads func() *workloads // which come later than the allocator
}

func (s ipamStore) LoadIPAM() (ipam.State, error) {
	var state ipam.State
	err := s.st.View(func(tx *store.Tx) error {
		state.Ring = tx.Get(store.IPAM, keyRing)
		state.Grants = tx.Get(store.IPAM, keyGrants)
		if err := tx.Each(store.Allocations, func(owner string, v []byte) error {
			if len(v) != 4 {
				return fmt.Errorf("the allocation of %s has %d bytes", owner, len(v))
			}
			state.Allocations = append(state.Allocations, ipam.Allocation{Owner: owner, Slot: binary.BigEndian.Uint32(v)})
			return nil
		}); err != nil {
			return err
		}
		return tx.Each(store.IPAM, func(k string, v []byte) error {
			slot, ok := strings.CutPrefix(k, prefixRest)
			if !ok {
				return nil
			}
			n, err := strconv.ParseUint(slot, 10, 32)
			if err != nil || len(v) != 8 {
				return fmt.Errorf("the entry %s is malformed", k)
			}
			nanos := int64(binary.BigEndian.Uint64(v))
			state.Resting = append(state.Resting, ipam.Resting{Slot: uint32(n), Until: time.Unix(0, nanos)})
			return nil
		})
	})
	if err != nil {
		return ipam.State{}, fmt.Errorf("reading the addresses' state in %s: %w", s.st.Dir(), err)
	}
	return state, nil
}

func (s ipamStore) SaveIPAM(c ipam.Change) error {
	fault.Point("addresses-saving")
	records := s.workloads().records(c.Put)
	err := s.st.Update(func(tx *store.Tx) error {
		var errs []error
		if c.Ring != nil {
			errs = append(errs, tx.Put(store.IPAM, keyRing, c.Ring))
		}
		if c.Grants != nil {
			errs = append(errs, tx.Put(store.IPAM, keyGrants, c.Grants))
		}
		for _, owner := range c.Delete {
			errs = append(errs, tx.Delete(store.Allocations, owner), tx.Delete(store.Workloads, owner))
		}
		for _, slot := range c.Wake {
			errs = append(errs, tx.Delete(store.IPAM, restKey(slot)))
		}
		for _, a := range c.Put {
			errs = append(errs, tx.Put(store.Allocations, a.Owner, binary.BigEndian.AppendUint32(nil, a.Slot)))
		}
		for _, r := range c.Rest {
			nanos := uint64(r.Until.UnixNano())
			errs = append(errs, tx.Put(store.IPAM, restKey(r.Slot), binary.BigEndian.AppendUint64(nil, nanos)))
		}
		for _, w := range records {
			errs = append(errs, putWorkload(tx, w))
		}
		return errors.Join(errs...)
	})
	if err == nil {
		s.workloads().saved(records)
	}
	return err
}

// records returns what is to be kept of the workloads among those who have addresses.
func (ws *workloads) records(have []ipam.Allocation) (records []workload) {
	if ws == nil {
		return nil
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, h := range have {
		if w, ok := ws.all[h.Owner]; ok {
			records = append(records, w)
		} else if a := ws.coming[h.Owner]; a != nil {
			records = append(records, a.record)
		}
	}
	return records
}

// saved takes note that records are on disk.
func (ws *workloads) saved(records []workload) {
	if ws == nil {
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range records {
		if a := ws.coming[w.ID]; a != nil {
			a.kept = true
		}
	}
}

func restKey(slot uint32) string { return prefixRest + strconv.FormatUint(uint64(slot), 10) }

// loadRecords returns the node records last seen.
func loadRecords(st *store.Store) (known []mesh.Node, err error) {
	err = st.View(func(tx *store.Tx) error {
		return tx.Each(store.Records, func(id string, v []byte) error {
			r, err := mesh.ParseSigned(v)
			if err != nil {
				return fmt.Errorf("the record of node %s: %w", id, err)
			}
			known = append(known, mesh.Node{Record: r, Signed: v})
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading the known nodes in %s: %w", st.Dir(), err)
	}
	return known, nil
}

// recordSaver keeps the node records, writing only what changed.
type recordSaver struct {
	st    *store.Store
	saved map[mesh.NodeID]uint64 // Seq
}

func (s *recordSaver) save(nodes []mesh.Node) error {
	changed := map[mesh.NodeID][]byte{}
	known := make(map[mesh.NodeID]bool, len(nodes))
	for _, n := range nodes {
		known[n.ID] = true
		if seq, ok := s.saved[n.ID]; ok && seq == n.Seq {
			continue
		}
		changed[n.ID] = n.Signed
	}
	var gone []mesh.NodeID
	for id := range s.saved {
		if !known[id] {
			gone = append(gone, id)
		}
	}
	if len(changed) == 0 && len(gone) == 0 {
		return nil
	}
	if err := s.st.Update(func(tx *store.Tx) error {
		for id, b := range changed {
			if err := tx.Put(store.Records, id.String(), b); err != nil {
				return err
			}
		}
		for _, id := range gone {
			if err := tx.Delete(store.Records, id.String()); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for _, n := range nodes {
		s.saved[n.ID] = n.Seq
	}
	for _, id := range gone {
		delete(s.saved, id)
	}
	return nil
}

// workload is an attached namespace, as it is kept.
type workload struct {
	ID       string    `json:"id"`
	Netns    string    `json:"netns"`   // path by which it was attached
	NetnsID  string    `json:"netnsID"` // netns.ID
	IfName   string    `json:"ifname"`
	Boot     string    `json:"boot"` // the kernel's boot ID: namespaces do not outlive it
	MTU      int       `json:"mtu"`
	Attached time.Time `json:"attached"`

	MAC           string       `json:"mac,omitempty"`           // that was asked for
	IPs           []netip.Addr `json:"ips,omitempty"`           // that were asked for
	AddressesOnly bool         `json:"addressesOnly,omitempty"` // whoever asked makes the interface
	CNI           *cniOrigin   `json:"cni,omitempty"`           // nil: of weft attach

	Policy *policyIdentity `json:"policy,omitempty"` // what network policies know it by, as far as it was asked for

	Asked time.Duration `json:"asked,omitempty"` // when the runtime's last ADD of it began, by cni.Uptime in that boot; 0: nobody knows

	done     time.Duration // when the last attach of it was, by the same clock; 0: in an earlier run
	finished uint64        // when the last attach of it was, in the order of those of this run; 0: of an earlier one
}

func loadWorkloads(st *store.Store) (map[string]workload, error) {
	all := map[string]workload{}
	err := st.View(func(tx *store.Tx) error {
		return tx.Each(store.Workloads, func(id string, v []byte) error {
			var w workload
			if err := json.Unmarshal(v, &w); err != nil {
				return fmt.Errorf("workload %s: %w", id, err)
			}
			all[id] = w
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading the workloads in %s: %w", st.Dir(), err)
	}
	return all, nil
}

func saveWorkload(st *store.Store, w workload) error {
	return st.Update(func(tx *store.Tx) error { return putWorkload(tx, w) })
}

func putWorkload(tx *store.Tx, w workload) error {
	b, err := json.Marshal(w)
	if err != nil {
		return fmt.Errorf("saving workload %s: %w", w.ID, err)
	}
	return tx.Put(store.Workloads, w.ID, b)
}

func deleteWorkloads(st *store.Store, ids []string) error {
	return st.Update(func(tx *store.Tx) error {
		for _, id := range ids {
			if err := tx.Delete(store.Workloads, id); err != nil {
				return err
			}
		}
		return nil
	})
}

const keyChanges = "changes"

// saveChanges keeps what was changed on the host, for reset to restore.
func saveChanges(st *store.Store, c hostnet.Changes) error {
	b, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("saving what was changed on the host: %w", err)
	}
	var before []byte
	if err := st.View(func(tx *store.Tx) error { before = tx.Get(store.Host, keyChanges); return nil }); err != nil {
		return err
	}
	if bytes.Equal(b, before) {
		return nil
	}
	return st.Update(func(tx *store.Tx) error { return tx.Put(store.Host, keyChanges, b) })
}

func loadChanges(st *store.Store) (c hostnet.Changes, err error) {
	err = st.View(func(tx *store.Tx) error {
		if b := tx.Get(store.Host, keyChanges); b != nil {
			return json.Unmarshal(b, &c)
		}
		return nil
	})
	if err != nil {
		return c, fmt.Errorf("reading what was changed on the host: %w", err)
	}
	return c, nil
}
