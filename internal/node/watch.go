// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/events"
	"github.com/weftnet/weft/mesh"
)

const (
	// settleTime is how long after its start a node does not take the silence of those for news whom it has not heard since.
	settleTime = 15 * time.Second
	// flock is how many events of one kind at one time are told one by one; more become one.
	flock = 8
)

// watcher makes events of what changes about the other nodes. It is called by one goroutine at a time.
type watcher struct {
	h       *history
	started time.Time
	seen    map[mesh.NodeID]bool   // alive since
	gone    func(mesh.NodeID) bool // it was declared gone
}

// look compares the nodes with what was said of them last, and returns the news, and when it should look again although
// nothing changes; zero: not.
func (w *watcher) look(nodes []mesh.Node, now time.Time) (news []events.Event, again time.Time) {
	alive := mesh.Alive.String()
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	known := 0
	for i := range nodes {
		m := &nodes[i]
		before, met := w.h.told[m.ID]
		if met {
			known++
		}
		if m.Status == mesh.Self || m.Status == mesh.Alive && m.Boot == before.Boot && before.Status == alive && w.seen[m.ID] {
			continue // as is usual
		}
		if m.Status == mesh.Failed && before.Status == alive && !w.seen[m.ID] {
			if end := w.started.Add(settleTime); now.Before(end) {
				again = end
				continue
			}
		}
		e, change := w.judge(*m, before, now)
		if e.Kind == events.Join && w.gone(m.ID) {
			e.Text, e.Cause = shownName(*m)+" answers, but was declared gone", "it runs nothing until weft reset there"
		}
		if !change {
			continue
		}
		if !met {
			known++
		}
		back := m.Status == mesh.Alive && before.Status != "" && before.Status != alive && m.Boot == before.Boot
		w.h.set(m.ID, told{Status: m.Status.String(), Since: m.Since.Round(0), Boot: m.Boot, Path: before.Path, Back: back})
		if e.Kind != "" {
			e.Node, e.NodeID = shownName(*m), m.ID.String()
			news = append(news, e)
		}
	}
	if known < len(w.h.told) {
		w.h.keepOnly(nodes)
	}
	return gather(news), again
}

// judge returns the event that a node's state is, if it is one, and whether there is anything to remember.
func (w *watcher) judge(m mesh.Node, before told, now time.Time) (e events.Event, said bool) {
	name := shownName(m)
	switch m.Status {
	case mesh.Alive:
		seen := w.seen[m.ID]
		w.seen[m.ID] = true
		away := now.Sub(before.Since).Round(time.Second)
		switch before.Status {
		case "":
			return events.Event{Kind: events.Join, Text: name + " is in the mesh", Cause: "it was met for the first time" + at(m)}, true
		case mesh.Failed.String():
			return events.Event{Kind: events.Join, Text: name + " is back", Cause: fmt.Sprintf("it answers again%s after %v", at(m), away)}, true
		case mesh.Stopped.String():
			return events.Event{Kind: events.Join, Text: name + " is back", Cause: fmt.Sprintf("it was stopped for %v", away)}, true
		case mesh.Left.String():
			return events.Event{Kind: events.Join, Text: name + " is back", Cause: "it had said that it leaves for good"}, true
		}
		if before.Back && now.Sub(before.Since) < settleTime {
			return events.Event{}, m.Boot != before.Boot // its record is later than its first packet
		}
		if m.Boot != before.Boot && before.Boot != 0 {
			cause := "its daemon ended without a word: it was killed, it crashed, or its host went down"
			if !seen {
				cause = "that was while this node did not hear of it"
			}
			return events.Event{Kind: events.Join, Text: name + " has started anew", Cause: cause}, true
		}
		return events.Event{}, m.Boot != before.Boot
	case mesh.Failed:
		if before.Status != mesh.Alive.String() {
			return events.Event{}, false
		}
		since := m.Since
		switch {
		case !w.seen[m.ID]:
			since = w.started
		case !m.Heard.IsZero() && m.Heard.Before(since):
			since = m.Heard
		}
		return events.Event{Kind: events.Fail, Text: name + " does not answer", Cause: fmt.Sprintf("no answer%s since %s", from(m), since.Format(time.TimeOnly))}, true
	case mesh.Stopped:
		switch before.Status {
		case mesh.Alive.String(), mesh.Failed.String():
			return events.Event{Kind: events.Stop, Text: name + " has stopped", Cause: "it said that it stops for a while"}, true
		}
		return events.Event{}, before.Status != m.Status.String()
	case mesh.Left:
		if before.Status != "" && before.Status != m.Status.String() {
			return events.Event{Kind: events.Leave, Text: name + " has left", Cause: "it said that it leaves for good"}, true
		}
		return events.Event{}, before.Status == ""
	}
	return events.Event{}, false
}

func at(m mesh.Node) string   { return preposition("at", m.Addr) }
func from(m mesh.Node) string { return preposition("from", m.Addr) }

func preposition(word string, a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return " " + word + " " + a.String()
}

// gather makes one event of many of one kind, so that a partition of a large mesh leaves something of what was before.
func gather(list []events.Event) []events.Event {
	count := map[events.Kind]int{}
	for _, e := range list {
		count[e.Kind]++
	}
	var out []events.Event
	done := map[events.Kind]bool{}
	for _, e := range list {
		switch {
		case count[e.Kind] <= flock:
			out = append(out, e)
		case !done[e.Kind]:
			done[e.Kind] = true
			out = append(out, crowd(e.Kind, slices.DeleteFunc(slices.Clone(list), func(x events.Event) bool { return x.Kind != e.Kind })))
		}
	}
	return out
}

// crowd makes one event of several of a kind.
func crowd(kind events.Kind, list []events.Event) events.Event {
	var names []string
	cause := list[0].Cause
	for _, e := range list {
		names = append(names, cmp.Or(e.Node, e.NodeID))
		if e.Cause != cause {
			cause = ""
		}
	}
	what := map[events.Kind]string{
		events.Join: "are in the mesh, or back", events.Fail: "do not answer", events.Stop: "have stopped", events.Leave: "have left",
		events.Path: "are reached by another way",
	}[kind]
	return events.Event{
		Kind: kind, Cause: cause,
		Text: fmt.Sprintf("%d nodes %s: %s", len(list), cmp.Or(what, "are concerned"), strings.Join(head(names, flock), ", ")),
	}
}
