// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestRates(t *testing.T) {
	for s, want := range map[string]uint64{
		"0": 0, "200mbit": 200e6, "1gbit": 1e9, "1.5Gbit": 1500e6, "64kbit": 64e3, "100000bit": 1e5, "10000gbit": 1e13,
	} {
		got, err := parseRate(s)
		if err != nil || got != want {
			t.Errorf("parseRate(%q) = %d, %v", s, got, err)
		}
		if again, err := parseRate(rate(want)); want != 0 && (err != nil || again != want) {
			t.Errorf("%d is written as %s, which is read as %d, %v", want, rate(want), again, err)
		}
	}
	for s, want := range map[string]string{
		"": "no rate", "fast": "no rate", "200": "no rate", "mbit": "no rate", "-1mbit": "no rate", "1e3mbit": "no rate", "0x1mbit": "no rate",
		"NaNmbit": "no rate", "1mbits": "no rate", "1mb": "no rate", "1 mbit": "no rate", "1.2.3mbit": "no rate", ".mbit": "no rate",
		"63kbit": "out of range", "0mbit": "out of range", "10001gbit": "out of range", "99999999999999999999gbit": "out of range",
	} {
		if got, err := parseRate(s); err == nil || !strings.Contains(err.Error(), want) || got != 0 {
			t.Errorf("parseRate(%q) = %d, %v, want %s", s, got, err, want)
		}
	}
	for bits, want := range map[uint64]string{1e9: "1gbit", 1500e6: "1.5gbit", 200e6: "200mbit", 64e3: "64kbit", 7: "7bit"} {
		if got := rate(bits); got != want {
			t.Errorf("rate(%d) = %s", bits, got)
		}
	}
}
