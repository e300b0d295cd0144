// SPDX-License-Identifier: Apache-2.0

package node

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/weftnet/weft/internal/api"
)

// Who asks for what a rotation that is under way cannot give any more is told so, not that all is well.
func TestRotateAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		n1, n2 := c.machines[0], c.machines[1]
		c.startAll(c.machines...)
		refused := func(q api.RotateRequest, want string) {
			t.Helper()
			_, err := n1.service().Rotate(t.Context(), q, func(api.RotationProgress) {})
			if err == nil || err.Error() != want {
				t.Errorf("%+v:\ngot  %v\nwant %s", q, err, want)
			}
		}
		refused(api.RotateRequest{With: []string{"n2"}}, errNothingToAddTo.Error())
		refused(api.RotateRequest{With: []string{"n3", "n2"}, Without: []string{"n2"}}, "n2 is named by --with and by --without; name it by one of them")
		if n1.service().Status().Rotation != nil {
			t.Error("what was refused began a rotation")
		}

		_, lines := c.rotate(n1, api.RotateRequest{})
		const goingOn = "the rotation that began at "
		if strings.Contains(strings.Join(lines, "\n"), goingOn) {
			t.Errorf("the first one says %q", lines)
		}
		fresh := n1.token()
		refused(api.RotateRequest{Without: []string{"n2"}}, "n2 has the new token of the rotation that is under way; run weft token revoke-old, and then weft token rotate --without n2")
		_, lines = c.rotate(n2, api.RotateRequest{})
		if len(lines) == 0 || !strings.HasPrefix(lines[0], goingOn) || !strings.HasSuffix(lines[0], " is not over; going on with it (for another new token run weft token revoke-old first)") {
			t.Errorf("the second one says %q", lines)
		}
		if !n2.token().Equal(fresh) {
			t.Error("there is another token")
		}

		c.revokeOld(n1)
		refused(api.RotateRequest{With: []string{"n2"}}, errNothingToAddTo.Error())
		res, lines := c.rotate(n1, api.RotateRequest{Without: []string{"n2"}})
		if strings.Contains(strings.Join(lines, "\n"), goingOn) || res.Confirmed != 2 || len(res.LeftOut) != 1 || n1.token().Equal(fresh) {
			t.Errorf("leaving n2 out: %+v after %q", res, lines)
		}
		c.revokeOld(n1)
	})
}
