// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// codeInternal is that of a panic, as containernetworking's plugins have it.
const codeInternal = 999

// add is ADD: an interface and its addresses, or nothing.
func (c *call) add(ctx context.Context) error {
	k, err := c.key()
	if err != nil {
		return err
	}
	r := Request{Key: k, Network: c.conf.network, AddressesOnly: c.conf.addressesOnly, MTU: c.conf.mtu, Begun: c.begun, Labels: c.conf.labels, Namespace: c.conf.namespace}
	if r.Netns, err = c.netns(); err != nil {
		return err
	}
	args, pod, err := c.args()
	if err != nil {
		return err
	}
	wanted := c.conf.wanted.over(args)
	r.IPs, r.MAC, r.Pod = wanted.ips, wanted.mac, pod
	if r.AddressesOnly {
		r.MAC = "" // the other plugin sees to it
	}
	prev, err := c.previous()
	if err != nil {
		return err
	}
	c.step("add-ask")
	a, doubt, err := c.attach(ctx, r)
	if err == nil {
		c.step("add-answer")
		if err = c.printResult(c.result(r, a, prev)); err == nil {
			c.step("add-printed")
			c.warn(a.Warnings)
			return nil
		}
		doubt = true
		err = &Error{CodeIO, "the result cannot be given to the runtime: " + oneLine(err.Error()), "what was attached is taken away again; see why the runtime does not read"}
	}
	if doubt { // nothing remains, although nobody knows what there is
		if rerr := c.release(context.WithoutCancel(ctx), Release{Key: k, Network: r.Network, Netns: r.Netns, Begun: c.begun}); rerr != nil {
			c.warn([]string{"what ADD has begun is left to the runtime's DEL: " + rerr.Error()})
		}
	}
	return err
}

// attach asks for an attachment. With an error it tells whether there may be one nevertheless.
func (c *call) attach(ctx context.Context, r Request) (a Attachment, doubt bool, err error) {
	err = c.patiently(ctx, func() error {
		a, err = c.daemon.Attach(ctx, r)
		var refused *Error
		doubt = doubt || err != nil && !errors.As(err, &refused) && !errors.Is(err, ErrNotRunning)
		return err
	})
	if err != nil {
		return a, doubt, err
	}
	err = a.fits(r)
	return a, err != nil, err
}

// fits reports an answer that is none to r: the runtime gets nothing that it could not use.
func (a Attachment) fits(r Request) error {
	bad := len(a.Addresses) == 0 || !r.AddressesOnly && (badIfName(a.HostIf) != "" || a.MAC == "")
	for _, ip := range a.Addresses {
		bad = bad || !ip.IsValid()
	}
	for _, rt := range a.Routes {
		bad = bad || !rt.Dst.IsValid() || !rt.GW.IsValid()
	}
	if bad {
		return &Error{
			CodeFailed, "the daemon has answered with an attachment that lacks something",
			"the plugin and the daemon have to be of the same version: install the plugin anew with weft cni install",
		}
	}
	return nil
}

// check is CHECK: the daemon compares what the runtime has kept of ADD with what there is.
func (c *call) check(ctx context.Context) error {
	k, err := c.key()
	if err != nil {
		return err
	}
	r := CheckRequest{Key: k, Network: c.conf.network, AddressesOnly: c.conf.addressesOnly}
	if r.Netns, err = c.netns(); err != nil {
		return err
	}
	prev, err := c.previous()
	if err != nil {
		return err
	}
	if prev == nil {
		return invalid("CHECK is asked for without prevResult", "the runtime has to give it the result of ADD")
	}
	if r.Want, err = wanted(prev, r); err != nil {
		return err
	}
	return c.patiently(ctx, func() error { return c.daemon.Check(ctx, r) })
}

// status is STATUS. A daemon that is being restarted is waited for, also until it can attach something: where STATUS fails, a kubelet calls its
// node not ready, and takes all of its pods out of their Services.
func (c *call) status(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	return c.patientlyUntil(ctx, CodeUnavailable, starting, func() error { return c.daemon.Check(ctx, CheckRequest{Network: c.conf.network}) })
}

// starting tells of an answer to STATUS whether there may be another one in a moment.
func starting(err error) bool {
	var refused *Error
	return absent(err) || errors.As(err, &refused) && (refused.Code == CodeUnavailable || refused.Code == CodeLimited)
}

// absent tells whether no daemon has answered.
func absent(err error) bool { return errors.Is(err, ErrNotRunning) || errors.Is(err, ErrBrokenOff) }

// del is DEL: done, or kept for the daemon to do.
func (c *call) del(ctx context.Context) error {
	k, err := c.key()
	if err != nil {
		return err
	}
	r := Release{Key: k, Network: c.conf.network, Begun: c.begun}
	if netns, err := c.netns(); err == nil { // what is no namespace has nothing in it
		r.Netns = netns
	}
	return c.release(ctx, r)
}

