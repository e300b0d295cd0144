// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/mesh"
)

// A node that looks for its mesh has no engines yet. The hosts that it asks are those of --peer and those of weft connect, which may
// change meanwhile: a wrong --peer is put right without a restart.

// connecting returns the engines, or nil while the node looks for its mesh.
func (n *Node) connecting() (*engines, error) {
	n.mu.Lock()
	joining := n.phase == api.Joining
	n.mu.Unlock()
	if joining && n.engines() == nil {
		return nil, nil //nolint:nilnil // there are none, and that is no error
	}
	return n.meshed()
}

// joinTargets are the hosts by which the node may join.
func (n *Node) joinTargets() []string {
	hosts, err := n.allTargets()
	if err != nil {
		n.log.Error("the hosts of weft connect are not known", zap.Error(err))
	}
	return hosts
}

// connectEarly keeps hosts, and has them asked at once.
func (n *Node) connectEarly(hosts []string) (api.ConnectResult, error) {
	n.targeting.Lock()
	defer n.targeting.Unlock()
	saved, err := loadTargets(n.store)
	if err != nil {
		return api.ConnectResult{}, err
	}
	for _, h := range hosts {
		if !slices.Contains(saved, h) && !slices.Contains(n.cfg.Peers, h) {
			saved = append(saved, h)
		}
	}
	if total := len(saved) + len(n.cfg.Peers); total > maxTargets {
		return api.ConnectResult{}, tooManyTargets(total)
	}
	if err := saveTargets(n.store, saved); err != nil {
		return api.ConnectResult{}, err
	}
	n.log.Info("told to connect", zap.Strings("hosts", hosts))
	n.targeted.raise()
	res := api.ConnectResult{Targets: []api.Target{}}
	for _, h := range hosts {
		res.Targets = append(res.Targets, api.Target{Host: h, State: "waiting: this node has not joined yet; it asks this host, too"})
	}
	return res, nil
}

// disconnectEarly forgets hosts.
func (n *Node) disconnectEarly(hosts []string) (api.DisconnectResult, error) {
	n.targeting.Lock()
	defer n.targeting.Unlock()
	saved, err := loadTargets(n.store)
	if err != nil {
		return api.DisconnectResult{}, err
	}
	for _, h := range hosts {
		switch {
		case slices.Contains(n.cfg.Peers, h):
			return api.DisconnectResult{}, fmt.Errorf("%s was given by --peer, and this node has not joined yet; stop it and launch it without", h)
		case !slices.Contains(saved, h):
			return api.DisconnectResult{}, fmt.Errorf("this node was not told to connect to %s", h)
		}
	}
	saved = slices.DeleteFunc(saved, func(h string) bool { return slices.Contains(hosts, h) })
	if err := saveTargets(n.store, saved); err != nil {
		return api.DisconnectResult{}, err
	}
	n.targeted.raise()
	res := api.DisconnectResult{Disconnected: []api.Disconnected{}}
	for _, h := range hosts {
		res.Disconnected = append(res.Disconnected, api.Disconnected{Host: h})
	}
	return res, nil
}

// settleTargets gives the mesh what changed between its making and its being known here.
func (n *Node) settleTargets(e *engines) error {
	n.targeting.Lock()
	defer n.targeting.Unlock()
	return n.settle(e)
}

// settle does that; the caller has targeting.
func (n *Node) settle(e *engines) error {
	wanted, err := n.allTargets()
	if err != nil {
		return err
	}
	has := e.mesh.Targets()
	var missing, surplus []string
	for _, h := range wanted {
		if !slices.ContainsFunc(has, func(t mesh.Target) bool { return t.Host == h }) {
			missing = append(missing, h)
		}
	}
	for _, t := range has {
		if !slices.Contains(wanted, t.Host) {
			surplus = append(surplus, t.Host)
		}
	}
	if len(missing) > 0 {
		if err := e.mesh.Connect(missing); err != nil {
			return err
		}
	}
	if len(surplus) > 0 {
		return e.mesh.Disconnect(surplus)
	}
	return nil
}

func tooManyTargets(n int) error {
	return fmt.Errorf("this node would connect to %d hosts, and %d are the most; a few are enough, as each tells of all others: disconnect some (weft disconnect)", n, maxTargets)
}
