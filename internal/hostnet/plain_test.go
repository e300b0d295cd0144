// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// connection returns one that changes nftables, as somebody else.
func (h *testHost) connection(t testing.TB) *nftables.Conn {
	t.Helper()
	c, err := h.ns.nftables()
	must(t, err)
	return c
}

// intact fails the test unless the kernel has the table as it should be.
func (h *testHost) intact(t testing.TB) {
	t.Helper()
	have, err := readTable(h.ns)
	must(t, err)
	if d := h.table.damage(have); len(d) > 0 {
		t.Errorf("not as it should be: %q", d)
	}
}

// What nftables has is read as it was written: an intact table is recognized, also by a daemon that starts.
func TestIntactTableStays(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Plain = plain()
	h.apply(t, d)
	if h.table.told != nil {
		t.Error("this kernel tells the rules in other words than it was told")
	}
	events := monitor(t, h.ns)
	again := func() {
		t.Helper()
		if res := h.apply(t, d); len(res.Repaired) > 0 {
			t.Errorf("repaired: %q", res.Repaired)
		}
		if got := events(); len(got) > 0 {
			t.Errorf("changed: %q", got)
		}
	}
	again()
	must(t, h.SetPlain(d.Plain))
	again()
	h.Host = newAt(h.log, h.ns)
	again()
	// One that does not know its peers yet keeps what it finds, until it does.
	h.Host = newAt(h.log, h.ns)
	d.Plain = Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices, Keep: true}
	again()
	again()
	must(t, h.SetPlain(plain()))
	again()
	// Without kernel paths as well.
	d.Plain = Plaintext{}
	h.apply(t, d)
	if got := events(); len(got) == 0 {
		t.Error("no change is seen: the test is worth nothing")
	}
	again()
	h.Host = newAt(h.log, h.ns)
	again()
}

// Apply without knowledge of its own does not undo what SetPlain has set.
func TestApplyKeepsWhatSetPlainHasSet(t *testing.T) {
	h := newHost(t)
	d := desired()
	d.Plain = Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices, Keep: true}
	h.apply(t, d)
	must(t, h.SetPlain(plain()))
	h.apply(t, d)
	all, err := readSet(h.ns, "vx44")
	must(t, err)
	if len(all) != 2 {
		t.Errorf("%d tunnels", len(all))
	}
	d.Masquerade = false // another table
	h.apply(t, d)
	h.intact(t)
	if all, err = readSet(h.ns, "vx44"); err != nil || len(all) != 2 {
		t.Errorf("%d tunnels, %v", len(all), err)
	}
	must(t, h.SetPlain(Plaintext{}))
	h.apply(t, d)
	if lines := strings.Join(h.table.rules.lines(), "\n"); strings.Contains(lines, "vxlan") {
		t.Error("the rules of kernel paths are back")
	}
	h.intact(t)
}

