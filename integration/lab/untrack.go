// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// UntrackedTable is the nftables table, of the family inet, in which [Host.Untrack] keeps its rules.
const UntrackedTable = "untracked"

// Untrack has the host's kernel leave all packets out of connection tracking, whoever else has rules that need it: address translation does nothing
// then. [Host.DropTable] takes it away.
func (h *Host) Untrack() error {
	return h.nft(func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: UntrackedTable})
		for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
			chain := c.AddChain(&nftables.Chain{
				Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRaw,
			})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Notrack{}}})
		}
	})
}
