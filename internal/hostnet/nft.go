// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the nftables table of family inet that holds all of Weft's rules.
const tableName = "weft"

// features are the parts of nftables that not every kernel has.
type features struct {
	fib   bool // Linux 4.10
	nat   bool // NAT in family inet: Linux 5.2
	plain bool // what kernel paths need, and both others: Linux 5.7
}

func everything() features { return features{fib: true, nat: true, plain: true} }

// candidates are the features to try, the most first.
func (f filters) candidates() []features {
	all := []features{{fib: true, nat: true}, {nat: true}, {fib: true}, {}}
	if f.port != 0 {
		all = slices.Insert(all, 0, everything())
	}
	return all
}

// lacking warns about what does not work.
func (f filters) lacking(got features) (warnings []string) {
	if !got.fib {
		w := "this kernel's nftables has no fib expression: senders are checked by rp_filter instead"
		if hasV6(f.universe) {
			w += ", IPv6 senders not at all"
		}
		warnings = append(warnings, w+"; use a kernel with CONFIG_NFT_FIB_INET")
	}
	if !got.nat {
		warnings = append(warnings, "this kernel's nftables cannot masquerade: workloads do not reach the outside; use Linux 5.2 or later with CONFIG_NFT_MASQ")
	}
	return warnings
}

// removeTable deletes the table, and says whether there was one.
func removeTable(ns namespace) (bool, error) {
	c, err := ns.nftables()
	if err != nil {
		return false, fmt.Errorf("opening nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, nil // no nftables, no table
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if i < 0 {
		return false, nil
	}
	c.DelTable(tables[i])
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("removing nftables table inet %s: %w", tableName, err)
	}
	return true, nil
}

// blockers warns about chains of others that drop what is forwarded and know nothing of Weft. That is what Docker makes of a
// host. Chains of the older iptables cannot be seen here.
func blockers(c *nftables.Conn) (warnings []string) {
	chains, err := c.ListChains()
	if err != nil {
		return nil
	}
	for _, ch := range chains {
		drops := ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		if !drops || !slices.Contains([]nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet}, ch.Table.Family) {
			continue
		}
		if knowsWeft(c, ch) || knowsWeft(c, &nftables.Chain{Name: "DOCKER-USER", Table: ch.Table}) {
			continue
		}
		warnings = append(warnings, fmt.Sprintf("the firewall's chain %s in table %s drops what it does not know, packets of workloads too; "+
			"let it accept devices %s*, as by: iptables -I FORWARD -i %s+ -j ACCEPT; iptables -I FORWARD -o %s+ -j ACCEPT (ip6tables for IPv6)",
			ch.Name, ch.Table.Name, ifPrefix, ifPrefix, ifPrefix))
	}
	return warnings
}

// knowsWeft says whether a rule of the chain compares something with the names of Weft's devices.
func knowsWeft(c *nftables.Conn, ch *nftables.Chain) bool {
	rules, err := c.GetRules(ch.Table, ch)
	return err == nil && slices.ContainsFunc(rules, func(r *nftables.Rule) bool {
		return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
			cmp, ok := e.(*expr.Cmp)
			return ok && bytes.HasPrefix(cmp.Data, []byte(ifPrefix))
		})
	})
}
