// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/api"
)

// drainLook is how often it is looked whether the last workload has gone.
const drainLook = 200 * time.Millisecond

var errDraining = errors.New("this node is being drained to leave the mesh and takes nothing new; do this on another node, or end the drain by Ctrl-C in weft leave --drain")

// drain waits until no workload is attached and no WireGuard client joins by this node, takes no new ones meanwhile, and
// tells progress what it waits for. If it returns an error the node goes on as before; otherwise lift ends the drain, and the node
// does so unless its addresses have begun to be given away by then.
func (n *Node) drain(ctx context.Context, e *engines, progress func(api.LeaveProgress)) (lift func(given bool), err error) {
	n.mu.Lock()
	already := n.draining
	n.draining = true
	n.mu.Unlock()
	if already {
		return nil, errors.New("this node is being drained already; wait for that, or end it by Ctrl-C in the other weft leave --drain")
	}
	e.workloads.refuse(errDraining)
	n.log.Info("draining: new workloads are refused until this node has left")
	lift = func(given bool) {
		e.workloads.refuse(nil)
		n.mu.Lock()
		n.draining = false
		n.mu.Unlock()
		n.setWarning("drain", "")
		if !given {
			n.log.Info("the drain has ended; new workloads are taken again")
		}
	}
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	for told := ""; ; {
		text := remaining(e.workloads.paths(), e.clients.names(), e.workloads.arriving())
		if text == "" {
			return lift, nil
		}
		if text != told {
			n.setWarning("drain", "this node is being drained, and is "+text)
			progress(api.LeaveProgress{Text: text})
			told = text
		}
		select {
		case <-ctx.Done():
			lift(false)
			return nil, fmt.Errorf("the drain was ended (%w); this node goes on as before", context.Cause(ctx))
		case <-tick.C:
		}
		if _, err := n.ready(); err != nil {
			lift(false)
			return nil, err
		}
	}
}

func (n *Node) isDraining() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.draining
}

// remaining says what a drain waits for; nothing, if it is done.
func remaining(workloads, clients []string, arriving int) string {
	var parts []string
	if k := len(workloads); k > 0 {
		parts = append(parts, fmt.Sprintf("%d %s detached (%s)", k, plural(k, "workload is", "workloads are"), strings.Join(head(workloads, 5), ", ")))
	}
	if k := len(clients); k > 0 {
		parts = append(parts, fmt.Sprintf("%d WireGuard %s removed (%s)", k, plural(k, "client is", "clients are"), strings.Join(head(clients, 5), ", ")))
	}
	if len(parts) == 0 && arriving > 0 {
		parts = append(parts, fmt.Sprintf("%d %s ended", arriving, plural(arriving, "attach has", "attaches have")))
	}
	if len(parts) == 0 {
		return ""
	}
	return "waiting until " + strings.Join(parts, " and ")
}

func plural(n int, one, more string) string {
	if n == 1 {
		return one
	}
	return more
}

// paths are the namespaces of the workloads, as they were attached.
func (ws *workloads) paths() []string {
	var paths []string
	for _, w := range ws.list() {
		paths = append(paths, w.Netns)
	}
	return paths
}

// arriving is how many attaches are under way.
func (ws *workloads) arriving() int {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return len(ws.coming)
}
