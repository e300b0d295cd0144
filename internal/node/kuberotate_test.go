// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/rand"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/kube/kubetest"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/mesh/memnet"
)

// inSecret is the token that the Secret has.
func (k *kubernetes) inSecret() token.Token {
	k.t.Helper()
	text, _ := k.server.Get(secretPath)["data"].(kubetest.Object)["token"].(string)
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		k.t.Fatal(err)
	}
	tok, err := token.Parse(string(b))
	if err != nil {
		k.t.Fatal(err)
	}
	return tok
}

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
		old := k.inSecret()
		k.rotate(k.machines[1], api.RotateRequest{})
		k.revokeOld(k.machines[1])
		k.eventually(time.Minute, "the Secret has the new token", func() bool { return k.inSecret().Equal(k.machines[0].token()) })
		if k.inSecret().Equal(old) {
			t.Fatal("the token is the old one")
		}
		k.launch(last, nil)
		k.allUp(30 * time.Second)
		if s := last.service().Status(); s.Nodes.Alive != 4 {
			t.Errorf("the node that came later is in a mesh of %d", s.Nodes.Alive)
		}
	})
}

// TestKubernetesNodeAwayDuringRotation rotates the token while one node is off and another one is cut off: the Secret tells both the new one, so that they
// come back by themselves; a token in it that the mesh does not accept is not taken.
func TestKubernetesNodeAwayDuringRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKubernetes(t, 5)
		for _, m := range k.machines {
			k.launch(m, nil)
		}
		k.allUp(20 * time.Second)
		time.Sleep(time.Minute)
		off, cut := k.machines[3], k.machines[4]
		old := k.machines[0].token()
		if err := off.stop(); err != nil {
			t.Fatal(err)
		}
		k.net.Partition([]*memnet.Host{cut.net})
		k.eventually(time.Minute, "two nodes are missed", func() bool { return k.machines[0].service().Status().Nodes.Alive == 3 })
		k.rotate(k.machines[1], api.RotateRequest{})
		k.revokeOld(k.machines[1])
		k.eventually(2*time.Minute, "the Secret has the new token", func() bool { return k.inSecret().Equal(k.machines[0].token()) })
		if k.inSecret().Equal(old) {
			t.Fatal("the token is the old one")
		}
		k.net.Heal()
		k.launch(off, nil)
		for _, m := range k.machines {
			k.eventually(3*time.Minute, m.name+" sees all alive", func() bool {
				svc := m.service()
				return svc != nil && svc.Status().Ready && svc.Status().Nodes.Alive == 5
			})
			if !m.token().Equal(k.machines[0].token()) {
				t.Errorf("%s has another token", m.name)
			}
		}
		for _, m := range []*machine{off, cut} {
			k.eventually(time.Minute, m.name+" has nothing to warn of", func() bool { return len(m.service().Status().Warnings) == 0 })
		}

		wrong, err := token.New(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		right := k.inSecret()
		k.server.Edit(secretPath, func(o kubetest.Object) {
			o["data"].(kubetest.Object)["token"] = base64.StdEncoding.EncodeToString([]byte(wrong.Reveal()))
		})
		const want = "Secret kube-system/weft has another token than this node, which goes on with its own: asking 192.0.2.2:6783, 192.0.2.3:6783, 192.0.2.4:6783, 192.0.2.5:6783: "
		k.eventually(time.Minute, "a warning", func() bool {
			return slices.ContainsFunc(k.machines[0].service().Status().Warnings, func(w string) bool { return strings.HasPrefix(w, want) })
		})
		time.Sleep(time.Minute)
		for _, m := range k.machines {
			if !m.token().Equal(right) || m.service().Status().Nodes.Alive != 5 {
				t.Errorf("%s took a token that is not the mesh's", m.name)
			}
		}
		k.server.Delete(secretPath)
		k.eventually(time.Minute, "the Secret is right again", func() bool { return k.server.Get(secretPath) != nil && k.inSecret().Equal(right) })
		k.eventually(time.Minute, "no warning", func() bool { return len(k.machines[0].service().Status().Warnings) == 0 })
	})
}
