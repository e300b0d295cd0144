// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/events"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/mesh"
)

// Keys in the store's Events bucket.
const (
	prefixEvent = "event/" // + sequence number -> events.Event
	prefixTold  = "node/"  // + NodeID -> told
)

// history is what has happened, and what was said of every node last, so that a restart does not repeat as news what is
// none. Both are written down together, by the log's own goroutine.
type history struct {
	log *events.Log
	st  *store.Store

	mu    sync.Mutex
	told  map[mesh.NodeID]told
	dirty map[mesh.NodeID]bool // told differs from what is saved
	saved []uint64             // events in the store, in order; of the log's goroutine once that runs
	last  events.Kind          // of the events of this node's daemon, from the run before; "": none is known
}

// told is what was said of a node last.
type told struct {
	Status string    `json:"status,omitempty"` // mesh.Status; "": nothing
	Since  time.Time `json:"since"`
	Boot   uint64    `json:"boot,omitempty"`
	Path   string    `json:"path,omitempty"`
	Back   bool      `json:"back,omitempty"` // it was told that it is back, and its record did not say yet whether it has started anew
}

// loadHistory reads what earlier runs of the node have left.
func loadHistory(st *store.Store, self mesh.NodeID, log *zap.Logger) (*history, error) {
	h := &history{st: st, told: map[mesh.NodeID]told{}, dirty: map[mesh.NodeID]bool{}}
	var kept []events.Event
	err := st.View(func(tx *store.Tx) error {
		return tx.Each(store.Events, func(key string, v []byte) error {
			if id, ok := strings.CutPrefix(key, prefixTold); ok {
				node, err := mesh.ParseNodeID(id)
				var t told
				if err == nil {
					err = json.Unmarshal(v, &t)
				}
				h.told[node] = t
				return err
			}
			var e events.Event
			if err := json.Unmarshal(v, &e); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			kept, h.saved = append(kept, e), append(h.saved, e.Seq)
			if e.NodeID == self.String() && (e.Kind == events.Start || e.Kind == events.Stop || e.Kind == events.Leave) {
				h.last = e.Kind
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading the events in %s: %w", st.Dir(), err)
	}
	h.log = events.New(events.Config{Kept: kept, Save: h.save, Now: time.Now, Log: log})
	return h, nil
}

// save implements events.Save.
func (h *history) save(put []events.Event, first uint64) error {
	h.mu.Lock()
	said := make(map[mesh.NodeID]told, len(h.dirty))
	for id := range h.dirty {
		said[id] = h.told[id]
	}
	h.dirty = map[mesh.NodeID]bool{}
	h.mu.Unlock()
	old := 0
	for old < len(h.saved) && h.saved[old] < first {
		old++
	}
	err := h.st.Update(func(tx *store.Tx) error {
		for _, seq := range h.saved[:old] {
			if err := tx.Delete(store.Events, eventKey(seq)); err != nil {
				return err
			}
		}
		for _, e := range put {
			if err := putJSON(tx, eventKey(e.Seq), e); err != nil {
				return err
			}
		}
		for id, t := range said {
			key := prefixTold + id.String()
			if t == (told{}) {
				if err := tx.Delete(store.Events, key); err != nil {
					return err
				}
			} else if err := putJSON(tx, key, t); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		h.mu.Lock()
		for id := range maps.Keys(said) {
			h.dirty[id] = true
		}
		h.mu.Unlock()
		return err
	}
	h.saved = h.saved[old:]
	for _, e := range put {
		h.saved = append(h.saved, e.Seq)
	}
	return nil
}

// eventKey sorts as the number does.
func eventKey(seq uint64) string {
	s := strconv.FormatUint(seq, 10)
	return prefixEvent + strings.Repeat("0", 20-len(s)) + s
}

func putJSON(tx *store.Tx, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("saving %s: %w", key, err)
	}
	return tx.Put(store.Events, key, b)
}

// get returns what was said of a node last.
func (h *history) get(id mesh.NodeID) told {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.told[id]
}

// update changes what was said of a node; it becomes durable with the next event.
func (h *history) update(id mesh.NodeID, change func(*told)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.told[id]
	change(&t)
	h.set(id, t)
}

// set is update for whoever has h.mu.
func (h *history) set(id mesh.NodeID, t told) {
	if h.told[id] != t {
		h.told[id], h.dirty[id] = t, true
	}
}

// keepOnly forgets the nodes that are not known any more. The caller has h.mu.
func (h *history) keepOnly(nodes []mesh.Node) {
	known := make(map[mesh.NodeID]bool, len(nodes))
	for _, m := range nodes {
		known[m.ID] = true
	}
	for id := range h.told {
		if !known[id] {
			delete(h.told, id)
			h.dirty[id] = true
		}
	}
}