// Whatever somebody does to the table, Apply makes it again as it was, with all elements, and says so. So does a change of what may
// go by kernel paths that finds it damaged.
func TestTableIsRepaired(t *testing.T) {
	const whose = "nftables table inet weft"
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	set := func(name string) *nftables.Set { return &nftables.Set{Table: table, Name: name, Concatenation: true} }
	elementOf := func(t *testing.T, c *nftables.Conn, name string) []nftables.SetElement {
		list, err := c.GetSetElements(set(name))
		must(t, err)
		return []nftables.SetElement{{Key: list[0].Key, KeyEnd: list[0].KeyEnd}}
	}
	for _, x := range []struct {
		name   string
		damage func(t *testing.T, c *nftables.Conn) error
		want   string
	}{
		{"flush", func(_ *testing.T, c *nftables.Conn) error { c.FlushRuleset(); return nil }, whose + " was removed by somebody; made again"},
		{"delete", func(_ *testing.T, c *nftables.Conn) error { c.DelTable(table); return nil }, whose + " was removed by somebody; made again"},
		{"rules", func(_ *testing.T, c *nftables.Conn) error { c.FlushTable(table); return nil }, whose + " was changed by somebody; made again"},
		{"a rule", func(t *testing.T, c *nftables.Conn) error {
			rules, err := c.GetRules(table, &nftables.Chain{Name: "leaving"})
			must(t, err)
			return c.DelRule(rules[len(rules)-1])
		}, whose + " was changed by somebody; made again"},
		{"a rule more", func(_ *testing.T, c *nftables.Conn) error {
			c.InsertRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: "vxlan"}, Exprs: plainSets()[0].register[:2]})
			return nil
		}, whose + " was changed by somebody; made again"},
		{"a chain more", func(_ *testing.T, c *nftables.Conn) error {
			c.AddChain(&nftables.Chain{Table: table, Name: "more"})
			return nil
		}, whose + " was changed by somebody; made again"},
		{
			"elements", func(_ *testing.T, c *nftables.Conn) error { c.FlushSet(set("out4")); return nil },
			"set out4 of " + whose + " was changed by somebody: 4 elements lost, 0 added; put right",
		},
		{"an element", func(t *testing.T, c *nftables.Conn) error {
			return c.SetDeleteElements(set("vx46"), elementOf(t, c, "vx46"))
		}, "set vx46 of " + whose + " was changed by somebody: 1 elements lost, 0 added; put right"},
		{"an element more", func(t *testing.T, c *nftables.Conn) error {
			e := elementOf(t, c, "vx44")
			e[0].Key[0]++
			e[0].KeyEnd[0]++
			return c.SetAddElements(set("vx44"), e)
		}, "set vx44 of " + whose + " was changed by somebody: 0 elements lost, 1 added; put right"},
	} {
		t.Run(strings.ReplaceAll(x.name, " ", "-"), func(t *testing.T) {
			h := newHost(t)
			d := desired()
			d.Plain = plain()
			h.apply(t, d)
			c := h.connection(t)
			for _, how := range []string{"Apply", "SetPlain"} {
				before := snapshot(t, h.ns)
				must(t, x.damage(t, c))
				must(t, c.Flush())
				if how == "SetPlain" {
					p := plain() // deletes elements that may not be there, and adds others
					p.Out, p.Tunnels = p.Out[1:], p.Tunnels[2:]
					d.Plain = p
					must(t, h.SetPlain(p))
				}
				res := h.apply(t, d)
				if !slices.Equal(res.Repaired, []string{x.want}) {
					t.Errorf("%s repaired %q, want %q", how, res.Repaired, x.want)
				}
				h.intact(t)
				if how == "Apply" {
					differ(t, "not as it was", before, snapshot(t, h.ns))
				}
				if res = h.apply(t, d); len(res.Repaired) > 0 {
					t.Errorf("again repaired: %q", res.Repaired)
				}
			}
		})
	}
}

// Without what kernel paths need there are none, and the rest is as without them.
func TestNoPlainSets(t *testing.T) {
	h := newHost(t)
	must(t, h.Support())
	before := ruleset(t, h.ns)
	differ(t, "Support has left something", before, ruleset(t, h.ns))
	d := desired()
	d.Plain = plain()
	h.apply(t, d)
	refused := fmt.Errorf("not today")
	f := h.table.filters
	for _, use := range []features{{fib: true, nat: true}, {nat: true}, {}} {
		must(t, f.table(use, plain().elements()).send(h.connection(t), tableName))
		h.table = &table{filters: f, use: use, rules: f.table(use, plain().elements()), refused: refused}
		h.intact(t)
		if all := strings.Join(ruleset(t, h.ns), "\n"); strings.Contains(all, "Notrack") || !strings.Contains(all, "chain 1 weft leaving filter") {
			t.Errorf("%+v: rules %s", use, all)
		}
		if err := h.SetPlain(plain()); !errors.Is(err, refused) {
			t.Errorf("SetPlain: %v", err)
		}
		if got, err := h.Traffic(); err != nil || len(got) > 0 {
			t.Errorf("traffic %v, %v", got, err)
		}
	}
	got := errorText(unsupported(unix.EOPNOTSUPP))
	if want := "nftables refuses the rules of kernel paths: operation not supported; use Linux 5.7 or later with CONFIG_NF_TABLES_INET, " +
		"CONFIG_NFT_CT, CONFIG_NFT_NAT, CONFIG_NFT_MASQ and CONFIG_NFT_FIB_INET"; got != want {
		t.Errorf("got %s", got)
	}
}

