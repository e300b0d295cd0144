// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bytes"
	"slices"
	"strings"
)

// Nearly all documents are written in a small part of YAML, which is read here in a twentieth of the time and memory that a parser of all of it
// takes: mappings and sequences by indentation, flows that end in the line in which they begin, words, whole numbers, and texts in quotes without
// escapes, all of ASCII. Whatever is not surely of that part is left to the parser. The two never differ in what a document says: fuzzing compares them.

const (
	// quickDepth is how deep what is read here is nested at most, less than maxDepth.
	quickDepth = 24
	// quickKey bounds a key, in bytes; the parser takes some more.
	quickKey = 256
)

// quick reads documents, one after the other.
type quick struct {
	words words
	trees trees
	lines []line // of the document
	next  int    // of lines
	depth int
}

// A line is one that holds something.
type line struct {
	indent int
	number int    // of the file, from 1
	rest   []byte // what is still to be read: without what it is indented by, and without spaces behind it
}

// read returns what parseYAML does, if it is sure of that. The value is valid until the next call.
func (q *quick) read(d document) (v value, ok bool) {
	q.trees.reset()
	if q.lines, q.next, q.depth = q.lines[:0], 0, 0; !q.cut(d) || len(q.lines) == 0 {
		return v, false
	}
	v, ok = q.block()
	return v, ok && q.next == len(q.lines)
}

// cut cuts a document into lines.
func (q *quick) cut(d document) bool {
	number := d.line - 1
	for b := range bytes.Lines(d.text) {
		number++
		b = bytes.TrimSuffix(b, []byte("\n"))
		if number == d.line && bytes.HasPrefix(b, []byte("---")) {
			if b = b[3:]; len(bytes.Trim(b, " ")) > 0 {
				return false
			}
		}
		for _, c := range b {
			if c < ' ' || c > '~' {
				return false
			}
		}
		rest := bytes.TrimLeft(b, " ")
		indent := len(b) - len(rest)
		if rest = bytes.TrimRight(rest, " "); len(rest) > 0 && rest[0] != '#' {
			q.lines = append(q.lines, line{indent, number, rest})
		}
	}
	return true
}

// peek returns the next line that is indented by that at least, nil if there is none.
func (q *quick) peek(indent int) *line {
	if q.next == len(q.lines) || q.lines[q.next].indent < indent {
		return nil
	}
	return &q.lines[q.next]
}

// block reads the mapping, sequence or flow that begins with the next line.
func (q *quick) block() (v value, ok bool) {
	if q.depth++; q.depth > quickDepth {
		return v, false
	}
	switch l := q.peek(0); {
	case l.item():
		v, ok = q.sequence(l.indent)
	case l.rest[0] == '{' || l.rest[0] == '[':
		v, ok = q.inline(l, l.rest)
	default:
		v, ok = q.mapping(l.indent)
	}
	q.depth--
	return v, ok
}

func (q *quick) mapping(indent int) (v value, ok bool) {
	v = value{kind: object, line: q.peek(indent).number}
	fields, items := q.trees.mark()
	for l := q.peek(indent); l != nil; l = q.peek(indent) {
		key, rest, ok := q.key(l.rest)
		if !ok || l.indent > indent { // what is before it goes on
			return v, false
		}
		var member value
		if len(rest) > 0 {
			member, ok = q.inline(l, rest)
		} else {
			q.next++
			member, ok = q.below(indent)
		}
		if !ok {
			return v, false
		}
		q.trees.openFields = append(q.trees.openFields, field{key, member})
	}
	q.trees.close(&v, fields, items)
	return v, true
}

// below reads the value of a key that has nothing behind it. It must be there: null is left to the parser.
func (q *quick) below(indent int) (v value, ok bool) {
	switch l := q.peek(indent); {
	case l == nil:
	case l.indent > indent:
		return q.block()
	case l.item():
		q.depth++
		v, ok = q.sequence(indent)
		q.depth--
	}
	return v, ok
}

func (q *quick) sequence(indent int) (v value, ok bool) {
	v = value{kind: list, line: q.peek(indent).number}
	fields, items := q.trees.mark()
	for l := q.peek(indent); l != nil && (l.item() || l.indent > indent); l = q.peek(indent) {
		if l.indent > indent { // what is before it goes on
			return v, false
		}
		var item value
		rest := bytes.TrimLeft(l.rest[1:], " ")
		if len(rest) == 0 {
			if q.next++; q.peek(indent+1) == nil {
				return v, false
			}
			item, ok = q.block()
		} else if _, _, entry := q.key(rest); entry || (line{rest: rest}).item() { // as if it began in a line of its own
			l.indent, l.rest = l.indent+len(l.rest)-len(rest), rest
			item, ok = q.block()
		} else {
			item, ok = q.inline(l, rest)
		}
		if !ok {
			return v, false
		}
		q.trees.openItems = append(q.trees.openItems, item)
	}
	q.trees.close(&v, fields, items)
	return v, true
}

