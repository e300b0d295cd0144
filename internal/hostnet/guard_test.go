// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// What somebody does to the table is put right at once, and told once; what this process does is neither.
func TestGuard(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Plain = plain()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	told := make(chan []string, 100)
	go func() { ended <- h.Guard(ctx, func(lines []string) { told <- lines }) }()
	defer func() {
		cancel()
		must(t, <-ended)
	}()
	h.apply(t, d)
	before := ruleset(t, h.ns)
	expect := func(wants ...string) {
		t.Helper()
		select {
		case lines := <-told:
			if len(lines) != 1 || !slices.Contains(wants, lines[0]) {
				t.Fatalf("told %q, want one of %q", lines, wants)
			}
		case <-time.After(patience):
			t.Fatal("nothing is told")
		}
		h.intact(t)
		differ(t, "not as before", before, ruleset(t, h.ns))
	}
	// One address all the time: what is done from one that the Host has just used passes for its own.
	c, err := h.ns.nftables(nftables.AsLasting())
	must(t, err)
	defer func() { must(t, c.CloseLasting()) }()
	// The socket is there once a first repair is told.
	for first := time.After(patience); len(told) == 0; {
		c.FlushRuleset()
		must(t, c.Flush())
		select {
		case <-first:
			t.Fatal("nothing is told")
		case <-time.After(2 * guardPause):
		}
	}
	for rest := time.After(time.Second); rest != nil; { // the last flush may be one more
		select {
		case <-told:
		case <-rest:
			rest = nil
		}
	}
	for range 3 {
		c.FlushRuleset()
		must(t, c.Flush())
		// If it was just being read, a part of it was still there.
		expect("nftables table inet weft was removed by somebody; made again", "nftables table inet weft was changed by somebody; made again")
	}
	c.FlushSet(&nftables.Set{Table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}, Name: "vx66"})
	must(t, c.Flush())
	expect("set vx66 of nftables table inet weft was changed by somebody: 2 elements lost, 0 added; put right")

	p := plain()
	p.Out = p.Out[1:]
	must(t, h.SetPlain(p))
	must(t, h.Support())
	d.Plain, d.Masquerade = p, false
	h.apply(t, d)
	if res := h.apply(t, d); len(res.Repaired) > 0 {
		t.Errorf("Apply tells again: %q", res.Repaired)
	}
	// Tables of others are theirs.
	other := c.AddTable(&nftables.Table{Name: "weft", Family: nftables.TableFamilyIPv4})
	c.AddTable(&nftables.Table{Name: "others", Family: nftables.TableFamilyINet})
	must(t, c.Flush())
	c.DelTable(other)
	must(t, c.Flush())
	select {
	case lines := <-told:
		t.Errorf("told %q", lines)
	case <-time.After(5 * guardPause):
	}
}

func TestConcernsTable(t *testing.T) {
	attribute := func(kind uint16, s string) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(s)))
		b = append(binary.NativeEndian.AppendUint16(b, kind), s...)
		return append(b, make([]byte, align(len(b))-len(b))...)
	}
	message := func(kind uint16, port uint32, body ...byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
		b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_NFTABLES<<8|kind)
		b = append(b, make([]byte, 6)...)
		b = append(binary.NativeEndian.AppendUint32(b, port), body...)
		return append(b, make([]byte, align(len(b))-len(b))...)
	}
	body := func(family byte, attributes ...[]byte) []byte {
		return append([]byte{family, 0, 0, 0}, slices.Concat(attributes...)...)
	}
	ours := body(1, attribute(2, "x"), attribute(unix.NFTA_TABLE_NAME, "weft\x00"))
	theirs := body(1, attribute(unix.NFTA_TABLE_NAME, "weft2\x00"))
	for name, x := range map[string]struct {
		b    []byte
		want bool
	}{
		"nothing":              {nil, false},
		"our table":            {message(unix.NFT_MSG_DELTABLE, 7, ours...), true},
		"by ourselves":         {message(unix.NFT_MSG_DELTABLE, 42, ours...), false},
		"another table":        {message(unix.NFT_MSG_DELTABLE, 7, theirs...), false},
		"another family":       {message(unix.NFT_MSG_DELTABLE, 7, body(2, attribute(1, "weft\x00"))...), false},
		"a generation":         {message(unix.NFT_MSG_NEWGEN, 7, body(1)...), false},
		"the second":           {append(message(unix.NFT_MSG_NEWRULE, 7, theirs...), message(unix.NFT_MSG_DELRULE, 7, ours...)...), true},
		"no name":              {message(unix.NFT_MSG_DELTABLE, 7, body(1)...), true},
		"no body":              {message(unix.NFT_MSG_DELTABLE, 7), true},
		"short header":         {make([]byte, 7), true},
		"of no length":         {make([]byte, 32), true},
		"cut off":              {message(unix.NFT_MSG_DELTABLE, 7, theirs...)[:20], true},
		"attribute cut off":    {message(unix.NFT_MSG_DELTABLE, 7, append(body(1), 9, 0, 1, 0, 'w')...), true},
		"attribute too short":  {message(unix.NFT_MSG_DELTABLE, 7, append(body(1), 1, 0, 1, 0)...), true},
		"half of an attribute": {message(unix.NFT_MSG_DELTABLE, 7, append(body(1), 8, 0)...), true},
	} {
		if got := concernsTable(x.b, func(port uint32) bool { return port == 42 }); got != x.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzConcernsTable(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add([]byte{28, 0, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 1, 0, 'w', 'e', 'f', 0})
	f.Fuzz(func(_ *testing.T, b []byte) { concernsTable(b, func(uint32) bool { return false }) })
}

func TestOwnPortsAreForgotten(t *testing.T) {
	var p ports
	now := time.Now()
	p.add(7, now)
	p.add(8, now.Add(ownFor))
	if !p.has(7, now.Add(ownFor)) || p.has(7, now.Add(ownFor+1)) || p.has(9, now) {
		t.Error("wrong ports")
	}
	p.add(9, now.Add(3*ownFor))
	if len(p.used) != 1 {
		t.Errorf("%d ports are kept", len(p.used))
	}
}
