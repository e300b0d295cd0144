// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/api"
)

const defaultIfName = "eth0"

// target are the flags by which attach and detach name a namespace.
type target struct {
	netns, ifname string
	pid           int
}

func (t *target) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.netns, "netns", "", "path of the network namespace, such as /run/netns/NAME")
	cmd.Flags().IntVar(&t.pid, "pid", 0, "process whose network namespace is meant")
	cmd.Flags().StringVar(&t.ifname, "ifname", defaultIfName, "name of the interface in the namespace")
}

// path returns the namespace's path as the daemon can open it.
func (t *target) path() (string, error) {
	switch {
	case t.netns != "" && t.pid != 0:
		return "", usagef("--netns and --pid exclude each other; give one of them")
	case t.pid > 0:
		return fmt.Sprintf("/proc/%d/ns/net", t.pid), nil
	case t.pid < 0:
		return "", usagef("--pid %d is no process; give a positive number", t.pid)
	case t.netns == "":
		return "", usagef("which namespace? give --netns PATH or --pid PID")
	}
	return absolute(t.netns)
}

func (c *cli) attach() *cobra.Command {
	var t target
	var ip string
	var known identityFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "attach (--netns PATH | --pid PID)",
		Short: "Give a network namespace an interface on the mesh, and print its addresses",
		Long: `Attach makes an interface in the namespace, gives it the next free address
of each family and routes, and prints the addresses. Asked again, it repairs
what is amiss and gives the same answer.

Network policies (weft policy) select the workload by --namespace and --label,
and may call its ports by the names that --port gives them. What is not given
again stays as it was.`,
		Example: "  weft attach --netns /run/netns/db --label app=db --port postgres=5432/tcp",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := api.AttachRequest{IfName: t.ifname}
			var err error
			if r.Netns, err = t.path(); err != nil {
				return err
			}
			if r.Policy, err = known.identity(); err != nil {
				return err
			}
			if ip != "" {
				if r.IP, err = netip.ParseAddr(ip); err != nil {
					return usagef("--ip %q is no IP address", ip)
				}
			}
			w, err := c.client().Attach(cmd.Context(), r)
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(w)
			}
			for _, m := range w.Warnings {
				_, _ = fmt.Fprintf(c.err, "weft: warning: %s\n", m)
			}
			for _, a := range w.Addresses {
				if _, err := fmt.Fprintln(c.out, a); err != nil {
					return fmt.Errorf("writing the addresses: %w", err)
				}
			}
			return nil
		},
	}
	t.register(cmd)
	known.register(cmd)
	cmd.Flags().StringVar(&ip, "ip", "", "a certain address of the mesh's range (default: the next free one)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