// item says whether a line begins an item of a sequence.
func (l line) item() bool { return l.rest[0] == '-' && (len(l.rest) == 1 || l.rest[1] == ' ') }

// inline reads what is left of a line, which is the next one.
func (q *quick) inline(l *line, rest []byte) (v value, ok bool) {
	q.next++
	if rest[0] == '{' || rest[0] == '[' {
		v, rest, ok = q.flow(rest, l.number)
	} else {
		v, rest, ok = q.scalar(rest, true)
	}
	v.line = l.number
	return v, ok && len(rest) == 0
}

// key reads a key, and returns what is behind its colon and spaces.
func (q *quick) key(b []byte) (key string, rest []byte, ok bool) {
	v, rest, ok := q.scalar(b, false)
	if !ok || v.kind != text || len(b)-len(rest) > quickKey || len(rest) == 0 || rest[0] != ':' || len(rest) > 1 && rest[1] != ' ' {
		return "", nil, false
	}
	return v.scalar, bytes.TrimLeft(rest[1:], " "), true
}

// flow reads a mapping or a sequence in brackets, or a scalar in one, and the spaces behind it.
func (q *quick) flow(b []byte, number int) (v value, rest []byte, ok bool) {
	if q.depth++; q.depth > quickDepth || len(b) == 0 {
		return v, nil, false
	}
	switch b[0] {
	case '{':
		v, rest, ok = q.members(value{kind: object}, b[1:], '}', number)
	case '[':
		v, rest, ok = q.members(value{kind: list}, b[1:], ']', number)
	default:
		v, rest, ok = q.scalar(b, false)
	}
	q.depth--
	v.line = number
	return v, bytes.TrimLeft(rest, " "), ok
}

// members reads what is in brackets up to that which closes them.
func (q *quick) members(v value, b []byte, end byte, number int) (_ value, rest []byte, ok bool) {
	if b = bytes.TrimLeft(b, " "); len(b) > 0 && b[0] == end {
		return v, b[1:], true
	}
	fields, items := q.trees.mark()
	for {
		var key string
		if v.kind == object {
			if key, b, ok = q.key(b); !ok {
				return v, nil, false
			}
		}
		member, rest, ok := q.flow(b, number)
		if !ok || len(rest) == 0 {
			return v, nil, false
		}
		if v.kind == object {
			q.trees.openFields = append(q.trees.openFields, field{key, member})
		} else {
			q.trees.openItems = append(q.trees.openItems, member)
		}
		switch rest[0] {
		case end:
			q.trees.close(&v, fields, items)
			return v, rest[1:], true
		case ',':
			b = bytes.TrimLeft(rest[1:], " ")
		default:
			return v, nil, false
		}
	}
}

// scalar reads a text in quotes, a word or a number. With colons a word may have some in it.
func (q *quick) scalar(b []byte, colons bool) (v value, rest []byte, ok bool) {
	if len(b) == 0 {
		return v, nil, false
	}
	if quotes := b[0]; quotes == '"' || quotes == '\'' {
		end := bytes.IndexByte(b[1:], quotes) + 1
		if end == 0 || quotes == '"' && bytes.IndexByte(b[:end], '\\') >= 0 || end+1 < len(b) && b[end+1] == quotes {
			return v, nil, false
		}
		return value{kind: text, scalar: q.words.of(b[1:end])}, b[end+1:], true
	}
	n, digits, slashes := 0, 0, 0
	for ; n < len(b); n++ {
		switch c := b[n]; {
		case c >= '0' && c <= '9':
			digits++
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
		case n == 0:
			return v, nil, false
		case c == '/':
			slashes++
		case c == '.' || c == '-' || c == '_':
		case c == ':' && colons && n+1 < len(b) && b[n+1] != ' ':
		default:
			return q.word(b, n, digits, slashes)
		}
	}
	return q.word(b, n, digits, slashes)
}

// word takes the first n bytes, with so many digits and slashes, for a text or a whole number if they are surely that. What begins with a digit may be a date, or a
// number of some other form.
func (q *quick) word(b []byte, n, digits, slashes int) (v value, rest []byte, ok bool) {
	v.kind, rest, b = text, b[n:], b[:n]
	switch {
	case n == 0:
	case digits == n:
		v.kind, ok = number, n <= 18 && (b[0] != '0' || n == 1)
	case b[0] >= '0' && b[0] <= '9':
		ok = slashes > 0
	default:
		ok = n > len("false") || !slices.Contains([]string{"true", "false", "null"}, strings.ToLower(string(b)))
	}
	if ok {
		v.scalar = q.words.of(b)
	}
	return v, rest, ok
}

// words keeps one of each word that is read, as most are there many times. A nil one keeps none.
type words map[string]string

const (
	maxWord  = 64
	maxWords = 1 << 16
)

func (w words) of(b []byte) string {
	s, ok := w[string(b)]
	if !ok {
		if s = string(b); w != nil && len(b) <= maxWord && len(w) < maxWords {
			w[s] = s
		}
	}
	return s
}
