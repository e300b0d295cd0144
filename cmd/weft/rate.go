// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	leastRate = 64e3 // bits per second: less than that carries nothing
	mostRate  = 1e13
)

// parseRate reads a rate in bits per second: a number and bit, kbit, mbit or gbit, each 1,000 times the one before; 0 is no
// limit.
func parseRate(s string) (uint64, error) {
	if s == "0" {
		return 0, nil
	}
	for _, u := range []struct {
		name string
		bits float64
	}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1}} {
		digits, ok := strings.CutSuffix(strings.ToLower(s), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(digits, 64)
		if err != nil || strings.Trim(digits, "0123456789.") != "" {
			break
		}
		if bits := n * u.bits; bits < leastRate || bits > mostRate {
			return 0, fmt.Errorf("%q is out of range; give 64kbit to 10000gbit, or 0 for no limit", s)
		}
		return uint64(n * u.bits), nil
	}
	return 0, fmt.Errorf("%q is no rate; give such as 200mbit or 1gbit, or 0 for no limit", s)
}

// rate writes a number of bits per second as parseRate reads it.
func rate(bits uint64) string {
	for _, u := range []struct {
		bits uint64
		name string
	}{{1e9, "gbit"}, {1e6, "mbit"}, {1e3, "kbit"}} {
		if bits >= u.bits {
			return strconv.FormatFloat(float64(bits)/float64(u.bits), 'f', -1, 64) + u.name
		}
	}
	return strconv.FormatUint(bits, 10) + "bit"
}
