// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/manifest"
)

const (
	// pageSize is how many objects are asked for at once, and of how many one batch is made.
	pageSize = 500
	// maxObject bounds one object as the API server writes it, in bytes; etcd takes 1.5 MiB.
	maxObject = 8 << 20
	// watchTime is how long a watch is asked to last at least, and at most twice that.
	watchTime = 5 * time.Minute
	// absentWait is after what time the API server is asked again for a resource that it does not have, or half of that more; absentSure for how long it
	// must not have it before what there was of it is gone.
	absentWait, absentSure = time.Minute, 30 * time.Second

	annotationEnd = "k8s.io/initial-events-end" // of the bookmark that ends what there was
)

// A follower tells what objects of a kind there are, and what changes, without keeping them: of those that it has told it has the names, so that
// it can tell which are gone after it had lost sight of them. It reads objects one at a time off the connection: by a watch that begins with what
// there is, and where the API server does not know that, by a list in pages and a watch after it.
//
// It is used by the goroutine of run alone.
type follower struct {
	of resource
	// optional says that the API server may not have the resource: then there are no objects.
	optional bool
	// read translates an object. It does not keep raw.
	read func(raw []byte) (one, error)
	drop func(to Changes, name policy.Name)
	// tell tells it on, listed says that all there was has been told, and heard what became of each try.
	tell   func(func(Changes))
	listed func()
	heard  func(error)

	told    *names
	version string // of what was told last; empty: nothing to go on from
	plain   bool   // the API server knows no watch that begins with what there is
	lacks   time.Time
	pace    pace
}

// one is what is read of an object.
type one struct {
	policy.Name
	version string
	set     func(Changes) // what is told of it; nil: it is none of those to follow
}

// errGone is the end of what can be gone on from.
var errGone = errors.New("what was seen last is too old to go on from")

