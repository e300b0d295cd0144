// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/cni"
)

// Whoever asked is killed while the address has to come from another node: the daemon waits no longer, and nothing is left.
func TestCNIClientGoesAwayWhileTheAddressIsFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		n1, n2 := c.machines[0], c.machines[1]
		tiny := func(cfg *Config) { cfg.Range = "10.32.0.0/29" }
		c.start(n1, tiny)
		c.ready(n1)
		c.start(n2, tiny, "n1")
		c.ready(n2)
		n1.net.Dark(true)   // alive for a while, and silent
		for i := 0; ; i++ { // what is left here
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			_, err := n2.service().CNIAttach(ctx, request(n2, fmt.Sprint("filler", i)))
			cancel()
			if err != nil {
				break
			}
		}
		before, up := owners(n2), len(n2.host.up)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, cancel)
		begun := time.Now()
		_, err := n2.service().CNIAttach(ctx, request(n2, "c1"))
		if d := time.Since(begun); d < 200*time.Millisecond || d > 300*time.Millisecond {
			t.Errorf("it took %v", d)
		}
		if ce := new(cni.Error); !errors.As(err, &ce) || ce.Code != cni.CodeTryLater {
			t.Errorf("got %v", err)
		}
		if got := owners(n2); !slices.Equal(got, before) || len(n2.host.up) != up {
			t.Errorf("left are %v, before there were %v", got, before)
		}
		if stored, err := loadWorkloads(n2.service().(*Node).store); err != nil || len(stored) != up {
			t.Errorf("stored are %v, %v", stored, err)
		}
	})
}
