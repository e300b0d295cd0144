// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// contents are a table as the kernel has it.
type contents struct {
	skeleton  []string           // sets, chains and rules, described
	sets      map[string]setKind // as far as the kernel tells
	sizes     map[string]uint32  // of sets; Linux before 6.16 tells none
	chains    []string
	hooks     int                           // how many of them packets meet first
	values    map[string]map[string]element // by set and key
	intervals map[string]map[string]element // likewise, of sets of intervals
	comments  map[uint32]string             // of counters
	counts    map[uint32]uint64             // packets
	phase     string                        // copy that judges, "" if not exactly one
	digest    string                        // of the bulk, as the phase bears it
	judged    string                        // the same of who is judged
	leaves    map[string][]string           // chains of tables, described
	broken    map[string]bool               // sets with intervals that make no sense

	tables, identities, verdicts, lists uint32 // the greatest numbers, without their bits
}

func newContents() *contents {
	return &contents{
		sets: map[string]setKind{}, sizes: map[string]uint32{}, values: map[string]map[string]element{}, intervals: map[string]map[string]element{},
		comments: map[uint32]string{}, counts: map[uint32]uint64{}, broken: map[string]bool{}, leaves: map[string][]string{},
	}
}

func (c *contents) value(set string, key []byte) (uint32, bool) {
	x, ok := c.values[set][string(key)]
	return x.data, ok
}

// An extent is how much of a table is read.
type extent int

const (
	skeleton extent = iota // sets, chains and rules
	judging                // and who is judged, by which copy
	small                  // and all elements, but for the bulk
	whole                  // and the bulk
)

// look reads a table, nil if there is none.
func (c *conn) look(table string, what extent) (*contents, error) {
	var err error
	for range 5 {
		var have *contents
		if have, err = c.lookOnce(table, what); !errors.Is(err, errInterrupted) {
			return have, err
		}
	}
	return nil, fmt.Errorf("reading nftables table inet %s: %w", table, err)
}

func (c *conn) lookOnce(table string, what extent) (*contents, error) {
	have := newContents()
	var flags uint32
	err := c.ask(request(unix.NFT_MSG_GETTABLE, unix.NFTA_TABLE_NAME, table), false, func(_ header, body []byte) error {
		return fields(body, func(kind uint16, v []byte) {
			if kind == unix.NFTA_TABLE_FLAGS && len(v) == 4 {
				flags = binary.BigEndian.Uint32(v)
			}
		})
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading nftables table inet %s: %w", table, err)
	}
	const owned = 2 // NFT_TABLE_F_OWNER
	have.skeleton = append(have.skeleton, fmt.Sprintf("table %d", flags&^owned))
	for _, read := range []func(string, *contents) error{c.readSets, c.readChains, c.readRules} {
		if err := read(table, have); err != nil {
			return nil, err
		}
	}
	have.plant()
	for _, k := range have.sets {
		if what == whole || what == small && !bulk(k.name) || what == judging && leads(k) {
			if err := c.readElements(table, k, have); err != nil {
				return nil, err
			}
		}
	}
	have.settlePhase()
	slices.Sort(have.skeleton)
	return have, nil
}

// leads says whether elements of a set say who is judged, or by which copy.
func leads(k setKind) bool {
	return k.dataType == typeVerdict || strings.HasPrefix(k.name, setCurrent)
}

// hooked says whether packets meet the table.
func (c *contents) hooked() bool { return c.hooks > 0 }

// judges says whether it is a whole table that judges, as some version has made it. What was read must be at least judging.
func (c *contents) judges() bool {
	d := digest{rules: fingerprint(c.skeleton)}
	for _, k := range c.sets {
		if k.dataType != typeVerdict {
			continue
		}
		for _, x := range c.values[k.name] {
			d.sides += x.digest(k.name)
		}
	}
	return c.phase != "" && c.judged == d.judged() && len(c.broken) == 0
}

// isLeaf says whether a chain of that name is one of a table.
func isLeaf(name string) bool {
	_, _, ok := leafNumber(name)
	return ok
}

// leafNumber returns the number of the table.
func leafNumber(name string) (d end, number uint32, ok bool) {
	for _, d := range ends() {
		if digits, found := strings.CutPrefix(name, d.name+"-"); found {
			n, err := strconv.ParseUint(digits, 10, 32)
			return d, uint32(n), err == nil && n <= maxTable && leafName(d.name, uint32(n)) == name
		}
	}
	return d, 0, false
}

// plant makes elements of the chains of tables.
func (c *contents) plant() {
	c.values[setLeaves] = map[string]element{}
	for name, lines := range c.leaves {
		d, number, _ := leafNumber(name)
		if !slices.Equal(lines, leaf(d, number).lines()) {
			c.broken[setLeaves] = true
		}
		c.values[setLeaves][name] = element{key: []byte(name), data: number}
		c.tables = max(c.tables, number)
	}
}

// request is one for what is of a table.
func request(message, nameAttr uint16, table string) buffer {
	var b buffer
	at := b.begin(nft(message), 0, unix.NFPROTO_INET, 0)
	b.text(nameAttr, table)
	b.end(at)
	return b
}

// fields calls do for each attribute of a message of nfnetlink.
func fields(body []byte, do func(kind uint16, v []byte)) error {
	if len(body) < 4 || !attributes(body[4:], func(kind uint16, v []byte) bool { do(kind, v); return true }) {
		return errNonsense
	}
	return nil
}

func word(v []byte) uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(v)
}