// run follows until ctx ends. After errors it tries again, with growing patience and jitter.
func (f *follower) run(ctx context.Context) {
	f.told = newNames()
	for ctx.Err() == nil {
		wait, err := f.pace.begin(ctx)
		if err != nil {
			return
		}
		err = f.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if f.optional && apierrors.IsNotFound(err) {
			wait, err = f.absent(), nil
		}
		switch {
		case errors.Is(err, errGone):
			f.version = ""
			f.heard(err)
		case err != nil:
			f.heard(said(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// absent takes notice that the API server does not have the resource, and returns when to ask again. One that is starting may not have it for a
// moment.
func (f *follower) absent() time.Duration {
	if f.lacks.IsZero() {
		f.lacks = time.Now()
	}
	if f.told.count > 0 && time.Since(f.lacks) < absentSure {
		return absentSure / 4
	}
	f.version = ""
	f.settle(newNames())
	return absentWait + rand.N(absentWait/2)
}

// follow tells what there is, unless it can go on from what it has told, and what changes. It returns when the connection ends.
func (f *follower) follow(ctx context.Context) error {
	if f.version == "" && f.plain {
		if err := f.list(ctx); err != nil {
			return err
		}
	}
	err := f.watch(ctx)
	if f.version == "" && (apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)) {
		f.plain = true
		if err = f.list(ctx); err == nil {
			err = f.watch(ctx)
		}
	}
	return err
}

// list tells all objects, a page at a time.
func (f *follower) list(ctx context.Context) error {
	seen := f.see()
	o := metav1.ListOptions{Limit: pageSize, ResourceVersion: "0"} // from memory, not from etcd
	for {
		version, next, err := f.page(ctx, o, seen)
		if apierrors.IsResourceExpired(err) && o.Continue != "" { // it took too long
			o = metav1.ListOptions{Limit: pageSize}
			seen = newNames()
			continue
		}
		if err != nil {
			return err
		}
		if next == "" {
			f.version = version
			f.settle(seen)
			return nil
		}
		o = metav1.ListOptions{Limit: pageSize, Continue: next}
	}
}

// page tells the objects of one page, and returns the version of the list, and where the next page begins.
func (f *follower) page(ctx context.Context, o metav1.ListOptions, seen *names) (version, next string, err error) {
	body, err := f.of.on(f.of.client.Get()).VersionedParams(&o, metav1.ParameterCodec).Stream(ctx)
	if err != nil {
		return "", "", err //nolint:wrapcheck // the caller looks at what it is
	}
	defer func() { _ = body.Close() }()
	in := &bounded{from: body, left: maxObject}
	d := json.NewDecoder(in)
	b := batch{f: f}
	err = members(d, func(key string) error {
		switch key {
		case "metadata":
			var meta struct{ ResourceVersion, Continue string }
			err := d.Decode(&meta)
			version, next = meta.ResourceVersion, meta.Continue
			return err
		case "items":
			return items(d, func(raw []byte) error {
				in.left = maxObject
				_, err := b.add(raw, seen)
				return err
			})
		}
		var other json.RawMessage
		return d.Decode(&other)
	})
	b.flush()
	if err == nil && version == "" {
		err = errors.New("the list has no version")
	}
	return version, next, err
}

// see returns where the names go of what is seen until all was: if nothing has been told yet, that is what is told.
func (f *follower) see() *names {
	if f.told.count == 0 {
		return f.told
	}
	return newNames()
}

// settle takes what was seen for all that there is.
func (f *follower) settle(seen *names) {
	var gone []policy.Name
	for name := range f.told.all() {
		if !seen.has(name) {
			gone = append(gone, name)
		}
	}
	if len(gone) > 0 {
		f.tell(func(to Changes) {
			for _, name := range gone {
				f.drop(to, name)
			}
		})
	}
	f.told = seen
	f.heard(nil)
	f.listed()
}

// watched is an event of a watch.
type watched struct {
	Type   string          `json:"type"`
	Object json.RawMessage `json:"object"`
}

// watch tells what changes, from the version on that was told last. If there is none, it tells all that there is first.
func (f *follower) watch(ctx context.Context) error {
	patience := int64((watchTime + rand.N(watchTime)).Seconds())
	o := metav1.ListOptions{Watch: true, AllowWatchBookmarks: true, ResourceVersion: f.version, TimeoutSeconds: &patience}
	var seen *names // until all was told that there was
	if f.version == "" {
		initial := true
		o.SendInitialEvents, o.ResourceVersionMatch = &initial, metav1.ResourceVersionMatchNotOlderThan
		seen = f.see()
	}
	body, err := f.of.on(f.of.client.Get()).VersionedParams(&o, metav1.ParameterCodec).Stream(ctx)
	if err != nil {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			err = errGone
		}
		return err //nolint:wrapcheck // the caller looks at what it is
	}
	defer func() { _ = body.Close() }()
	f.lacks = time.Time{}
	if seen == nil {
		f.heard(nil)
	}
	in := &bounded{from: body}
	d := json.NewDecoder(in)
	b := batch{f: f}
	var e watched // its memory is used again
	for {
		in.left = maxObject
		if e.Type, e.Object = "", e.Object[:0]; cap(e.Object) > 1<<16 {
			e.Object = nil
		}
		if err := d.Decode(&e); err != nil {
			b.flush()
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil // as every watch ends
			}
			return fmt.Errorf("watching %s: %w", f.of.plural, err)
		}
		end, err := f.event(e, &b, seen)
		if err != nil {
			b.flush()
			return err
		}
		if end {
			b.flush()
			f.settle(seen)
			seen = nil
		}
		if seen == nil {
			b.flush()
		}
	}
}

// event puts what one says into the batch, and tells whether it ends what there was.
func (f *follower) event(e watched, b *batch, seen *names) (end bool, err error) {
	if e.Type == "ERROR" {
		var s metav1.Status
		if err := json.Unmarshal(e.Object, &s); err != nil {
			return false, fmt.Errorf("watching %s: %w", f.of.plural, err)
		}
		if s.Code == 410 {
			return false, errGone
		}
		return false, apierrors.FromObject(&s)
	}
	var version string
	switch e.Type {
	case "ADDED", "MODIFIED":
		version, err = b.add(e.Object, seen)
	case "DELETED", "BOOKMARK":
		var o struct {
			Metadata struct {
				manifest.Metadata
				Annotations map[string]string `json:"annotations"`
			} `json:"metadata"`
		}
		if err = json.Unmarshal(e.Object, &o); err != nil {
			return false, fmt.Errorf("watching %s: %w", f.of.plural, err)
		}
		version = o.Metadata.ResourceVersion
		if end = seen != nil && o.Metadata.Annotations[annotationEnd] == "true"; e.Type == "DELETED" {
			b.drop(policy.Name{Namespace: o.Metadata.Namespace, Name: o.Metadata.Name}, seen)
		}
	default:
		return false, fmt.Errorf("watching %s: an event of the unknown type %.20q", f.of.plural, e.Type)
	}
	if err == nil && version != "" && (seen == nil || end) {
		f.version = version
	}
	return end, err
}

// batch gathers what is told at once.
type batch struct {
	f   *follower
	all []func(Changes)
}

// add puts an object into it, and its name into seen, and returns its version. One that is not to be followed is dropped.
func (b *batch) add(raw []byte, seen *names) (version string, err error) {
	o, err := b.f.read(raw)
	if err == nil && o.Name.Name == "" {
		err = errors.New("there is one without a name")
	}
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", b.f.of.plural, err)
	}
	if o.set == nil {
		b.drop(o.Name, seen)
		return o.version, nil
	}
	b.f.told.add(o.Name)
	if seen != nil {
		seen.add(o.Name)
	}
	b.put(o.set)
	return o.version, nil
}

// drop puts it into the batch that an object is gone, if it was told.
func (b *batch) drop(name policy.Name, seen *names) {
	if b.f.told.has(name) {
		b.put(func(to Changes) { b.f.drop(to, name) })
	}
	b.f.told.remove(name)
	if seen != nil {
		seen.remove(name)
	}
}

func (b *batch) put(change func(Changes)) {
	if b.all = append(b.all, change); len(b.all) >= pageSize {
		b.flush()
	}
}

func (b *batch) flush() {
	if len(b.all) == 0 {
		return
	}
	all := b.all
	b.f.tell(func(to Changes) {
		for _, change := range all {
			change(to)
		}
	})
	b.all = nil
}

// bounded fails once more was read than is left.
type bounded struct {
	from io.Reader
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("an object has more than %d bytes", maxObject)
	}
	n, err := b.from.Read(p)
	b.left -= n
	return n, err //nolint:wrapcheck // io.EOF
}

