// SPDX-License-Identifier: Apache-2.0

package reach

import "time"

// moment is a time in nanoseconds since 1970, a third of the size of a time.Time, of which every node has many. Zero is never.
type moment int64

func momentOf(t time.Time) moment { return moment(t.UnixNano()) }

// time returns the zero time for zero.
func (m moment) time() time.Time {
	if m == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(m))
}

// IsZero, Before, After, Add and Sub are those of time.Time, for times of this age.

func (m moment) IsZero() bool               { return m == 0 }
func (m moment) Before(o moment) bool       { return m < o }
func (m moment) After(o moment) bool        { return m > o }
func (m moment) Add(d time.Duration) moment { return m + moment(d) }
func (m moment) Sub(o moment) time.Duration { return time.Duration(m - o) }

// sooner returns the earlier one of two, of which zero is never.
func sooner(a, b moment) moment {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// later returns the later one of two.
func later(a, b moment) moment { return max(a, b) }
