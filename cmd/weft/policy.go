// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/internal/api"
)

// policyWait is how long commands wait by default until policies are in force.
const policyWait = 10 * time.Second

// errDenied ends weft policy why with exit code 1, all having been said.
var errDenied = errors.New("denied")

func (c *cli) policy() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Network policies: which connections of workloads are allowed",
		Long: `Network policies say which connections of workloads are allowed, in the manifests
that Kubernetes has for it: NetworkPolicy, ClusterNetworkPolicy and Namespace.
On hosts without Kubernetes they are applied by weft policy apply, on any host,
and are in force on all; workloads are selected by the labels and the namespace
that weft attach gave them. Under Kubernetes they come from its API; all that
reads works there alike.`,
	}
	cmd.AddCommand(c.policyApply(), c.policyDelete(), c.policyList(), c.policyShow(), c.policyWhy(), c.policyLog())
	return cmd
}

func (c *cli) policyApply() *cobra.Command {
	var file string
	var r api.PolicyApplyRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE|-",
		Short: "Put manifests in force in the whole mesh",
		Long: `Apply makes the mesh have what the manifests in FILE, or on standard input, say:
NetworkPolicy (networking.k8s.io/v1), ClusterNetworkPolicy
(policy.networking.k8s.io/v1alpha2) and Namespace (v1, for its labels), as YAML of
any number of documents, or as JSON. Whatever is not understood, an unknown field
too, is refused, and with it all of the file: nothing is done by half.

It returns when they are on this host's disk, and in force on this host, for which
it waits as long as --wait says: after that there is a warning. The other hosts hear
of them within a second, those that are away when they are back. Two who change the same object on
two sides of a partition: the one who wrote last, as far as the mesh can tell, wins.`,
		Example: "  weft policy apply -f policies.yaml\n  weft policy list -o yaml | ssh other-mesh weft policy apply -f -",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := c.manifests(file)
			if err != nil {
				return err
			}
			r.Manifests = text
			res, err := c.client().PolicyApply(cmd.Context(), r)
			if err != nil {
				return err
			}
			return c.showChanges(res, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "filename", "f", "", "file of manifests; - is standard input")
	f.StringVarP(&r.Namespace, "namespace", "n", "", `namespace of policies that name none (default "default")`)
	f.BoolVar(&r.DryRun, "dry-run", false, "only say what would be done")
	f.DurationVar(&r.Wait, "wait", policyWait, "for how long to wait, at most, until it is in force on this host; 0: not at all")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// manifests reads what a flag names.
func (c *cli) manifests(file string) (string, error) {
	var b []byte
	var err error
	switch file {
	case "":
		return "", usagef("which manifests? give -f FILE, or -f - for standard input")
	case "-":
		if c.in == nil {
			return "", errors.New("the manifests cannot be read: there is no standard input; give -f FILE")
		}
		b, err = io.ReadAll(io.LimitReader(c.in, api.MaxManifests+1))
	default:
		var f *os.File
		if f, err = os.Open(file); err == nil {
			b, err = io.ReadAll(io.LimitReader(f, api.MaxManifests+1))
			err = errors.Join(err, f.Close())
		}
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("the manifests cannot be read: %w", err)
	case len(b) > api.MaxManifests:
		return "", fmt.Errorf("the manifests have more than %d bytes; make several files of them", api.MaxManifests)
	}
	return string(b), nil
}

func (c *cli) showChanges(res api.PolicyChanges, asJSON bool) error {
	if asJSON {
		return c.printJSON(res)
	}
	for _, w := range res.Warnings {
		_, _ = fmt.Fprintf(c.err, "weft: warning: %s\n", w)
	}
	suffix := ""
	if res.DryRun {
		suffix = " (dry run)"
	}
	for _, o := range res.Objects {
		if err := c.println(fmt.Sprintf("%s %s%s", o.PolicyObject, o.Done, suffix)); err != nil {
			return err
		}
	}
	return nil
}

// kinds are the kinds of objects by what people call them, in lower case.
func kinds() map[string]string {
	return map[string]string{
		"networkpolicy": "NetworkPolicy", "networkpolicies": "NetworkPolicy", "netpol": "NetworkPolicy",
		"clusternetworkpolicy": "ClusterNetworkPolicy", "clusternetworkpolicies": "ClusterNetworkPolicy", "cnp": "ClusterNetworkPolicy",
		"namespace": "Namespace", "namespaces": "Namespace", "ns": "Namespace",
	}
}

func (c *cli) policyDelete() *cobra.Command {
	var file string
	var r api.PolicyDeleteRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "delete (KIND/NAME... | -f FILE|-)",
		Short: "Delete policies, or what manifests name, from the whole mesh",
		Long: `Delete deletes the objects that are named, or that the manifests name, all or
none. KIND is networkpolicy (netpol), clusternetworkpolicy (cnp) or namespace (ns).
What is not there is an error, unless --ignore-not-found is given. To delete a
Namespace takes away its labels, not what is in it.`,
		Example: "  weft policy delete netpol/default-deny -n shop\n  weft policy delete -f policies.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) > 0) == (file != "") {
				return usagef("what is to be deleted? give KIND/NAME, or several, or -f FILE")
			}
			for _, a := range args {
				kind, name, ok := strings.Cut(a, "/")
				o := api.PolicyObject{Kind: kinds()[strings.ToLower(kind)], Name: name}
				if !ok || name == "" || o.Kind == "" {
					return usagef("%q names no object; give KIND/NAME, with networkpolicy, clusternetworkpolicy or namespace as the KIND", a)
				}
				if o.Kind == "NetworkPolicy" {
					o.Namespace = r.Namespace
					if o.Namespace == "" {
						o.Namespace = "default"
					}
				}
				r.Objects = append(r.Objects, o)
			}
			if file != "" {
				text, err := c.manifests(file)
				if err != nil {
					return err
				}
				r.Manifests = text
			}
			res, err := c.client().PolicyDelete(cmd.Context(), r)
			if err != nil {
				return err
			}
			return c.showChanges(res, asJSON)
		},
	}
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	f := cmd.Flags()
	f.StringVarP(&file, "filename", "f", "", "file of manifests that name the objects; - is standard input")
	f.StringVarP(&r.Namespace, "namespace", "n", "", `namespace of the policies (default "default")`)
	f.BoolVar(&r.Absent, "ignore-not-found", false, "what is not there is no error")
	f.BoolVar(&r.DryRun, "dry-run", false, "only say what would be done")
	f.DurationVar(&r.Wait, "wait", policyWait, "for how long to wait, at most, until it is in force on this host; 0: not at all")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *cli) policyList() *cobra.Command {
	var output string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the policies, with what they select and what they have decided here",
		Long: `List shows all policies in the order in which they are asked: how many workloads
of this host they select, of how many in all, and how many connections they have
allowed and denied on this host. A connection is put down to the policy whose rule
decided it; one that an isolated workload is denied for want of a rule that allows
it, to the first of the policies that isolate it.

With -o yaml it prints what was applied, for weft policy apply to read again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "yaml" && output != "json" && output != "table" {
				return usagef("-o %q is no format; give table, json or yaml", output)
			}
			l, err := c.client().PolicyList(cmd.Context())
			switch {
			case err != nil:
				return err
			case asJSON || output == "json":
				return c.printJSON(l)
			case output == "yaml":
				return c.policyYAML(l)
			}
			return c.policyTable(l)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FORMAT`: table, json or yaml (default table)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// policyYAML prints what was applied, namespaces first.
func (c *cli) policyYAML(l api.PolicyList) error {
	var all [][]byte
	for _, n := range l.Namespaces {
		all = append(all, n.Manifest)
	}
	for _, p := range l.Policies {
		all = append(all, p.Manifest)
	}
	for _, m := range all {
		if len(m) == 0 {
			return errors.New("under Kubernetes the manifests are in its API; print them by: kubectl get networkpolicies -A -o yaml")
		}
		text, err := yaml.JSONToYAML(m)
		if err == nil {
			_, err = fmt.Fprintf(c.out, "---\n%s", text)
		}
		if err != nil {
			return fmt.Errorf("writing the manifests: %w", err)
		}
	}
	return nil
}

func (c *cli) policyTable(l api.PolicyList) error {
	for _, w := range []string{awaits(l.Awaits), l.Failure} {
		if w != "" {
			_, _ = fmt.Fprintf(c.err, "weft: warning: %s\n", w)
		}
	}
	for _, w := range l.Warnings {
		_, _ = fmt.Fprintf(c.err, "weft: warning: %s\n", w)
	}
	rows := [][]string{{"POLICY", "TIER", "PRIORITY", "SELECTS HERE", "IN ALL", "ALLOWED", "DENIED", "PROBLEMS"}}
	for _, p := range l.Policies {
		priority, problems := "-", "-"
		if p.Tier != "Network" && p.Tier != "network" {
			priority = strconv.Itoa(int(p.Priority))
		}
		if len(p.Problems) > 0 {
			problems = strconv.Itoa(len(p.Problems))
		}
		rows = append(rows, []string{
			p.PolicyObject.String(), p.Tier, priority, strconv.Itoa(p.Selects), strconv.Itoa(p.Mesh),
			strconv.FormatUint(p.Allowed, 10), strconv.FormatUint(p.Denied, 10), problems,
		})
	}
	if err := table(c.out, rows); err != nil {
		return err
	}
	for _, p := range l.Policies {
		for _, text := range p.Problems {
			if err := c.println(fmt.Sprintf("%s is enforced more strictly than it says: %s", p.PolicyObject, text)); err != nil {
				return err
			}
		}
	}
	return nil
}

func awaits(what string) string {
	if what == "" {
		return ""
	}
	return "nothing new is in force yet: waiting for " + what
}

func (c *cli) policyShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [WORKLOAD | NAMESPACE/NAME | ADDRESS]",
		Short: "Show which policies select a workload, and what they say, in words",
		Long: `Show says which policies select a workload, in the order in which they are asked,
and their rules in words, for what comes in and what goes out. A workload is named
as weft ps shows it, by NAMESPACE/NAME, NAME, NAME@HOST or its address; it may be on
another host. Without an argument it shows all of this host.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r api.PolicyShowRequest
			if len(args) > 0 {
				r.Workload = args[0]
			}
			s, err := c.client().PolicyShow(cmd.Context(), r)
			if err != nil {
				return err
			}
			if asJSON {
				return c.printJSON(s)
			}
			for i, one := range s.Workloads {
				text := one.Text()
				if i > 0 {
					text = "\n" + text
				}
				if err := c.println(strings.TrimSuffix(text, "\n")); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (c *cli) policyWhy() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "why FROM TO PORT[/PROTOCOL]",
		Short: "Say whether a connection is allowed, and by which rule of which policy",
		Long: `Why says whether a connection from FROM to TO would be allowed, and which rule of
which policy says so at each end, or which are missing. FROM and TO are workloads,
as NAMESPACE/NAME, NAME or NAME@HOST, nodes, or addresses; TO is who gets the
connection in the end, not a Service in between. PORT is a number, with /tcp (the
default), /udp or /sctp behind it, the name of a port of TO, or icmp. Of each
family of addresses that both have there is an answer.

Exit code: 0 all of them are allowed, 1 one is denied, or the question could not be
answered (then the answer is on standard error).`,
		Example: "  weft policy why web db 5432\n  weft policy why shop/web 192.0.2.7 53/udp",
		Args:    cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, err := c.client().PolicyWhy(cmd.Context(), api.PolicyWhyRequest{From: args[0], To: args[1], Port: args[2]})
			if err != nil {
				return err
			}
			if asJSON {
				err = c.printJSON(w)
			} else {
				var texts []string
				for _, x := range w.Connections {
					if text := strings.TrimSuffix(x.Text(), "\n"); !slices.Contains(texts, text) {
						texts = append(texts, text)
					}
				}
				err = c.println(strings.Join(texts, "\n"))
			}
			if err == nil && !w.Allowed {
				err = errDenied
			}
			return err
		},
	}
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// ended tells whether a command that follows something was ended by the user.
func ended(ctx context.Context, follow bool, err error) error {
	if follow && ctx.Err() != nil {
		return nil // Ctrl-C is how it ends
	}
	return err
}
