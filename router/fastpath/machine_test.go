// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// The best way is taken as soon as it is proven; when it fails the next one is, within two seconds, with the reason; and it is taken
// again after it has worked for a while.
func TestFailures(t *testing.T) {
	for _, c := range []struct {
		name   string
		fail   func(x *line)
		kinds  []Kind // that fail
		oneWay bool
		want   Kind
		why    string
	}{
		{"all is lost", func(x *line) { x.down = true }, []Kind{Direct}, false, VXLAN, `^no answer by direct to 192\.0\.2\.2 on eth0 since \d\d:\d\d:\d\d$`},
		{"nothing arrives, in one direction", func(x *line) { x.down = true }, []Kind{Direct}, true, VXLAN, `^no answer by direct to 192\.0\.2\.2 on eth0 since`},
		{"both", func(x *line) { x.down = true }, []Kind{Direct, VXLAN}, false, UDP, `^no answer by direct to 192\.0\.2\.2 on eth0 since`},
		{
			"large packets", func(x *line) { x.mtu = 1400 }, []Kind{Direct, VXLAN}, false, UDP,
			`^packets of 1500 bytes do not pass by direct to 192\.0\.2\.2 on eth0, small ones do$`,
		},
		{"IPv6", func(x *line) { x.down6 = true }, []Kind{Direct}, false, VXLAN, `^no answer to IPv6 packets by direct to 192\.0\.2\.2 on eth0 since`},
		{
			"no route", func(x *line) { x.error = errUnreachable }, []Kind{Direct, VXLAN}, false, UDP,
			`^packets of 1500 bytes cannot leave by direct to 192\.0\.2\.2 on eth0 since \d\d:\d\d:\d\d: network is unreachable$`,
		},
		{"everything is slow", func(x *line) { x.delay = 2 * time.Second }, []Kind{Direct}, false, VXLAN, `^no answer by direct`},
	} {
		for _, idle := range []bool{false, true} {
			s := newSim(t, 2, 1)
			for _, h := range s.hosts {
				h.sends = !idle
			}
			s.start()
			s.run(time.Second)
			s.want(Direct)
			s.run(time.Minute)
			s.want(Direct)
			for _, k := range c.kinds {
				c.fail(s.line(1, 2, k))
				if !c.oneWay {
					c.fail(s.line(2, 1, k))
				}
			}
			s.hosts[0].sends, s.hosts[1].sends = true, true // from now on
			s.run(2100 * time.Millisecond)
			back := s.path(2, 1)
			if a := s.path(1, 2); a != c.want || c.oneWay && back != Direct || !c.oneWay && back != c.want {
				t.Fatalf("%s, idle %v: %v and %v\n%s", c.name, idle, a, back, strings.Join(s.hosts[0].trace, "\n"))
			}
			if w := max(s.hosts[0].worst, s.hosts[1].worst); w > 2*time.Second && c.name != "everything is slow" {
				t.Errorf("%s, idle %v: nothing passes for %v\n%s", c.name, idle, w, strings.Join(s.hosts[0].trace, "\n"))
			}
			st := s.hosts[0].m.Status(2)
			if !regexp.MustCompile(c.why).MatchString(st.Why) {
				t.Errorf("%s, idle %v: %s", c.name, idle, st.Why)
			}
			if (st.Kinds[Direct] == "") || (st.Kinds[VXLAN] == "") != (c.want == VXLAN && st.Path != VXLAN) && st.Path != VXLAN {
				t.Errorf("%s, idle %v: %+v", c.name, idle, st)
			}
			s.run(20 * time.Second)
			if a := s.path(1, 2); a != c.want {
				t.Errorf("%s, idle %v: %v after a while", c.name, idle, a)
			}
			for _, k := range c.kinds {
				*s.line(1, 2, k), *s.line(2, 1, k) = line{mtu: 1500}, line{mtu: 1500}
			}
			s.run(80 * time.Second)
			s.want(Direct)
		}
	}
}
