// SPDX-License-Identifier: Apache-2.0

package node

import "testing"

// The reserve is a property of the mesh: founders choose it, everybody else has what the mesh has.
func TestChooseReserve(t *testing.T) {
	stored := state{identity: identity{ID: 7}, universe: universe{Range: DefaultRange, Seed: founder(7).Encode(), Reserve: "10.33.0.0/24"}}
	seeds := stored
	seeds.identity.Seed = "n1"
	for name, c := range map[string]struct {
		change  func(*Config)
		state   state
		want    string
		refused string
	}{
		"a founder without one": {change: func(*Config) {}, state: state{identity: identity{ID: 7}}},
		"a founder with one": {
			change: func(c *Config) { c.Reserve = []string{"10.33.0.128/25", "10.33.0.0/25", "10.40.0.0/16"} },
			state:  state{identity: identity{ID: 7}}, want: "10.33.0.0/24,10.40.0.0/16",
		},
		"a founder by seed": {
			change: func(c *Config) { c.Seed, c.Reserve = []string{"n1", "n2"}, []string{"10.33.0.0/24"} },
			state:  state{identity: identity{ID: 7}}, want: "10.33.0.0/24",
		},
		"outside the range": {
			change: func(c *Config) { c.Reserve = []string{"10.31.0.0/24"} }, state: state{identity: identity{ID: 7}},
			refused: "--reserve: reserve 10.31.0.0/24 lies outside the mesh's range 10.32.0.0/12; choose a part of it",
		},
		"a joiner":                   {change: func(c *Config) { c.Peers, c.Reserve = []string{"n2"}, []string{"10.33.0.0/24"} }, state: state{identity: identity{ID: 7}}},
		"resumed":                    {change: func(*Config) {}, state: stored, want: "10.33.0.0/24"},
		"resumed with the same":      {change: func(c *Config) { c.Reserve = []string{"10.33.0.0/25", "10.33.0.128/25"} }, state: stored, want: "10.33.0.0/24"},
		"resumed with another range": {change: func(c *Config) { c.Range, c.Reserve = "10.9.0.0/16", []string{"10.33.0.0/24"} }, state: stored, want: "10.33.0.0/24"},
		"resumed with nonsense":      {change: func(c *Config) { c.Reserve = []string{"x"} }, state: stored, refused: `--reserve: reserve "x" is not in CIDR notation; write it like 10.32.0.0/12`},
		"resumed with another":       {change: func(c *Config) { c.Reserve = []string{"10.33.0.0/25"} }, state: stored, refused: "--reserve 10.33.0.0/25 differs from this node's mesh's, which has 10.33.0.0/24; leave the flag out, or run weft reset to join another mesh"},
	} {
		cfg := config()
		c.change(&cfg)
		u, err := cfg.chooseUniverse(c.state)
		if c.refused != "" {
			if err == nil || err.Error() != c.refused {
				t.Errorf("%s: got  %v\nwant %s", name, err, c.refused)
			}
			continue
		}
		if err != nil || u.Reserve != c.want {
			t.Errorf("%s: %+v, %v", name, u, err)
		}
	}
}

// What a peer says of its mesh is taken over with the reserve, which the mesh's ID has to fit.
func TestReserveTravels(t *testing.T) {
	u := universe{Range: DefaultRange, Seed: founder(7).Encode(), Reserve: "10.33.0.0/24"}
	info, err := u.info()
	if err != nil || info.Reserve != u.Reserve {
		t.Fatal(info, err)
	}
	got, err := universeOf(info)
	if err != nil || got.Reserve != u.Reserve {
		t.Errorf("%+v, %v", got, err)
	}
	for _, other := range []string{"", "10.33.0.0/25", "10.0.0.0/8", "junk"} {
		forged := info
		forged.Reserve = other
		if u, err := universeOf(forged); err == nil {
			t.Errorf("reserve %q was taken over: %+v", other, u)
		}
	}
	cfg := config()
	cfg.Reserve = []string{"10.34.0.0/24"}
	want := "--reserve 10.34.0.0/24 differs from the mesh's, which has 10.33.0.0/24; leave the flag out"
	if err := cfg.checkReserve(got, "the", "leave the flag out"); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
