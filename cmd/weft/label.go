// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

// identityFlags are what network policies are to know a workload by.
type identityFlags struct {
	namespace, name string
	labels, ports   []string
}

func (f *identityFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&f.labels, "label", "l", nil, "a label for network policies, as `KEY=VALUE`; may be given several times")
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", "", `namespace for network policies (default "default")`)
	cmd.Flags().StringVar(&f.name, "name", "", "name for network policies (default: made from the path)")
	cmd.Flags().StringArrayVar(&f.ports, "port", nil, "a port that network policies may call by its name, as `NAME=PORT/PROTOCOL`; may be given several times")
}

// identity reads the flags; nil if none was given.
func (f *identityFlags) identity() (*api.Identity, error) {
	if f.namespace == "" && f.name == "" && len(f.labels) == 0 && len(f.ports) == 0 {
		return nil, nil
	}
	i := api.Identity{Namespace: f.namespace, Name: f.name}
	for _, s := range f.labels {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, usagef("--label %q is no label; give KEY=VALUE, as app=db", s)
		}
		if _, twice := i.Labels[k]; twice {
			return nil, usagef("--label %s is given twice; a workload has one value of it", k)
		}
		if i.Labels == nil {
			i.Labels = map[string]string{}
		}
		i.Labels[k] = v
	}
	for _, s := range f.ports {
		name, rest, ok := strings.Cut(s, "=")
		number, proto, err := portOf(rest)
		if !ok || name == "" || err != nil {
			return nil, usagef("--port %q is no port; give NAME=PORT/PROTOCOL, as http=80/tcp, with tcp, udp or sctp", s)
		}
		i.Ports = append(i.Ports, api.NamedPort{Name: name, Protocol: proto, Port: number})
	}
	return &i, nil
}

// portOf reads PORT or PORT/PROTOCOL; without a protocol it is of TCP.
func portOf(s string) (uint16, string, error) {
	number, proto, _ := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	proto = cmp.Or(strings.ToLower(proto), "tcp")
	if err != nil || n == 0 || !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
		return 0, "", fmt.Errorf("%q is no port", s)
	}
	return uint16(n), proto, nil
}

func (c *cli) label() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "label WORKLOAD KEY=VALUE|KEY-...",
		Short: "Change the labels by which network policies select a workload of this host",
		Long: `Label sets labels of a workload that is attached on this host (KEY=VALUE), or
removes them (KEY-), and prints those that it has then. WORKLOAD is its ID as
weft ps shows it, its name for network policies, NAMESPACE/NAME, either with @HOST
behind it, the path of its network namespace, or an address. The change is kept over restarts, and policies
on this host heed it when the command returns; other hosts hear of it at once.

Under Kubernetes workloads have the labels of their pods.`,
		Example: "  weft label db app=db tier=back\n  weft label 10.32.0.5 tier-",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := api.LabelRequest{Workload: args[0], Set: map[string]string{}}
			for _, s := range args[1:] {
				k, v, set := strings.Cut(s, "=")
				key, removed := strings.CutSuffix(s, "-")
				switch {
				case set && k != "":
					r.Set[k] = v
				case !set && removed && key != "":
					r.Remove = append(r.Remove, key)
				default:
					return usagef("%q is no change of a label; give KEY=VALUE to set it, or KEY- to remove it", s)
				}
			}
			w, err := c.client().Label(cmd.Context(), r)
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(w)
			}
			return c.println(labelText(w.Policy))
		},
	}
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// labelText writes labels as people do.
func labelText(i *api.Identity) string {
	if i == nil || len(i.Labels) == 0 {
		return "no labels"
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(i.Labels)) {
		parts = append(parts, k+"="+i.Labels[k])
	}
	return strings.Join(parts, ",")
}
