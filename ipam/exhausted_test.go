// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// That nothing is left is known without asking for it, on every node, and so is that something came free.
func TestExhaustedIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, nodes := founded(t, "10.32.0.0/27", 3)
		for _, n := range nodes {
			if err := n.Exhausted(); err != nil {
				t.Errorf("n%d: %v", n.id, err)
			}
		}
		count := 0
		for more := true; more; time.Sleep(2 * abstain) { // what is on its way from one node to another is nobody's for a moment
			more = false
			for _, n := range nodes {
				for {
					_, err := n.Allocate(t.Context(), fmt.Sprint(count))
					if err != nil {
						break
					}
					count++
					more = true
				}
			}
		}
		if count != 30 {
			t.Fatalf("there were %d addresses", count)
		}
		time.Sleep(2 * abstain)
		for range 20 { // as long as it lasts
			for _, n := range nodes {
				var full *ExhaustedError
				if err := n.Exhausted(); !errors.As(err, &full) || !full.Majority {
					t.Errorf("n%d: %v", n.id, err)
				}
			}
			time.Sleep(time.Second)
		}
		if err := nodes[0].Release("0"); err != nil {
			t.Fatal(err)
		}
		if err := nodes[0].Exhausted(); err == nil {
			t.Error("what was just released is free")
		}
		time.Sleep(DefaultQuarantine)
		if err := nodes[0].Exhausted(); err != nil {
			t.Errorf("it has rested: %v", err)
		}
	})
}

// A node that is cut off, with nothing left, can get nothing.
func TestExhaustedCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, nodes := founded(t, "10.32.0.0/27", 2)
		n2 := nodes[1]
		time.Sleep(time.Minute)
		c.partition([]*member{nodes[0]}, []*member{n2})
		var full *ExhaustedError
		for i := range 30 {
			if err := n2.Exhausted(); err != nil {
				if !errors.As(err, &full) || full.Majority || i == 0 {
					t.Errorf("after %d: %v", i, err)
				}
				break
			}
			if _, err := n2.Allocate(t.Context(), fmt.Sprint(i)); err != nil {
				t.Fatalf("the %d. address: %v", i, err)
			}
		}
		if full == nil {
			t.Error("it was never exhausted")
		}
	})
}
