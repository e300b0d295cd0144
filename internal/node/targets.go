// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/mesh"
)

const (
	keyTargets = "targets" // in Meta: what weft connect was told

	maxTargets = 256
	// connectPatience is how long weft connect waits for a first answer, and connectLook how often it looks.
	connectPatience = 4 * time.Second
	connectLook     = 50 * time.Millisecond
)

// loadTargets returns the hosts that the node was told to connect to while it ran.
func loadTargets(st *store.Store) (hosts []string, err error) { return loadHosts(st, keyTargets) }

func loadHosts(st *store.Store, key string) (hosts []string, err error) {
	err = st.View(func(tx *store.Tx) error {
		if b := tx.Get(store.Meta, key); b != nil {
			return json.Unmarshal(b, &hosts)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the hosts to connect to in %s: %w", st.Dir(), err)
	}
	return hosts, nil
}

func saveTargets(st *store.Store, hosts []string) error { return saveHosts(st, keyTargets, hosts) }

func saveHosts(st *store.Store, key string, hosts []string) error {
	b, err := json.Marshal(hosts)
	if err != nil {
		return fmt.Errorf("saving the hosts to connect to: %w", err)
	}
	return st.Update(func(tx *store.Tx) error {
		if len(hosts) == 0 {
			return tx.Delete(store.Meta, key)
		}
		return tx.Put(store.Meta, key, b)
	})
}

// allTargets are the hosts of --peer, of weft connect and of the guide, each once. One that was kept and is of no use, because an earlier version
// took it or because --peer gives so many, does not keep the node from starting.
func (n *Node) allTargets() ([]string, error) {
	hosts := slices.Clone(n.cfg.Peers)
	saved, err := loadTargets(n.store)
	if n.cfg.Guide != nil && err == nil {
		var more []string
		more, err = loadHosts(n.store, keyGuided)
		saved = append(saved, more...)
	}
	for _, h := range saved {
		t, err := canonicalTarget(h, n.cfg.Port)
		switch {
		case err != nil:
			n.log.Warn("a host of weft connect is left out", zap.Error(err))
		case slices.Contains(hosts, t):
		case len(hosts) >= maxTargets:
			n.log.Warn("a host of weft connect is left out: there are too many", zap.String("host", t), zap.Int("most", maxTargets))
		default:
			hosts = append(hosts, t)
		}
	}
	return hosts, err
}

// canonicalTargets brings hosts into the form in which they are kept, each once.
func (n *Node) canonicalTargets(hosts []string) ([]string, error) {
	var out []string
	for _, h := range hosts {
		t, err := canonicalTarget(h, n.cfg.Port)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out, nil
}

// Connect implements [api.Targets].
func (n *Node) Connect(ctx context.Context, r api.ConnectRequest) (api.ConnectResult, error) {
	e, err := n.connecting()
	if err != nil {
		return api.ConnectResult{}, err
	}
	hosts, err := n.canonicalTargets(r.Hosts)
	if err != nil {
		return api.ConnectResult{}, err
	}
	if e == nil {
		return n.connectEarly(hosts)
	}
	if err := n.connect(e, hosts); err != nil {
		return api.ConnectResult{}, err
	}
	n.log.Info("told to connect", zap.Strings("hosts", hosts))
	tried := func() bool {
		for _, t := range e.mesh.Targets() {
			if slices.Contains(hosts, t.Host) && !t.Joined && t.Err == nil {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(connectPatience); !tried() && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(connectLook)
	}
	res := api.ConnectResult{Targets: []api.Target{}}
	for _, t := range e.mesh.Targets() {
		if slices.Contains(hosts, t.Host) {
			res.Targets = append(res.Targets, api.Target{Host: t.Host, State: t.State})
		}
	}
	return res, nil
}

// connect keeps hosts and has the mesh join them.
func (n *Node) connect(e *engines, hosts []string) error {
	n.targeting.Lock()
	defer n.targeting.Unlock()
	saved, err := loadTargets(n.store)
	if err != nil {
		return err
	}
	now := e.mesh.Targets()
	var fresh []string
	for _, h := range hosts {
		if !slices.ContainsFunc(now, func(t mesh.Target) bool { return t.Host == h }) {
			fresh = append(fresh, h)
		}
		if !slices.Contains(saved, h) && !slices.Contains(n.cfg.Peers, h) {
			saved = append(saved, h)
		}
	}
	if len(now)+len(fresh) > maxTargets {
		return tooManyTargets(len(now) + len(fresh))
	}
	if err := saveTargets(n.store, saved); err != nil {
		return err
	}
	return e.mesh.Connect(fresh)
}

// Disconnect implements [api.Targets].
func (n *Node) Disconnect(r api.DisconnectRequest) (api.DisconnectResult, error) {
	e, err := n.connecting()
	if err != nil {
		return api.DisconnectResult{}, err
	}
	hosts, err := n.canonicalTargets(r.Hosts)
	if err != nil {
		return api.DisconnectResult{}, err
	}
	if e == nil {
		return n.disconnectEarly(hosts)
	}
	n.targeting.Lock()
	defer n.targeting.Unlock()
	targets := map[string]mesh.Target{}
	var known []string
	for _, t := range e.mesh.Targets() {
		targets[t.Host] = t
		known = append(known, t.Host)
	}
	for _, h := range hosts {
		if _, ok := targets[h]; ok {
			continue
		}
		if len(known) == 0 {
			return api.DisconnectResult{}, fmt.Errorf("this node was not told to connect to %s, nor to any other host", h)
		}
		return api.DisconnectResult{}, fmt.Errorf("this node was not told to connect to %s; it was to: %s", h, strings.Join(head(known, 20), ", "))
	}
	saved, err := loadTargets(n.store)
	if err != nil {
		return api.DisconnectResult{}, err
	}
	saved = slices.DeleteFunc(saved, func(h string) bool { return slices.Contains(hosts, h) })
	if err := saveTargets(n.store, saved); err != nil {
		return api.DisconnectResult{}, err
	}
	if err := e.mesh.Disconnect(hosts); err != nil {
		return api.DisconnectResult{}, err
	}
	n.log.Info("told to disconnect", zap.Strings("hosts", hosts))
	res := api.DisconnectResult{Disconnected: []api.Disconnected{}}
	nodes := e.mesh.Nodes()
	for _, h := range hosts {
		d := api.Disconnected{Host: h}
		for _, m := range nodes {
			if m.ID == targets[h].Node && m.Status != mesh.Left && m.Status != mesh.Self {
				d.Notes = append(d.Notes, fmt.Sprintf("%s, which was found there, stays a member of the mesh: this node knows it by gossip; weft forget declares a node gone", shownName(m)))
			}
		}
		if slices.Contains(n.cfg.Peers, h) {
			d.Notes = append(d.Notes, "it was given by --peer: the next launch with that connects to it again")
		}
		res.Disconnected = append(res.Disconnected, d)
	}
	return res, nil
}