func (c *conn) readSets(table string, have *contents) error {
	return c.ask(request(unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE, table), true, func(_ header, body []byte) error {
		var k setKind
		var of string
		var size *uint32
		err := fields(body, func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_SET_TABLE:
				of = stringOf(v)
			case unix.NFTA_SET_NAME:
				k.name = stringOf(v)
			case unix.NFTA_SET_FLAGS:
				k.flags = word(v)
			case unix.NFTA_SET_KEY_TYPE:
				k.keyType = word(v)
			case unix.NFTA_SET_KEY_LEN:
				k.keyLen = word(v)
			case unix.NFTA_SET_DATA_TYPE:
				k.dataType = word(v)
			case unix.NFTA_SET_DATA_LEN:
				k.dataLen = word(v)
			case nftaSetExpr:
				k.counted = true
			case nftaSetCount:
				n := word(v)
				size = &n
			case unix.NFTA_SET_TIMEOUT:
				if len(v) == 8 {
					k.timeout = binary.BigEndian.Uint64(v)
				}
			}
		})
		if err == nil && of == table {
			have.sets[k.name] = k
			have.skeleton = append(have.skeleton, k.line())
			if size != nil {
				have.sizes[k.name] = *size
			}
		}
		return err
	})
}

func (k setKind) line() string {
	if k.dataType == typeVerdict {
		k.dataLen = 16 // the kernel tells none
	}
	k.size = 0
	return fmt.Sprintf("set %+v", k)
}

func (c *conn) readChains(table string, have *contents) error {
	return c.ask(request(unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_TABLE, table), true, func(_ header, body []byte) error {
		var of, name string
		var hook, priority, policy int32 = noHook, 0, 1
		err := fields(body, func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_CHAIN_TABLE:
				of = stringOf(v)
			case unix.NFTA_CHAIN_NAME:
				name = stringOf(v)
			case unix.NFTA_CHAIN_POLICY:
				policy = int32(word(v))
			case unix.NFTA_CHAIN_HOOK:
				attributes(v, func(kind uint16, v []byte) bool {
					switch kind {
					case unix.NFTA_HOOK_HOOKNUM:
						hook = int32(word(v))
					case unix.NFTA_HOOK_PRIORITY:
						priority = int32(word(v))
					}
					return true
				})
			}
		})
		if err == nil && of == table {
			line := chainLine(name, hook, priority, policy)
			if hook != noHook {
				have.hooks++
			}
			if isLeaf(name) {
				have.leaves[name] = append(have.leaves[name], line)
				return nil
			}
			have.chains = append(have.chains, name)
			have.skeleton = append(have.skeleton, line)
		}
		return err
	})
}

