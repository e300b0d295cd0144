// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"slices"
)

// worker turns what the kernel has into what is wanted. Its order is such that a packet that is routed to a peer finds all
// that it needs: what is added begins with the forwarding entries and ends with the routes of the main table, what is removed
// the other way round.
type worker struct {
	conn  *conn
	links map[string]link // VXLAN devices and those of direct routes that are there
	have  objects         // changed as the kernel is
	errs  []error
	stale bool // the kernel does not have what was thought
	done  int  // changes
}

// did notes how a change went, and whether it was made.
func (w *worker) did(err error) bool {
	w.done++
	if err == nil {
		return true
	}
	w.errs = append(w.errs, err)
	w.stale = true
	return false
}

func (w *worker) index(name string) int { return w.links[name].index }

// run makes the kernel have what is wanted, of devices apart.
func (w *worker) run(want objects) {
	entries, oldEntries := differ(w.have.fdb, want.fdb)
	neighbours, oldNeighbours := differ(w.have.neighbours, want.neighbours)
	routes, oldRoutes := differ(w.have.routes, want.routes)
	rules, oldRules := differ(w.have.rules, want.rules)

	for _, key := range entries {
		if to := want.fdb[key]; w.did(w.conn.setEntry(key, to, w.index(key.device))) {
			w.have.fdb[key] = to
		}
	}
	for _, key := range neighbours {
		if m := want.neighbours[key]; w.did(w.conn.setNeighbour(key, m, w.index(key.device))) {
			w.have.neighbours[key] = m
		}
	}
	w.setRoutes(routes, want, func(k routeKey) bool { return k.table != mainTable })
	for _, r := range rules {
		if w.did(w.conn.setRule(r)) {
			w.have.rules[r] = struct{}{}
		}
	}
	w.setRoutes(routes, want, func(k routeKey) bool { return k.table == mainTable })

	w.removeRoutes(oldRoutes, func(k routeKey) bool { return k.table == mainTable })
	for _, r := range oldRules {
		if w.did(w.conn.removeRule(r)) {
			delete(w.have.rules, r)
		}
	}
	w.removeRoutes(oldRoutes, func(k routeKey) bool { return k.table != mainTable })
	for _, key := range oldNeighbours {
		if w.did(w.conn.removeNeighbour(key, w.index(key.device))) {
			delete(w.have.neighbours, key)
		}
	}
	for _, key := range oldEntries {
		if w.did(w.conn.removeEntry(key, w.have.fdb[key], w.index(key.device))) {
			delete(w.have.fdb, key)
		}
	}
}

func (w *worker) setRoutes(keys []routeKey, want objects, which func(routeKey) bool) {
	for _, key := range keys {
		if !which(key) {
			continue
		}
		r := want.routes[key]
		_, exists := w.have.routes[key]
		if w.did(w.conn.setRoute(key, r, w.index(r.device), exists)) {
			w.have.routes[key] = r
		}
	}
}

func (w *worker) removeRoutes(keys []routeKey, which func(routeKey) bool) {
	for _, key := range keys {
		if !which(key) {
			continue
		}
		if w.did(w.conn.removeRoute(key)) {
			delete(w.have.routes, key)
		}
	}
}

// sorted are the errors, in an order of their own.
func (w *worker) sorted() []error {
	slices.SortStableFunc(w.errs, func(a, b error) int {
		switch x, y := a.Error(), b.Error(); {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	return w.errs
}
