// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"strings"
	"testing"
)

// FuzzConnections gives what an operator may type. Whatever it is, there are at most a few connections, all of them to be explained, or one line.
func FuzzConnections(f *testing.F) {
	for _, s := range [][3]string{
		{"web", "prod/db", "80"},
		{"10.32.0.1", "n1", "dns"},
		{"fd32::1", "fd32::3", "icmp"},
		{"web", "198.51.100.7", "53/udp"},
		{"/", "", "/"},
		{"::ffff:10.32.0.1", "fe80::1%eth0", "65536"},
		{"a\nb", "\x1b[2J", "-1/tcp"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	w := office()
	f.Fuzz(func(t *testing.T, from, to, port string) {
		found, err := w.Connections(from, to, port)
		if err != nil && (len(err.Error()) > 600 || strings.ContainsAny(err.Error(), "\n\x1b")) {
			t.Errorf("%q", err)
		}
		if (err == nil) != (len(found) > 0) || len(found) > 8 {
			t.Errorf("%d connections, %v", len(found), err)
		}
		for _, c := range found {
			if c.Src.Is4() != c.Dst.Is4() || c.Src.Is4In6() || w.Why(c).Allowed != w.Judge(c).Allowed() {
				t.Errorf("%v", c)
			}
		}
	})
}
