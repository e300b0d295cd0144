// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// kind is that of a value.
type kind uint8

const (
	absent  kind = iota // null, too
	object              // fields
	list                // items
	text                // scalar
	number              // scalar, as it is written
	boolean             // scalar: true or false
	strange             // scalar says what it is: nothing that JSON has, or nested too deep
)

// String is how an error names a kind.
func (k kind) String() string {
	return [...]string{"nothing", "an object", "a list", "a text", "a number", "true or false", "something strange"}[k]
}

// maxDepth is how deep values are read: policies need a third of it.
const maxDepth = 32

// value is one as it was written, with fields that nobody knows and those that are there twice.
type value struct {
	kind   kind
	line   int // in its document, 0: not known
	scalar string
	fields []field
	items  []value
}

type field struct {
	key   string
	value value
}

// trees is where the members of values are while they are read, and then. It is used again for the next tree.
type trees struct {
	fields, openFields []field
	items, openItems   []value
}

func (t *trees) reset() {
	t.fields, t.openFields, t.items, t.openItems = t.fields[:0], t.openFields[:0], t.items[:0], t.openItems[:0]
}

// mark says where the members of a value begin, which close takes for its.
func (t *trees) mark() (fields, items int) { return len(t.openFields), len(t.openItems) }

func (t *trees) close(v *value, fields, items int) {
	if open := t.openFields[fields:]; len(open) > 0 {
		t.fields = append(t.fields, open...)
		v.fields = t.fields[len(t.fields)-len(open) : len(t.fields) : len(t.fields)]
	}
	if open := t.openItems[items:]; len(open) > 0 {
		t.items = append(t.items, open...)
		v.items = t.items[len(t.items)-len(open) : len(t.items) : len(t.items)]
	}
	t.openFields, t.openItems = t.openFields[:fields], t.openItems[:items]
}

// get returns the field of that name, absent if there is none.
func (v value) get(key string) value {
	for _, f := range v.fields {
		if f.key == key {
			return f.value
		}
	}
	return value{line: v.line}
}

// parseJSON reads one value. Of the object's metadata and status no more is kept than its names and labels.
func (p *Parser) parseJSON(b []byte) (value, error) {
	if v, ok := p.quickJSON(b); ok {
		return v, nil
	}
	return slowJSON(b)
}

func slowJSON(b []byte) (value, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := parseValue(d, 0)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		return value{}, fmt.Errorf("this is not JSON: %w", err)
	}
	return v, nil
}

func parseValue(d *json.Decoder, depth int) (value, error) {
	if depth > maxDepth {
		return value{kind: strange, scalar: "is nested too deep"}, skip(d)
	}
	t, err := d.Token()
	if err != nil {
		return value{}, err
	}
	switch t := t.(type) {
	case string:
		return value{kind: text, scalar: t}, nil
	case json.Number:
		return value{kind: number, scalar: t.String()}, nil
	case bool:
		return value{kind: boolean, scalar: fmt.Sprint(t)}, nil
	case json.Delim:
		v := value{kind: object}
		if t == '[' {
			v.kind = list
		}
		for d.More() {
			if err := parseMember(d, &v, depth); err != nil {
				return value{}, err
			}
		}
		_, err := d.Token()
		return v, err
	}
	return value{}, nil
}

// parseMember reads the next member of a list or object into it.
func parseMember(d *json.Decoder, v *value, depth int) error {
	if v.kind == list {
		item, err := parseValue(d, depth+1)
		v.items = append(v.items, item)
		return err
	}
	t, err := d.Token()
	if err != nil {
		return err
	}
	key, _ := t.(string) // the decoder lets nothing else be one
	if unread(key, depth) {
		return skip(d)
	}
	member, err := parseValue(d, depth+1)
	v.fields = append(v.fields, field{key, member})
	return err
}

// unread says whether a member of an object that is so deep is not kept.
func unread(key string, depth int) bool {
	return depth == 0 && key == "status" || depth == 1 && key == "managedFields"
}

func skip(d *json.Decoder) error {
	var raw json.RawMessage
	return d.Decode(&raw)
}