// release takes an attachment away, or has the daemon do it later.
func (c *call) release(ctx context.Context, r Release) error {
	ctx, cancel := context.WithTimeout(ctx, releaseWait)
	defer cancel()
	c.step("del-ask")
	err := c.daemon.Detach(ctx, r)
	var refused *Error
	if err == nil || errors.As(err, &refused) {
		return err
	}
	c.step("del-unanswered")
	c.backlog.step = c.step
	if perr := c.backlog.Put(r); perr != nil {
		return &Error{
			CodeIO, fmt.Sprintf("%s, and that container %s is to be released cannot be kept for it: %s", oneLine(err.Error()), quoted(r.ContainerID), oneLine(perr.Error())),
			"make " + c.conf.runDir + " writable, or start the daemon with: weft launch; then repeat this",
		}
	}
	c.step("del-kept")
	if ctx.Err() == nil {
		// It may have started, and read the backlog, just before. It reads it again before it does anything else.
		_ = c.daemon.Detach(ctx, r)
	}
	return nil
}

// gc is GC.
func (c *call) gc(ctx context.Context) error {
	r := Release{Network: c.conf.network, Begun: c.begun}
	var err error
	if r.Valid, err = c.conf.valid(); err != nil {
		return err
	}
	return c.patiently(ctx, func() error { return c.daemon.Detach(ctx, r) })
}

// valid reads which attachments stay. A list that is missing releases nothing, an empty one all that there are.
func (c *config) valid() ([]Key, error) {
	const key, older = "cni.dev/valid-attachments", "cni.dev/attachments"
	raw, ok := c.keys[key]
	if !ok {
		raw, ok = c.keys[older]
	}
	if !ok {
		return nil, invalid("GC is asked for without "+quoted(key), "the runtime has to tell which attachments stay: nothing was released")
	}
	var all []struct {
		ContainerID string `json:"containerID"`
		IfName      string `json:"ifname"`
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, invalid(quoted(key)+" is no list of attachments", "it has to consist of objects with containerID and ifname: nothing was released")
	}
	valid := make([]Key, 0, len(all))
	for _, a := range all {
		// It may be meant for one that there is.
		if a.ContainerID == "" || len(a.ContainerID) > maxContainerID || !identifier(a.ContainerID) || badIfName(a.IfName) != "" {
			return nil, invalid(fmt.Sprintf("%s has container %s with interface %s, which is none", quoted(key), quoted(a.ContainerID), quoted(a.IfName)),
				"it has to consist of objects with containerID and ifname: nothing was released")
		}
		valid = append(valid, Key{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	slices.SortFunc(valid, func(a, b Key) int {
		return cmp.Or(strings.Compare(a.ContainerID, b.ContainerID), strings.Compare(a.IfName, b.IfName))
	})
	return slices.Compact(valid), nil
}

// patiently asks again as long as no daemon answers, as it may be starting, and explains what it is told in the end.
func (c *call) patiently(ctx context.Context, ask func() error) error {
	return c.patientlyUntil(ctx, CodeTryLater, absent, ask)
}

// patientlyUntil asks again as long as the answer may change soon. What is no refusal gets the code.
func (c *call) patientlyUntil(ctx context.Context, code uint, again func(error) bool, ask func() error) error {
	var wait <-chan time.Time // since it has first not answered
	for {
		err := ask()
		if !again(err) {
			return c.explain(ctx, err, code)
		}
		if wait == nil {
			wait = time.After(startWait)
		}
		select {
		case <-wait:
			return c.explain(ctx, err, code)
		case <-ctx.Done():
			return c.explain(ctx, err, code)
		case <-time.After(startPause):
		}
	}
}

// explain gives the errors of who did not answer the code.
func (c *call) explain(ctx context.Context, err error, code uint) error {
	var refused *Error
	switch {
	case err == nil || errors.As(err, &refused):
		return err
	case errors.Is(err, ErrNotRunning):
		return &Error{code, oneLine(err.Error()), "start it with: weft launch; if it runs with another --run-dir than " + c.conf.runDir + `, set "runDir" in the network configuration`}
	case errors.Is(err, ErrBrokenOff):
		return &Error{code, oneLine(err.Error()), "see its log; start it with: weft launch"}
	case ctx.Err() != nil:
		return &Error{code, "the daemon has not answered in time: " + oneLine(err.Error()), "see whether weft status answers on this host, and the daemon's log"}
	}
	if code == CodeTryLater { // it would be no better then
		code = CodeIO
	}
	return &Error{code, oneLine(err.Error()), "see whether weft status answers on this host"}
}