func chainLine(name string, hook, priority, policy int32) string {
	return fmt.Sprintf("chain %s: %d %d %d", name, hook, priority, policy)
}

func (c *conn) readRules(table string, have *contents) error {
	count := map[string]int{}
	return c.ask(request(unix.NFT_MSG_GETRULE, unix.NFTA_RULE_TABLE, table), true, func(_ header, body []byte) error {
		var of, chain, line string
		err := fields(body, func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_RULE_TABLE:
				of = stringOf(v)
			case unix.NFTA_RULE_CHAIN:
				chain = stringOf(v)
			case unix.NFTA_RULE_EXPRESSIONS:
				line = ruleLine(v)
			}
		})
		if err == nil && of == table {
			line = fmt.Sprintf("rule %s %d%s", chain, count[chain], line)
			count[chain]++
			if isLeaf(chain) {
				have.leaves[chain] = append(have.leaves[chain], line)
			} else {
				have.skeleton = append(have.skeleton, line)
			}
		}
		return err
	})
}

// ruleLine describes expressions, whether they are about to be sent or were read: what the kernel fills in is zero.
func ruleLine(list []byte) string {
	var s strings.Builder
	if !attributes(list, func(_ uint16, one []byte) bool {
		var name string
		var data []byte
		ok := attributes(one, func(kind uint16, v []byte) bool {
			switch kind {
			case unix.NFTA_EXPR_NAME:
				name = stringOf(v)
			case unix.NFTA_EXPR_DATA:
				data = v
			}
			return true
		})
		s.WriteString(" | " + name)
		if name != "counter" {
			describeAttributes(&s, data, nested(name), []uint16{unix.NFTA_DATA_VERDICT})
		}
		return ok
	}) {
		return " nonsense"
	}
	return s.String()
}

// nested says which attributes of an expression hold others.
func nested(name string) []uint16 {
	switch name {
	case "immediate":
		return []uint16{unix.NFTA_IMMEDIATE_DATA}
	case "cmp":
		return []uint16{unix.NFTA_CMP_DATA}
	case "bitwise":
		return []uint16{unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR}
	case "dynset":
		return []uint16{unix.NFTA_DYNSET_EXPR}
	}
	return nil
}

// describeAttributes describes attributes, of which some hold others, of which again some.
func describeAttributes(s *strings.Builder, b []byte, nests ...[]uint16) {
	var parts []string
	ok := attributes(b, func(kind uint16, v []byte) bool {
		switch {
		case len(nests) > 0 && slices.Contains(nests[0], kind):
			var inner strings.Builder
			describeAttributes(&inner, v, nests[1:]...)
			parts = append(parts, fmt.Sprintf("%d:{%s}", kind, inner.String()))
		case len(strings.Trim(string(v), "\x00")) > 0:
			parts = append(parts, fmt.Sprintf("%d:%x", kind, v))
		}
		return true
	})
	slices.Sort(parts)
	fmt.Fprint(s, " ", strings.Join(parts, " "))
	if !ok {
		s.WriteString(" nonsense")
	}
}

func (c *conn) readElements(table string, k setKind, have *contents) error {
	if k.dynamic() {
		return nil
	}
	b := request(unix.NFT_MSG_GETSETELEM, unix.NFTA_SET_ELEM_LIST_TABLE, table)
	b.text(unix.NFTA_SET_ELEM_LIST_SET, k.name)
	b.end(0)
	r := reader{kind: k, have: have, into: map[string]element{}}
	err := c.ask(b, true, func(_ header, body []byte) error {
		if !r.message(body) {
			return errNonsense
		}
		return nil
	})
	if err != nil {
		if errors.Is(err, errInterrupted) {
			return err
		}
		return fmt.Errorf("reading set %s of nftables table inet %s: %w", k.name, table, err)
	}
	r.finish()
	return nil
}