func TestPlaintextRefused(t *testing.T) {
	h := newHost(t)
	if err := h.SetPlain(plain()); errorText(err) != "the host's network is not set up yet; try again in a moment" {
		t.Errorf("before Apply: %v", err)
	}
	d := desired()
	d.Plain = plain()
	h.apply(t, d)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for want, change := range map[string]func(*Plaintext){
		"kernel paths need a UDP port for VXLAN, also if there is none of that kind":             func(p *Plaintext) { p.VXLANPort = 0 },
		"eth0 is no device of VXLAN that Weft could have made; its name has to begin with weft-": func(p *Plaintext) { p.Devices = []string{"eth0"} },
		"\"\" is no name of a device; it has 1 to 15 bytes":                                      func(p *Plaintext) { p.Out = []Out{{"", has4}} },
		"\"a-name-that-is-long\" is no name of a device; it has 1 to 15 bytes":                   func(p *Plaintext) { p.In = []In{{"a-name-that-is-long", mac, has4}} },
		"192.168.0.0/16 lies outside the range of this mesh, [10.32.0.0/12 fd77::/64]":           func(p *Plaintext) { p.Out = []Out{{"eth0", netip.MustParsePrefix("192.168.0.0/16")}} },
		"10.0.0.0/8 lies outside the range of this mesh, [10.32.0.0/12 fd77::/64]":               func(p *Plaintext) { p.In = []In{{"eth0", mac, netip.MustParsePrefix("10.0.0.0/8")}} },
		"10.40.0.1/16 is no range; give one whose host bits are zero": func(p *Plaintext) {
			p.Tunnels = []Tunnel{{Remote: peer4, Prefix: netip.MustParsePrefix("10.40.0.1/16")}}
		},
		"10.32.0.7 is no address of the underlay":  func(p *Plaintext) { p.Tunnels = []Tunnel{{Remote: netip.MustParseAddr("10.32.0.7"), Prefix: has4}} },
		"invalid IP is no address of the underlay": func(p *Plaintext) { p.Tunnels = []Tunnel{{Prefix: has4}} },
		"10.40.0.0/16 cannot come by eth0 from the hardware address \"\"; a link has neighbours with one of 6 bytes, VXLAN has tunnels": func(p *Plaintext) {
			p.In = []In{{Device: "eth0", Prefix: has4}}
		},
		"10.40.0.0/16 cannot come by weft-vx4 from the hardware address \"02:00:00:00:00:01\"; a link has neighbours with one of 6 bytes, VXLAN has tunnels": func(p *Plaintext) {
			p.In = []In{{"weft-vx4", mac, has4}}
		},
	} {
		p := plain()
		change(&p)
		if got := errorText(h.SetPlain(p)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		d.Plain = p
		if _, err := h.Apply(d, h.changes); errorText(err) != want {
			t.Errorf("Apply: %v", err)
		}
	}
	h.intact(t)
}

// Ranges of one place do not overlap, and cover exactly what was asked for.
func TestElementsCover(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		p := Plaintext{VXLANPort: vxlanPort}
		for range 1 + random.IntN(20) {
			bits := 24 + random.IntN(9)
			a := netip.AddrFrom4([4]byte{10, 40, byte(random.IntN(2)), byte(random.Uint32())})
			p.Out = append(p.Out, Out{fmt.Sprintf("d%d", random.IntN(2)), netip.PrefixFrom(a, bits).Masked()})
		}
		var got []Out
		for e := range p.elements()["out4"] {
			prefix, err := prefixOfRange(e)
			must(t, err)
			got = append(got, Out{strings.TrimRight(e.key[4:], "\x00"), prefix})
		}
		has := func(list []Out, dev string, a netip.Addr) (n int) {
			for _, o := range list {
				if o.Device == dev && o.Prefix.Contains(a) {
					n++
				}
			}
			return n
		}
		for _, dev := range []string{"d0", "d1"} {
			for a := netip.MustParseAddr("10.40.0.0"); a.Less(netip.MustParseAddr("10.40.2.0")); a = a.Next() {
				if n := has(got, dev, a); n != min(1, has(p.Out, dev, a)) {
					t.Fatalf("%s %v: %d ranges of %v, asked for %v", dev, a, n, got, p.Out)
				}
			}
		}
	}
}

