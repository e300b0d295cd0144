// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/internal/rotation"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/mesh"
)

const (
	// tokenPatience is how long a token that was given beside those of the data directory is tried until somebody answers.
	tokenPatience = 5 * time.Second
	tokenRetry    = 300 * time.Millisecond
	tokenAsks     = 16 // hosts at the most
)

// tryToken decides about a token that was given at the launch and is none of those in the data directory: if the mesh accepts it, as
// it does where it was rotated while this node was away, it takes their place; if it is one that this node has given up, in a
// rotation, it is left alone with a warning; else the launch ends, as nobody can know what was meant.
func (n *Node) tryToken(ctx context.Context, given token.Token) error {
	k, err := rotation.NewKey(given)
	if err != nil {
		return err
	}
	if past, err := n.isPastToken(k.ID); err != nil {
		return err
	} else if past {
		text := "the token given at the launch is not the mesh's any more, since it was rotated; this node goes on with the one in its data directory: " +
			"give the one that `weft token --raw` prints, or none"
		n.setWarning("given-token", text)
		n.log.Warn(text)
		return nil
	}
	path := filepath.Join(n.cfg.DataDir, token.FileName)
	ctx, cancel := context.WithTimeout(ctx, tokenPatience)
	defer cancel()
	universe, err := n.state.universe.info()
	if err != nil {
		return err
	}
	mine, other := n.prober(n.rotor.snapshot()), n.prober(rotation.State{Tokens: []rotation.Key{k}})
	other.Universe = universe
	var asked []string
	var elsewhere *mesh.UniverseMismatchError
	for {
		var hosts []netip.AddrPort
		if hosts, asked, err = n.whoKnows(ctx); err != nil {
			return err
		}
		if len(hosts) == 0 && len(asked) == 0 {
			return fmt.Errorf("the token given is not the one in %s, and this node knows no other to ask which one counts; launch without it, or run weft reset to join another mesh", path)
		}
		switch by, err := askAll(ctx, other, hosts); {
		case err == nil:
			n.log.Info("the token given is that of the mesh, and takes the place of the one in the data directory", zap.Stringer("accepted by", by))
			return n.rotor.update(false, func(s rotation.State) (rotation.State, error) { return s.Adopt(k), nil })
		case errors.As(err, &elsewhere):
			return fmt.Errorf("the token given is not the one in %s, it is that of another mesh, at %s; launch without it, or run weft reset to join that mesh", path, elsewhere.Host)
		case errors.Is(err, mesh.ErrWrongToken):
			if _, err := askAll(ctx, mine, []netip.AddrPort{by}); err == nil {
				return fmt.Errorf("the token given is not that of this node's mesh, which is the one in %s; launch without it, or run weft reset to join another mesh", path)
			}
			return fmt.Errorf("neither the token given nor the one in %s is that of the mesh at %v; launch with the one that `weft token --raw` prints there", path, by)
		}
		select {
		case <-ctx.Done():
		case <-time.After(tokenRetry):
			continue
		}
		if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
			return cause
		}
		return fmt.Errorf("the token given is not the one in %s, and nobody answers who could tell which one counts (asked: %s); launch again when one of them runs, or without it",
			path, brief(asked))
	}
}

// whoKnows are the hosts that may know the mesh's token, as addresses and as names for people.
func (n *Node) whoKnows(ctx context.Context) (addrs []netip.AddrPort, names []string, err error) {
	known, err := loadRecords(n.store)
	if err != nil {
		return nil, nil, err
	}
	add := func(name string, as ...netip.AddrPort) {
		if len(names) < tokenAsks {
			names = append(names, name)
			addrs = append(addrs, as...)
		}
	}
	guided, err := loadHosts(n.store, keyGuided)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range slices.Concat(n.cfg.Peers, guided) {
		as, err := mesh.Resolve(ctx, n.sys.network(), p, n.cfg.Port)
		if err != nil {
			as = nil // it may be known by the next time
		}
		add(p, as...)
	}
	for _, r := range known {
		if r.ID != n.state.identity.ID && len(r.Endpoints) > 0 && !slices.Contains(addrs, r.Endpoints[0]) {
			add(r.Name, r.Endpoints[0])
		}
	}
	slices.Sort(names)
	return addrs, names, nil
}

// askAll greets all hosts at the same time. It returns one that accepts the probe's token, or, with mesh.ErrWrongToken, one that does
// not, or, with a [*mesh.UniverseMismatchError], one that accepts it and is in another mesh; any other error says that none of them told.
func askAll(ctx context.Context, probe mesh.Prober, hosts []netip.AddrPort) (by netip.AddrPort, err error) {
	type answer struct {
		by  netip.AddrPort
		err error
	}
	answers := make(chan answer, len(hosts))
	for _, h := range hosts {
		go func() {
			_, err := probe.Probe(ctx, h)
			answers <- answer{h, err}
		}()
	}
	err = errors.New("nobody answers")
	var elsewhere *mesh.UniverseMismatchError
	for range hosts { // Probe ends with ctx, so they all come
		a := <-answers
		switch {
		case a.err == nil || errors.Is(a.err, mesh.ErrSelf) || errors.Is(a.err, mesh.ErrClone): // both come after the token
			by, err = a.by, nil
		case err != nil && errors.Is(a.err, mesh.ErrWrongToken):
			by, err = a.by, a.err
		case err != nil && !errors.Is(err, mesh.ErrWrongToken) && errors.As(a.err, &elsewhere):
			by, err = a.by, a.err
		}
	}
	return by, err
}

// isPastToken tells whether this node has given up a token of that name.
func (n *Node) isPastToken(id token.ID) (past bool, err error) {
	err = n.store.View(func(tx *store.Tx) error {
		for b := tx.Get(store.Meta, keyPastTokens); len(b) >= 4; b = b[4:] {
			past = past || token.ID(binary.BigEndian.Uint32(b)) == id
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("reading which tokens this node has given up: %w", err)
	}
	return past, nil
}