// members calls f for each member of an object, whose value it must read.
func members(d *json.Decoder, f func(key string) error) error {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("the answer is no object (%w)", err)
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err //nolint:wrapcheck // of the connection
		}
		key, _ := t.(string)
		if err := f(key); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err //nolint:wrapcheck // of the connection
}

// items calls f for each item of a list, one after the other. f does not keep it.
func items(d *json.Decoder, f func(raw []byte) error) error {
	t, err := d.Token()
	if err != nil || t == nil {
		return err //nolint:wrapcheck // of the connection
	}
	if t != json.Delim('[') {
		return errors.New("the items are no list")
	}
	var raw json.RawMessage
	for d.More() {
		if err := d.Decode(&raw); err != nil {
			return err //nolint:wrapcheck // of the connection
		}
		if err := f(raw); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err //nolint:wrapcheck // of the connection
}

// pace keeps tries apart: after one that has not lasted the next one waits, from firstWait on up to lastWait, and up to half of that more.
type pace struct {
	begun time.Time
	wait  time.Duration
}

// begin notes that a try begins, and returns how long to wait after it.
func (p *pace) begin(ctx context.Context) (after time.Duration, err error) {
	if p.begun.IsZero() || time.Since(p.begun) > p.wait+lasting {
		p.wait = 0
	}
	p.wait = min(max(2*p.wait, firstWait), lastWait)
	p.begun = time.Now()
	return p.wait + rand.N(p.wait/2), ctx.Err()
}