func TestPrefixOfRange(t *testing.T) {
	for _, s := range []string{"10.32.0.0/12", "10.32.1.1/32", "0.0.0.0/0", "fd77::/64", "fd77::1/128", "fd77::4:0/112"} {
		want := netip.MustParsePrefix(s)
		tail := string(deviceName("eth0"))
		got, err := prefixOfRange(element{string(want.Addr().AsSlice()) + tail, string(lastOf(want).AsSlice()) + tail})
		if err != nil || got != want {
			t.Errorf("%v: %v, %v", want, got, err)
		}
	}
	for _, e := range []element{
		{},
		{key: string(make([]byte, 20))},
		{string(make([]byte, 19)), string(make([]byte, 19))},
		{"\x0a\x00\x00\x01" + string(make([]byte, 16)), "\x0a\x00\x00\x06" + string(make([]byte, 16))},
	} {
		if p, err := prefixOfRange(e); err == nil {
			t.Errorf("%q: %v", e, p)
		}
	}
}

// mesh is what many peers have: two prefixes of each family, reached by both kinds of kernel paths and by both families.
func mesh(peers int, except int) Plaintext {
	p := Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices}
	for i := range peers {
		if i == except {
			continue
		}
		for n := range 4 {
			prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 40, byte(i >> 1), byte(i<<7 | n<<6)}), 26)
			if n >= 2 {
				prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 12: byte(i >> 8), 13: byte(i), 14: byte(n)}), 120)
			}
			for _, d := range vxlanDevices {
				p.Out = append(p.Out, Out{d, prefix})
			}
			p.Out = append(p.Out, Out{"eth0", prefix})
			p.In = append(p.In, In{"eth0", net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}, prefix})
			for _, r := range []netip.Addr{netip.AddrFrom4([4]byte{192, 0, byte(2 + i>>8), byte(i)}), netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 14: byte(i >> 8), 15: byte(i)})} {
				p.Tunnels = append(p.Tunnels, Tunnel{Remote: r, Prefix: prefix})
			}
		}
	}
	return p
}

// Many peers are set in well under a second, and one peer's change touches its own elements only.
func TestManyPeers(t *testing.T) {
	const peers = 500
	h := newHost(t)
	d := desired()
	d.Plain = Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices, Keep: true}
	h.apply(t, d)
	timed := func(what string, do func() error) {
		t.Helper()
		begin := time.Now()
		must(t, do())
		took := time.Since(begin)
		t.Logf("%s: %v", what, took.Round(10*time.Microsecond))
		if took > 10*time.Second { // on a machine that does nothing else it is well below one
			t.Errorf("%s takes %v", what, took)
		}
	}
	all := mesh(peers, -1)
	n := 0
	for _, s := range all.elements() {
		n += len(s)
	}
	timed(fmt.Sprintf("%d elements of %d peers set", n, peers), func() error { return h.SetPlain(all) })
	h.intact(t)
	timed("compared by Apply", func() error { _, err := h.Apply(d, h.changes); return err })
	timed("traffic read", func() error { _, err := h.Traffic(); return err })
	events := monitor(t, h.ns)
	timed("one peer taken out", func() error { return h.SetPlain(mesh(peers, 250)) })
	gone := events()
	timed("and put in again", func() error { return h.SetPlain(all) })
	back := events()
	timed("nothing changed", func() error { return h.SetPlain(all) })
	if got := events(); len(got) > 0 {
		t.Errorf("no change sends %q", got)
	}
	for what, list := range map[string][]string{"-": gone, "+": back} {
		var want []string
		for set, elements := range (Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices}).only(mesh(peers, -1), mesh(peers, 250)) {
			for e := range elements {
				want = append(want, fmt.Sprintf("%s %s %x", what, set, e.key))
			}
		}
		slices.Sort(want)
		slices.Sort(list)
		if !slices.Equal(want, list) || len(want) != 4*(3+1+2)+2 {
			t.Errorf("%s: %d elements of one peer changed, want %d", what, len(list), len(want))
		}
	}
	h.intact(t)
	d.Masquerade = false
	timed("the table replaced with all elements", func() error { _, err := h.Apply(d, h.changes); return err })
	h.intact(t)
	h.Host = newAt(h.log, h.ns)
	timed("adopted", func() error { _, err := h.Apply(d, h.changes); return err })
	timed("all taken out", func() error { return h.SetPlain(Plaintext{VXLANPort: vxlanPort, Devices: vxlanDevices}) })
	h.intact(t)
}

// only returns the elements of a that b does not have.
func (Plaintext) only(a, b Plaintext) contents {
	have := map[string]map[element]bool(b.elements())
	_, add := difference(have, a.elements())
	return add
}
