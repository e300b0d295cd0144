// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// impossible is what the kernel refuses, as it would all rules with kernel paths when it lacks memory.
func impossible() Plaintext {
	p := plain()
	p.In = append(p.In, In{"eth0", net.HardwareAddr{2, 0, 0, 0, 0, 1, 2, 3, 4}, has4})
	return p
}

// While the kernel has the rules of kernel paths, nothing that goes wrong makes it have those without.
func TestRulesOutlastErrors(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Plain = plain()
	h.apply(t, d)
	check := func(what string, err error, want string) {
		t.Helper()
		if !strings.HasPrefix(errorText(err), want) {
			t.Errorf("%s: %v", what, err)
		}
		if !h.table.use.plain || h.table.refused != nil {
			t.Errorf("after %s: %+v, refused %v", what, h.table.use, h.table.refused)
		}
		h.intact(t)
	}
	check("a change of elements", h.setPlain(impossible()), "changing what may go by kernel paths: ")
	other := impossible()
	other.Devices = nil // another table
	check("a change of rules", h.setPlain(other), "changing what may go by kernel paths: ")
	f := h.table.filters
	f.masquerade = !f.masquerade
	got, _, err := h.setTable(f, impossible())
	check("Apply", err, "changing the nftables table inet weft, which stays as it was: ")
	if got != everything() {
		t.Errorf("%+v", got)
	}
	must(t, h.SetPlain(Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices}))
	h.intact(t)
	if res := h.apply(t, d); len(res.Repaired) > 0 {
		t.Errorf("repaired: %q", res.Repaired)
	}
	h.intact(t)
}

// What was refused is tried again by the next Apply, and changes nothing if it is refused again.
func TestRefusalIsForgotten(t *testing.T) {
	for _, keep := range []bool{false, true} {
		h := newHost(t)
		d := desired()
		d.Plain = plain()
		h.apply(t, d)
		refused, use := errors.New("not today"), features{fib: true, nat: true}
		f := h.table.filters
		less := f.table(use, plain().elements())
		must(t, less.send(h.connection(t), tableName))
		h.table = &table{filters: f, use: use, rules: less, refused: refused}
		before := ruleset(t, h.ns)
		_, _, err := h.setTable(f, impossible())
		must(t, err)
		differ(t, "refused again", before, ruleset(t, h.ns))
		if err := h.SetPlain(plain()); !errors.Is(err, refused) {
			t.Errorf("SetPlain: %v", err)
		}
		d.Plain.Keep = keep
		h.apply(t, d)
		if !h.table.use.plain || h.table.refused != nil {
			t.Errorf("%+v, refused %v", h.table.use, h.table.refused)
		}
		h.intact(t)
		if ports, err := readSet(h.ns, "ports"); err != nil || len(ports) != 1 {
			t.Errorf("ports %v, %v", ports, err)
		}
		must(t, h.SetPlain(plain()))
		h.intact(t)
	}
}

// That the table cannot be read says nothing of what the kernel can, and leaves no rules twice.
func TestUnreadableTable(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Plain = plain()
	n := 0
	h.read = func(ns namespace) (*found, error) {
		if n++; n > 1 {
			return nil, unix.ENOBUFS
		}
		return readTable(ns)
	}
	h.apply(t, d)
	if !h.table.use.plain || h.table.refused != nil || n < 2 {
		t.Errorf("%+v, refused %v, read %d times", h.table.use, h.table.refused, n)
	}
	h.intact(t)
	h.apply(t, d)
	h.intact(t)
	d.Plain.VXLANPort++
	must(t, h.SetPlain(d.Plain))
	h.intact(t)
	h.read = readTable
	h.apply(t, d) // tells what was made again because nobody could say what it was
	if res := h.apply(t, d); len(res.Repaired) > 0 {
		t.Errorf("repaired: %q", res.Repaired)
	}
}
