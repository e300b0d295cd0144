// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"
)

// maxTargets bounds how many targets there may be.
const maxTargets = 256

// What Connect and Disconnect can refuse, beside what is no host.
var (
	ErrTargetKnown    = errors.New("is a target already")
	ErrTargetUnknown  = errors.New("is no target")
	ErrTooManyTargets = fmt.Errorf("too many targets: at most %d are tried; any living node of the mesh will do as one", maxTargets)
)

// target is a join target. Guarded by Mesh.mu.
type target struct {
	Target
	self   bool               // all its addresses are this node's
	failed time.Time          // since when no try succeeded; zero: the last one did
	slow   bool               // tried at the slow pace
	told   time.Time          // when an error was last logged; zero: not since it was joined
	cancel context.CancelFunc // ends its loop; nil: not running yet
}

// CanonicalTarget returns host:port for all that a target may be given as ("host",
// "host:port", "addr", "[v6]:port", a v6 address with or without brackets), the same for
// every spelling of an address and a port; port is that of the mesh. What it takes,
// Connect and Config.Targets take.
func CanonicalTarget(target string, port uint16) (string, error) {
	h, port, err := splitTarget(target, port)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(h, strconv.Itoa(int(port))), nil
}

// canonical returns the host and port that a target stands for, so that two spellings of
// one can be told.
func (m *Mesh) canonical(host string) (string, error) {
	return CanonicalTarget(host, cmp.Or(m.cfg.Port, defaultPort))
}

// defaultPort stands for the port of the mesh while it is not known (tests).
const defaultPort = 6783

// find returns the index of the target, -1 if there is none. Called with mu held.
func (m *Mesh) find(host string) (int, error) {
	want, err := m.canonical(host)
	if err != nil {
		return -1, err
	}
	return slices.IndexFunc(m.targets, func(t *target) bool {
		c, err := m.canonical(t.Host)
		return err == nil && c == want
	}), nil
}

// Connect adds join targets, which are tried from now on as those of Config.Targets
// are; before Run it only adds them. It returns at once, and adds all or, with an error
// that names the one at fault, none. The caller remembers them for the next start.
func (m *Mesh) Connect(hosts []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == over {
		return ErrNotRunning
	}
	kept := len(m.targets)
	for _, host := range hosts {
		i, err := m.find(host)
		switch {
		case err != nil:
		case i >= 0:
			err = fmt.Errorf("%s %w", host, ErrTargetKnown)
		case len(m.targets) >= maxTargets:
			err = ErrTooManyTargets
		}
		if err != nil {
			m.targets = m.targets[:kept]
			return err
		}
		m.targets = append(m.targets, &target{Target: Target{Host: host, State: "waiting: not tried yet"}})
	}
	for _, t := range m.targets[kept:] {
		m.runTarget(t)
	}
	m.changed()
	return nil
}

// Disconnect takes join targets away: they are tried no more. Nodes that were found there
// stay members. It takes all or, with an error that names the one at fault, none.
func (m *Mesh) Disconnect(hosts []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := slices.Clone(m.targets)
	for _, host := range hosts {
		i, err := m.find(host)
		if err != nil {
			return err
		}
		if i < 0 || !slices.Contains(left, m.targets[i]) {
			return fmt.Errorf("%s %w", host, ErrTargetUnknown)
		}
		left = slices.DeleteFunc(left, func(t *target) bool { return t == m.targets[i] })
	}
	for _, t := range m.targets {
		if !slices.Contains(left, t) && t.cancel != nil {
			t.cancel()
		}
	}
	m.targets = left
	m.changed()
	return nil
}

// runTarget starts the target's loop, if the mesh runs. Called with mu held.
func (m *Mesh) runTarget(t *target) {
	if m.phase != running || t.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(m.run)
	t.cancel = cancel
	m.spawnLocked(func(context.Context) {
		defer cancel()
		m.joinLoop(ctx, t)
	})
}

// runTargets starts the loops of those that were there before Run.
func (m *Mesh) runTargets() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.targets {
		m.runTarget(t)
	}
}

// noteTarget records how a try ended, and returns when to try again and whether that is at the slow pace. The log says so when it is
// news, but of a target that is tried at the slow pace only that it is, and when it is back.
func (m *Mesh) noteTarget(t *target, them introduction, err error, wait time.Duration) (pause time.Duration, slow bool) {
	now := time.Now()
	m.mu.Lock()
	before, wasSlow := t.State, t.slow
	t.Err, t.NextTry, t.Joined, t.self = err, time.Time{}, err == nil, errors.Is(err, ErrSelf)
	switch {
	case err == nil:
		t.State, t.Node, t.self = "joined", them.id, false
		t.failed, t.slow = time.Time{}, false
		if b := m.blockedLocked(them.id); b != "" {
			t.State += "; " + b
		}
	case t.self:
		t.State = "this node"
		t.failed, t.slow = time.Time{}, false
	default:
		t.State = "waiting: " + err.Error()
		if t.failed.IsZero() {
			t.failed = now
		}
		t.slow = now.Sub(t.failed) >= slowAfter
	}
	if err != nil {
		pause = jitter(wait)
		t.NextTry = now.Add(pause)
	}
	news := t.State != before
	told := err != nil && now.Sub(t.told) < tellAgain // errors that come by turns are told now and then
	if err == nil {
		t.told = time.Time{}
	} else if news && !told {
		t.told = now
	}
	slow = t.slow
	state := t.State
	m.mu.Unlock()
	if news {
		m.changed()
	}
	f := []zap.Field{zap.String("peer", t.Host), zap.String("state", state)}
	switch {
	case slow && !wasSlow:
		m.log.Warn(fmt.Sprintf("this host has not been reached for %v and is tried more and more rarely from now on, in the end every %v; "+
			"if it is gone for good, run `weft disconnect %s`", slowAfter, slowWait, t.Host), f...)
	case slow || !news:
	case err == nil:
		m.log.Info("join", append(f, zap.Stringer("node", them.id), zap.String("name", them.name))...)
	case told:
	default:
		m.log.Info("join", f...)
	}
	return pause, slow
}

// rest waits before the next try of a target, but not once the node that was found there before is alive.
func (m *Mesh) rest(ctx context.Context, t *target, pause time.Duration) {
	for end := time.Now().Add(pause); sleep(ctx, min(checkEvery, time.Until(end))); {
		m.mu.Lock()
		p := m.peers[t.Node]
		back := p != nil && p.living.len() > 0
		m.mu.Unlock()
		if back || !time.Now().Before(end) {
			return
		}
	}
}

// Targets returns the join targets in the order in which they were added.
func (m *Mesh) Targets() []Target {
	m.mu.Lock()
	defer m.mu.Unlock()
	ts := make([]Target, len(m.targets))
	for i, t := range m.targets {
		ts[i] = t.Target
	}
	return ts
}
