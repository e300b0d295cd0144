// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/api/apitest"
)

func TestCNIReachesTheDaemon(t *testing.T) {
	d := &apitest.Daemon{}
	c := api.NewClient(apitest.Serve(t, d))
	ctx := t.Context()
	r := cni.Request{
		Key: cni.Key{ContainerID: "c1", IfName: "eth0"}, Network: "net1", Netns: "/run/netns/c1", MAC: "0a:58:0a:20:00:07", MTU: 1300,
		IPs: []netip.Addr{netip.MustParseAddr("10.32.0.7")}, Pod: cni.Pod{Namespace: "shop", Name: "till", UID: "u-1"},
	}
	a, err := c.CNIAttach(ctx, r)
	if err != nil || a.MAC != r.MAC || a.MTU != r.MTU || !reflect.DeepEqual(a.Addresses, r.IPs) || len(a.Routes) != 1 {
		t.Errorf("got %+v, %v", a, err)
	}
	check := cni.CheckRequest{Key: r.Key, Network: r.Network, Netns: r.Netns, Want: a}
	if err := c.CNICheck(ctx, check); err != nil {
		t.Error(err)
	}
	if err := c.CNICheck(ctx, cni.CheckRequest{}); err != nil {
		t.Errorf("whether one could be made: %v", err)
	}
	// A host has many containers.
	var all []cni.Key
	for i := range 4000 {
		all = append(all, cni.Key{ContainerID: fmt.Sprintf("%s%04d", strings.Repeat("c", 124), i), IfName: "interface012345"})
	}
	if err := c.CNIDetach(ctx, cni.Release{Network: "net1", Valid: append(all, r.Key)}); err != nil {
		t.Error(err)
	}
	if err := c.CNICheck(ctx, check); err != nil {
		t.Errorf("it was valid: %v", err)
	}
	if err := c.CNIDetach(ctx, cni.Release{Key: r.Key, Network: r.Network}); err != nil {
		t.Error(err)
	}
	want := &cni.Error{Code: cni.CodeUnknown, Msg: "container c1 has no eth0", Details: "add it"}
	var got *cni.Error
	if err := c.CNICheck(ctx, check); !errors.As(err, &got) || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", err, want)
	}
}

// An error of the plugin's requests comes out as it went in, with its code, whatever its text.
func TestCNIErrorKeepsItsParts(t *testing.T) {
	for _, want := range []*cni.Error{
		{Code: cni.CodeUnavailable, Msg: "no"},
		{Code: cni.CodeLimited, Msg: "a; b; c", Details: "d"},
		{Code: cni.CodeTryLater, Msg: "d; d", Details: "d"},
	} {
		c := api.NewClient(apitest.Serve(t, &apitest.Daemon{Unavailable: want}))
		var got *cni.Error
		if err := c.CNICheck(t.Context(), cni.CheckRequest{}); !errors.As(err, &got) || !reflect.DeepEqual(got, want) {
			t.Errorf("got  %#v\nwant %#v", err, want)
		}
	}
}
