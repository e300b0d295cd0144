// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/base64"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/kube/kubetest"
	"github.com/weftnet/weft/internal/token"
)

// TestKubernetesSecretFollowsRotation rotates the token of a cluster's mesh; a node that comes later joins with what the Secret says.
func TestKubernetesSecretFollowsRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 4)
		last := k.machines[3]
		for _, m := range k.machines[:3] {
			k.launch(m, nil)
		}
		for _, m := range k.machines[:3] {
			k.ready(m)
		}
		time.Sleep(time.Minute)
		inSecret := func() token.Token {
			text, _ := k.server.Get(secretPath)["data"].(kubetest.Object)["token"].(string)
			b, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			tok, err := token.Parse(string(b))
			if err != nil {
				t.Fatal(err)
			}
			return tok
		}
		old := inSecret()
		k.rotate(k.machines[1], api.RotateRequest{})
		k.revokeOld(k.machines[1])
		k.eventually(time.Minute, "the Secret has the new token", func() bool { return inSecret().Equal(k.machines[0].token()) })
		if inSecret().Equal(old) {
			t.Fatal("the token is the old one")
		}
		k.launch(last, nil)
		k.allUp(30 * time.Second)
		if s := last.service().Status(); s.Nodes.Alive != 4 {
			t.Errorf("the node that came later is in a mesh of %d", s.Nodes.Alive)
		}
	})
}
