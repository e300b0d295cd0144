// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/integration/lab"
)

// with returns the keys with others added.
func (k keys) with(more keys) keys {
	out := maps.Clone(k)
	maps.Copy(out, more)
	return out
}

// weftConf is a configuration of Weft's plugin on the host.
func (c *cniHost) weftConf() keys { return keys{"type": weftType, "runDir": c.RunDir()} }

// weft is a network of Weft's plugin alone.
func (c *cniHost) weft() *libcni.NetworkConfigList {
	c.t.Helper()
	return network(c.t, newest, "weft", c.weftConf())
}

// gc has the network forget all but these containers.
func (c *cniHost) gc(n *libcni.NetworkConfigList, valid ...*pod) error {
	ctx, cancel := within()
	defer cancel()
	args := &libcni.GCArgs{}
	for _, p := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: p.ContainerID, IfName: p.IfName})
	}
	return c.lib.GCNetworkList(ctx, n, args)
}

// refusal is the error that a plugin has printed, nil if it has succeeded.
func (c *call) refusal() error {
	if c.code == 0 {
		return nil
	}
	e := &types.Error{}
	if err := json.Unmarshal(c.stdout, e); err != nil {
		return fmt.Errorf("%v: %w", c, err)
	}
	return e
}

// replaceAll replaces something that has to be there.
func replaceAll(t *testing.T, s string, change [2]string) string {
	t.Helper()
	if !strings.Contains(s, change[0]) {
		t.Fatalf("there is no %q in %s", change[0], s)
	}
	return strings.ReplaceAll(s, change[0], change[1])
}

// refusedBy checks that a verb was refused with a code and a message and advice that have all the parts.
func refusedBy(t *testing.T, err error, code uint, parts ...string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Errorf("got %v, want an error with code %d", err, code)
		return
	}
	if e.Code != code {
		t.Errorf("code %d, want %d: %v", e.Code, code, e)
	}
	if e.Details == "" {
		t.Errorf("no advice: %v", e)
	}
	for _, p := range parts {
		if !strings.Contains(e.Msg+"; "+e.Details, p) {
			t.Errorf("refused with %q; %q, which lacks %q", e.Msg, e.Details, p)
		}
	}
}

// before is what a host had.
type before struct {
	host   *lab.Host
	lines  []string
	owners []string
}

// noted notes the network configuration of a host, and who has addresses on it.
func noted(t *testing.T, h *lab.Host) before {
	t.Helper()
	return before{h, snapshot(t, h.Namespace), owners(t, h)}
}

// leaks checks that the host is as it was.
func (b before) leaks(t *testing.T) {
	t.Helper()
	same(t, "on "+b.host.Name(), b.lines, snapshot(t, b.host.Namespace))
	same(t, "addresses on "+b.host.Name(), b.owners, owners(t, b.host))
}

// owners returns who has addresses on a host, nobody where no daemon runs.
func owners(t *testing.T, h *lab.Host) (out []string) {
	t.Helper()
	if !h.Running() {
		return nil
	}
	for _, a := range ask[space](t, h, "ipam").Allocations {
		out = append(out, a.Owner)
	}
	slices.Sort(out)
	return out
}
