// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// trimmed is what is needed of an object, in the shape of one: its name and version, and value. A reflector collects these.
type trimmed[T any] struct {
	metav1.TypeMeta
	metav1.ObjectMeta

	value T
}

func newTrimmed[T any](o metav1.Object, value T) *trimmed[T] {
	t := &trimmed[T]{value: value}
	t.Name, t.Namespace, t.UID, t.ResourceVersion = o.GetName(), o.GetNamespace(), o.GetUID(), o.GetResourceVersion()
	return t
}

func (t *trimmed[T]) DeepCopyObject() runtime.Object {
	c := *t // what it has is never written to
	return &c
}

// trimmedList is a list of them.
type trimmedList[T any] struct {
	metav1.TypeMeta
	metav1.ListMeta

	Items []trimmed[T]
}

func (l *trimmedList[T]) DeepCopyObject() runtime.Object {
	c := *l // as above
	return &c
}

// listTrimmed returns a function that reads a list of objects of the type O from JSON, one after the other: however many there are, no more than one
// of them is in memory as a whole. API servers that cannot begin a watch with what there is answer so.
func listTrimmed[T, O any, P interface {
	*O
	runtime.Object
}](trim func(P) T) func(io.Reader) (runtime.Object, error) {
	return func(r io.Reader) (runtime.Object, error) {
		var all trimmedList[T]
		in := json.NewDecoder(r)
		if err := begins(in, '{'); err != nil {
			return nil, err
		}
		for in.More() {
			key, err := in.Token()
			if err != nil {
				return nil, fmt.Errorf("reading a list: %w", err)
			}
			switch key {
			case "metadata":
				err = in.Decode(&all.ListMeta)
			case "items":
				all.Items, err = trimItems(in, trim)
			default:
				err = in.Decode(new(json.RawMessage))
			}
			if err != nil {
				return nil, fmt.Errorf("reading the %v of a list: %w", key, err)
			}
		}
		if err := begins(in, '}'); err != nil {
			return nil, err
		}
		return &all, nil
	}
}

// trimItems reads the objects of a list.
func trimItems[T, O any, P interface {
	*O
	runtime.Object
}](in *json.Decoder, trim func(P) T) (items []trimmed[T], err error) {
	first, err := in.Token()
	if err != nil || first == nil { // null: there are none
		return nil, err //nolint:wrapcheck // the caller does
	}
	if first != json.Delim('[') {
		return nil, fmt.Errorf("%v where an array should begin", first)
	}
	for in.More() {
		o := P(new(O))
		if err := in.Decode(o); err != nil {
			return nil, err //nolint:wrapcheck // the caller does
		}
		meta, ok := any(o).(metav1.Object)
		if !ok {
			return nil, fmt.Errorf("a %T has no metadata", o)
		}
		items = append(items, *newTrimmed(meta, trim(o)))
	}
	return items, begins(in, ']')
}

// begins reads a delimiter.
func begins(in *json.Decoder, want json.Delim) error {
	switch got, err := in.Token(); {
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case err != nil:
		return fmt.Errorf("reading a list: %w", err)
	case got != want:
		return fmt.Errorf("reading a list: %v where %v should be", got, want)
	}
	return nil
}
