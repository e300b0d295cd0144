// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes

import (
	"context"
	"encoding/xml"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

// What of upstream's tests runs. SCTP needs a kernel that has it; Feature means what a cluster may lack.
var (
	focus = flag.String("focus", `\[sig-network\].*(\[Conformance\]|Granular Checks)`, "upstream tests to run, a regular expression")
	skip  = flag.String("skip", `SCTP|Feature:|\[Slow\]`, "upstream tests to leave out, a regular expression")

	netpol = flag.String("netpol", ".", "upstream tests of network policies to run, a regular expression")
)

// upstream runs some of Kubernetes' own tests, from outside of the cluster, and returns "passed 12s NAME" for each, of which none has failed.
func (c *Cluster) upstream(t *testing.T, which ...string) []string {
	t.Helper()
	report := filepath.Join(c.logs, "upstream")
	log, err := os.Create(report + ".log")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	p, err := c.Client.Start(lab.Command{
		Path: c.program("e2e.test"),
		Args: append([]string{
			"--kubeconfig=" + c.pki.file("admin.kubeconfig"), "--provider=skeleton",
			"--ginkgo.no-color", "--ginkgo.v", "--disable-log-dump", "--minStartupPods=0", "--report-dir=" + report,
		}, which...),
		Env: []string{"PATH=" + filepath.Join(c.built, "bin") + ":" + os.Getenv("PATH")}, Stdout: log, Stderr: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
	defer cancel()
	select {
	case <-p.Done():
	case <-ctx.Done():
		t.Fatalf("upstream's tests do not end; see %s.log", report)
	}
	ran := results(t, report)
	for _, r := range ran {
		t.Log(r)
		if !strings.HasPrefix(r, "passed") {
			t.Errorf("%s; see %s.log", r, report)
		}
	}
	if len(ran) == 0 {
		t.Errorf("no test ran; see %s.log", report)
	}
	return ran
}

// results reads the reports in a directory: "passed 12s NAME" for each test that ran.
func results(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.xml"))
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var suites struct {
			Suites []struct {
				Cases []struct {
					Name   string  `xml:"name,attr"`
					Status string  `xml:"status,attr"`
					Time   float64 `xml:"time,attr"`
				} `xml:"testcase"`
			} `xml:"testsuite"`
		}
		if err := xml.Unmarshal(text, &suites); err != nil {
			t.Fatal(err)
		}
		for _, s := range suites.Suites {
			for _, c := range s.Cases {
				if name, ok := strings.CutPrefix(c.Name, "[It] "); ok && c.Status != "skipped" {
					out = append(out, fmt.Sprintf("%s %.0fs %s", c.Status, c.Time, name))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// coreDNS is the cluster's DNS, by the program in the image of the tests.
func coreDNS() string {
	return `
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
rules:
- {apiGroups: [""], resources: [services, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
        errors
        ready
        kubernetes cluster.local in-addr.arpa ip6.arpa {
            fallthrough in-addr.arpa ip6.arpa
            ttl 5
        }
        cache 5
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  replicas: 2
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      serviceAccountName: coredns
      dnsPolicy: Default
      containers:
      - name: coredns
        image: ` + Agnhost + `
        command: [/coredns, -conf, /etc/coredns/Corefile]
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 2}
        volumeMounts: [{name: config, mountPath: /etc/coredns}]
      volumes: [{name: config, configMap: {name: coredns}}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns, kubernetes.io/name: CoreDNS}}
spec:
  clusterIP: ` + dnsService + `
  ipFamilyPolicy: PreferDualStack
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
`
}
