// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/mesh"
)

const (
	// The first retries come quickly; later ones still often enough that hosts
	// started in any order are together a few seconds after the last one.
	firstRetry = 250 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// prober is the part of mesh.Prober that finding a mesh needs.
type prober interface {
	Probe(ctx context.Context, addr netip.AddrPort) (mesh.Hello, error)
}

// finder asks the hosts of --peer for their mesh until one answers.
type finder struct {
	targets func() []string // HOST:PORT; they may change
	network mesh.Network
	probe   prober
	again   <-chan struct{}     // to be asked at once; may be nil
	waits   func(reason string) // told why nothing was found yet, whenever that changes
	log     *zap.Logger
}

// find returns what the first host that is in a mesh says of it. It goes on for
// as long as ctx lasts; only a host that shows the token to be wrong ends it.
func (f finder) find(ctx context.Context) (universe, error) {
	var last string
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		var reasons []string
		for _, t := range f.targets() {
			u, err := f.ask(ctx, t)
			switch {
			case err == nil:
				return u, nil
			case errors.Is(err, mesh.ErrWrongToken):
				return universe{}, fmt.Errorf("the token is not that of the mesh at %s; get the right one there by `weft token --raw`, and give it by --token-file or WEFT_TOKEN", t)
			case ctx.Err() != nil:
				return universe{}, fmt.Errorf("joining was broken off: %w", context.Cause(ctx))
			}
			reasons = append(reasons, err.Error())
		}
		if reason := strings.Join(reasons, "; "); reason != last {
			last = reason
			f.waits(reason)
			f.log.Warn("waiting for a node of the mesh to answer; trying again and again", zap.String("reason", reason))
		}
		select {
		case <-ctx.Done():
			return universe{}, fmt.Errorf("joining was broken off: %w", context.Cause(ctx))
		case <-f.again:
			wait = firstRetry
		case <-time.After(wait + time.Duration(rand.Int64N(int64(wait/4)))):
		}
	}
}

// ask tries all addresses of one host; the error is what the last one said.
func (f finder) ask(ctx context.Context, target string) (universe, error) {
	host, p, err := net.SplitHostPort(target)
	if err != nil {
		return universe{}, fmt.Errorf("peer %s: %w", target, err)
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return universe{}, fmt.Errorf("peer %s: %w", target, err)
	}
	addrs := []netip.Addr{}
	if a, perr := netip.ParseAddr(host); perr == nil {
		addrs = append(addrs, a)
	} else if addrs, err = f.network.Lookup(ctx, host); err != nil {
		return universe{}, lookupError(host, err)
	}
	err = fmt.Errorf("%s: the name has no address", host)
	for _, a := range addrs {
		var hello mesh.Hello
		if hello, err = f.probe.Probe(ctx, netip.AddrPortFrom(a.Unmap(), uint16(port))); err != nil {
			if errors.Is(err, mesh.ErrWrongToken) {
				return universe{}, err
			}
			continue
		}
		if !hello.Universe.Known() {
			err = &mesh.DialError{Addr: netip.AddrPortFrom(a, uint16(port)), Err: mesh.ErrNoUniverse}
			continue
		}
		u, uerr := universeOf(hello.Universe)
		if uerr == nil {
			return u, nil
		}
		err = fmt.Errorf("%s: %w", target, uerr)
	}
	return universe{}, err
}

const (
	// copyPatience bounds how long a node that resumes asks whether it is alive
	// elsewhere; it covers what the one who is asked takes to look there.
	copyPatience = 1500 * time.Millisecond
	copyAsks     = 8 // nodes at the most
)

// refuseCopy asks the nodes known from before whether this one is alive at
// another place, as it is when its data directory was copied. One answer will
// do; none within copyPatience is as good as none at all.
func (n *Node) refuseCopy(ctx context.Context) error {
	known, err := loadRecords(n.store)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, copyPatience)
	defer cancel()
	probe := n.prober(n.rotor.snapshot())
	answers := make(chan error, copyAsks)
	asked := 0
	for _, r := range known {
		if asked == copyAsks || r.ID == n.state.identity.ID || len(r.Endpoints) == 0 {
			continue
		}
		asked++
		go func() {
			_, err := probe.Probe(ctx, r.Endpoints[0])
			answers <- err
		}()
	}
	var refused error
	for range asked {
		err := <-answers // Probe ends with ctx, so they all come
		if refused == nil && errors.Is(err, mesh.ErrClone) {
			refused = fmt.Errorf("data directory %s is a copy of that of a node that is alive on another host, as a node of its mesh says; run weft reset here to make it a new one", n.cfg.DataDir)
		}
		if err == nil || refused != nil {
			cancel()
		}
	}
	return refused
}

// lookupError tells a name that does not exist from a name service that does
// not answer.
func lookupError(host string, err error) error {
	var de *net.DNSError
	switch {
	case errors.As(err, &de) && de.IsNotFound:
		return fmt.Errorf("%s: there is no host of that name; is it spelt right?", host)
	case errors.As(err, &de):
		err = errors.New(de.Err)
	}
	return fmt.Errorf("%s: the name cannot be looked up (%w); does name resolution work on this host?", host, err)
}
