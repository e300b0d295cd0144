// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// A mirror keeps what is needed of the objects of one kind, by name, as the API server shows them; while it cannot be reached, as it showed
// them last. It is safe for concurrent use.
type mirror[T any] struct {
	lister  *lister
	object  runtime.Object
	trim    func(runtime.Object) T
	changed func() // called after a change, without a lock

	mu      sync.Mutex
	all     map[string]T
	lent    bool   // somebody reads all, which is not written to any more
	version uint64 // counts the changes of all
	synced  bool   // all has been complete once
	err     error  // why nothing is heard at the moment; nil: something is
}

// newMirror makes a mirror of the objects of a resource, or of the one of that name.
func newMirror[T, O any, P interface {
	*O
	runtime.Object
}](of resource, name string, trim func(P) T, changed func()) *mirror[T] {
	m := &mirror[T]{object: P(new(O)), changed: changed, all: map[string]T{}}
	m.trim = func(o runtime.Object) T {
		p, ok := o.(P)
		if !ok { // the reflector has checked it
			p = new(O)
		}
		return trim(p)
	}
	m.lister = &lister{of: of, name: name, list: listTrimmed(trim), heard: m.heard}
	return m
}

// run follows the objects until ctx ends. After errors it tries again, with growing patience and jitter.
func (m *mirror[T]) run(ctx context.Context) {
	following := klog.NewContext(ctx, klog.Logger{}) // what matters is heard
	r := cache.NewReflectorWithOptions(m.lister, m.object, (*mirrorStore[T])(m), cache.ReflectorOptions{Name: m.lister.of.plural})
	wait := time.Duration(0)
	for ctx.Err() == nil {
		begun := time.Now()
		if err := r.ListAndWatchWithContext(following); err == nil && time.Since(begun) > lasting {
			wait = 0
		}
		wait = min(max(2*wait, firstWait), lastWait)
		select {
		case <-ctx.Done():
		case <-time.After(wait + rand.N(wait/2)):
		}
	}
}

func (m *mirror[T]) heard(err error) {
	m.mu.Lock()
	m.err = err
	m.mu.Unlock()
	if err != nil {
		m.changed()
	}
}

// get returns one, whether it is there, and whether that is sure.
func (m *mirror[T]) get(name string) (v T, ok, synced bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok = m.all[name]
	return v, ok, m.synced
}

// snapshot returns all, to be read only, and whether these are all.
func (m *mirror[T]) snapshot() (all map[string]T, synced bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lent = true
	return m.all, m.synced
}

// state is a number that is another one after a change.
func (m *mirror[T]) state() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.version
}

// own makes all one that may be written to. The caller has the lock.
func (m *mirror[T]) own() map[string]T {
	if m.lent {
		m.all, m.lent = maps.Clone(m.all), false
	}
	m.version++
	return m.all
}

// why is why nothing was heard yet.
func (m *mirror[T]) why() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// mirrorStore is the side of a mirror that the reflector writes to.
type mirrorStore[T any] mirror[T]

// Transformer has the reflector keep what is needed of the objects that it collects before they replace others: there may be very many, and most
// of each is not.
func (s *mirrorStore[T]) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		meta, v, err := s.value(o)
		if err != nil {
			return nil, err
		}
		return newTrimmed(meta, v), nil
	}
}

// value is what is needed of an object, whether it was trimmed before or not.
func (s *mirrorStore[T]) value(o any) (meta metav1.Object, v T, err error) {
	if t, ok := o.(*trimmed[T]); ok {
		return t, t.value, nil
	}
	meta, ok := o.(metav1.Object)
	object, is := o.(runtime.Object)
	if !ok || !is {
		return nil, v, fmt.Errorf("got a %T", o)
	}
	return meta, s.trim(object), nil
}

func (s *mirrorStore[T]) set(o any) error {
	meta, v, err := s.value(o)
	if err != nil {
		return err
	}
	s.mu.Lock()
	before, ok := s.all[meta.GetName()]
	same := ok && reflect.DeepEqual(before, v) // a kubelet writes every few minutes that its node is as it was
	if !same {
		(*mirror[T])(s).own()[meta.GetName()] = v
	}
	s.mu.Unlock()
	if !same {
		s.changed()
	}
	return nil
}

func (s *mirrorStore[T]) Add(o any) error    { return s.set(o) }
func (s *mirrorStore[T]) Update(o any) error { return s.set(o) }

func (s *mirrorStore[T]) Delete(o any) error {
	meta, ok := o.(metav1.Object)
	if !ok {
		return fmt.Errorf("got a %T", o)
	}
	s.mu.Lock()
	delete((*mirror[T])(s).own(), meta.GetName())
	s.mu.Unlock()
	s.changed()
	return nil
}

func (s *mirrorStore[T]) Replace(objects []any, _ string) error {
	all := make(map[string]T, len(objects))
	for _, o := range objects {
		meta, v, err := s.value(o)
		if err != nil {
			return err
		}
		all[meta.GetName()] = v
	}
	s.mu.Lock()
	s.all, s.lent, s.synced, s.err = all, false, true, nil
	s.version++
	s.mu.Unlock()
	s.changed()
	return nil
}

func (s *mirrorStore[T]) Resync() error { return nil }
