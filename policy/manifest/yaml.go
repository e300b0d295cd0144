// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxParts bounds what one document is parsed into, of some hundred bytes each.
const maxParts = 200_000

// A document is one of those of a file.
type document struct {
	text []byte
	line int // of the file, from 1
}

// documents cuts a file where a line begins with three dashes or dots, into one more than at most. What a parser would cut elsewhere is
// found in slowYAML.
func documents(text []byte, most int) []document {
	var all []document
	begin, at := document{line: 1}, 0
	first, line := 0, 1 // byte at which it begins
	for rest := text; len(rest) > 0 && len(all) <= most; line++ {
		end := bytes.IndexByte(rest, '\n') + 1
		if end == 0 {
			end = len(rest)
		}
		if l := rest[:end]; isMark(l) {
			begin.text = text[first:at]
			all = append(all, begin)
			begin, first = document{line: line}, at
			if l[0] == '.' {
				begin.line, first = line+1, at+end
			}
		}
		rest, at = rest[end:], at+end
	}
	begin.text = text[first:at]
	return append(all, begin)
}

// isMark tells whether a line begins or ends a document.
func isMark(l []byte) bool {
	return len(l) >= 3 && (string(l[:3]) == "---" || string(l[:3]) == "...") && (len(l) == 3 || strings.IndexByte(" \t\r\n", l[3]) >= 0)
}

// blank tells whether there is nothing in a document but comments.
func (d document) blank() bool {
	for line := range bytes.Lines(d.text) {
		line = bytes.TrimLeft(bytes.TrimRight(bytes.TrimPrefix(line, []byte("---")), "\r\n"), " ")
		if len(line) > 0 && line[0] != '#' {
			return false
		}
	}
	return true
}

// parts is how many values there may be in a document: each but the first needs one of these.
func (d document) parts() (n int) {
	for _, c := range d.text {
		if strings.IndexByte(",:[{-?\n", c) >= 0 {
			n++
		}
	}
	return n
}

// parseYAML reads one document, which may hold nothing: then the value is absent. Lines are those of the file, also that of an error.
func (q *quick) parseYAML(d document) (v value, line int, err error) {
	line = d.line
	if n := d.parts(); n > maxParts {
		return value{}, line, fmt.Errorf("there may be %d values in it, and more than %d are not read; make several of it", n, maxParts)
	}
	if v, ok := q.read(d); ok {
		return v, line, nil
	}
	return slowYAML(d)
}

// slowYAML reads a document of not too many parts, whatever of YAML is in it.
func slowYAML(d document) (v value, line int, err error) {
	line = d.line
	defer func() {
		if p := recover(); p != nil { // a defect of the parser is no reason to end
			v, err = value{}, fmt.Errorf("this is not YAML: %v", p)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(d.text))
	var n, more yaml.Node
	switch err := dec.Decode(&n); {
	case errors.Is(err, io.EOF):
		return value{}, line, nil
	case err != nil:
		within, what := saysLine(err)
		return value{}, line - 1 + within, fmt.Errorf("this is not YAML: %s", what)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return value{}, line, errors.New("there is a second document in it, without a line --- before it")
	}
	return fromNode(&n, d.line-1, 0), line, nil
}

// saysLine splits an error of the parser into the line that it says, 1 if it says none, and the rest.
func saysLine(err error) (line int, what string) {
	what = bounded(strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "yaml: "))
	if n, rest, ok := strings.Cut(strings.TrimPrefix(what, "line "), ": "); ok {
		if line, err := strconv.Atoi(n); err == nil && line > 0 {
			return line, rest
		}
	}
	return 1, what
}

func fromNode(n *yaml.Node, offset, depth int) value {
	v := value{line: n.Line + offset, scalar: n.Value}
	switch {
	case depth > maxDepth:
		v.kind, v.scalar = strange, "is nested too deep"
	case n.Kind == yaml.DocumentNode && len(n.Content) == 1:
		return fromNode(n.Content[0], offset, depth)
	case n.Kind == yaml.MappingNode && n.ShortTag() == "!!map":
		v.kind = object
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			member := fromNode(n.Content[i+1], offset, depth+1)
			if k.Kind != yaml.ScalarNode || k.ShortTag() == "!!merge" || k.ShortTag() == "!!null" {
				member = value{kind: strange, line: k.Line + offset, scalar: "its key is no plain word"}
			}
			v.fields = append(v.fields, field{k.Value, member})
		}
	case n.Kind == yaml.SequenceNode && n.ShortTag() == "!!seq":
		v.kind = list
		for _, c := range n.Content {
			v.items = append(v.items, fromNode(c, offset, depth+1))
		}
	case n.Kind == yaml.ScalarNode:
		v.kind = kindOf(n.ShortTag())
		if v.kind == strange {
			v.scalar = "has a tag that is not known here, " + quote(n.Tag)
		}
	case n.Kind == yaml.AliasNode:
		v.kind, v.scalar = strange, "is an alias: write out what it stands for"
	default:
		v.kind, v.scalar = strange, "has a tag that is not known here, "+quote(n.Tag)
	}
	return v
}

// kindOf is the kind of what bears a tag of YAML.
func kindOf(tag string) kind {
	switch tag {
	case "!!str", "!!timestamp":
		return text
	case "!!int", "!!float":
		return number
	case "!!bool":
		return boolean
	case "!!null":
		return absent
	}
	return strange
}
