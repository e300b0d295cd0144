// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/integration/lab"
	"github.com/weftnet/weft/internal/kube/kubetest"
)

// The cluster that a daemon has to follow in mostClusterMemory.
const (
	clusterNodes = 1000
	clusterPods  = 30000
	// mostClusterMemory is how many bytes a daemon may have in memory at most, and mostAloneMemory where there are the Nodes and no pods. What 999 other
	// members of its mesh take comes on top, who are not there in this test: 5 MiB (3.5 kB each, docs/scale.md, and half as much again as garbage).
	mostClusterMemory = 60 << 20
	mostAloneMemory   = 55 << 20
)

// TestClusterMemory has a daemon follow the API server of a large cluster, with objects as large as those of real ones, and looks at
// how much memory it has: when all is known to it, and while pods come and go.
func TestClusterMemory(t *testing.T) {
	t.Parallel()
	t.Run("nodes", func(t *testing.T) { clusterMemory(t, 0, mostAloneMemory) })
	t.Run("pods", func(t *testing.T) { clusterMemory(t, clusterPods, mostClusterMemory) })
}

func clusterMemory(t *testing.T, pods, limit int) {
	t.Helper()
	l := lab.New(t)
	lan := l.Switch("lan")
	h := l.Host("n0", lan)
	srv := kubetest.New()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
	own := h.Link().V4()
	for i := range clusterNodes {
		a := own
		if i > 0 {
			a = netip.AddrFrom4([4]byte{198, 18, byte(i / 250), byte(1 + i%250)}) // nobody
		}
		name := fmt.Sprintf("n%d", i)
		srv.Load("nodes/"+name, largeNode(name, a))
	}
	for i := range pods {
		namespace, name := podName(i)
		srv.Load(namespace+"/pods/"+name, largePod(namespace, name, i, i))
	}
	for i := range 100 {
		name := fmt.Sprintf("team-%d", i)
		srv.Load("namespaces/"+name, fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q,"uid":"ns-%d","resourceVersion":"1","labels":{"kubernetes.io/metadata.name":%q,"team":"t%d"}}}`, name, i, name, i))
		for j := range 5 {
			srv.Load(fmt.Sprintf("%s/networkpolicies/p%d", name, j), fmt.Appendf(nil, `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p%d","namespace":%q,"uid":"np-%d-%d","resourceVersion":"1"},`+
				`"spec":{"podSelector":{"matchLabels":{"app":"service-%d"}},"policyTypes":["Ingress"],"ingress":[{"from":[{"podSelector":{"matchLabels":{"tier":"web"}}},{"namespaceSelector":{"matchLabels":{"team":"t%d"}}}],"ports":[{"protocol":"TCP","port":8080}]}]}}`, j, name, i, j, i+100*j, (i+1)%100))
		}
	}
	srv.Put("kube-system/daemonsets/weft", kubetest.Object{})

	var kubeconfig string
	if err := h.Do(func() error {
		ln, err := net.Listen("tcp", netip.AddrPortFrom(own, 0).String())
		if err != nil {
			return err
		}
		s := httptest.NewUnstartedServer(srv.Handler())
		_ = s.Listener.Close()
		s.Listener, s.EnableHTTP2 = ln, true
		s.StartTLS()
		t.Cleanup(s.CloseClientConnections) // watches do not end by themselves
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
		kubeconfig = h.File("kubeconfig", fmt.Sprintf(`{"clusters":[{"name":"c","cluster":{"server":"https://%s","certificate-authority-data":%q,"tls-server-name":"example.com"}}],`+
			`"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"current-context":"c","users":[{"name":"u","user":{}}]}`,
			ln.Addr(), base64.StdEncoding.EncodeToString(ca)), 0o600)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(h.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	start := time.Now()
	d, err := h.Start(lab.Command{
		Path: os.Getenv(envBinary),
		Args: []string{
			"kube", "launch", "--name", "n0", "--kubeconfig", kubeconfig, "--namespace", "kube-system", "--daemonset", "weft", "--plugin", os.Getenv(envPlugin),
			"--data-dir", h.DataDir(), "--run-dir", h.RunDir(), "--bin-dir", filepath.Join(h.Dir(), "bin"), "--conf-dir", filepath.Join(h.Dir(), "conf"),
		},
		Stdout: log, Stderr: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	var st status
	for st.Phase != "ready" {
		time.Sleep(100 * time.Millisecond)
		if err := h.Query(&st, "status"); time.Since(start) > time.Minute {
			t.Fatalf("the daemon is not ready: %+v, %v\n%s", st, err, h.Log())
		}
	}
	t.Logf("ready after %v", time.Since(start).Round(10*time.Millisecond))
	verb := func(verb string) map[string]int {
		kinds := map[string]int{}
		for _, r := range []string{"nodes", "secrets", "daemonsets", "pods", "namespaces", "networkpolicies", "clusternetworkpolicies"} {
			kinds[r] = srv.Count(func(q kubetest.Request) bool { return q.Verb == verb && q.Resource == r })
		}
		return kinds
	}
	look := func(when string) {
		now, most := memory(t, d.Pid())
		t.Logf("%s: %.1f MiB, %.1f MiB at most", when, float64(now)/(1<<20), float64(most)/(1<<20))
		if most > limit {
			t.Errorf("%s: the daemon had %.1f MiB in memory, more than %.1f", when, float64(most)/(1<<20), float64(limit)/(1<<20))
		}
	}
	time.Sleep(20 * time.Second) // the first requests are spread
	look("all is known")
	t.Logf("watches: %v, lists: %v", verb("watch"), verb("list"))
	watches := srv.Watches()
	for round := range 20 {
		for i := round * pods / 60; i < (round+1)*pods/60; i++ {
			namespace, name := podName(i)
			srv.Load(namespace+"/pods/"+name, largePod(namespace, name, i, i+clusterPods))
		}
		time.Sleep(500 * time.Millisecond)
	}
	look(fmt.Sprint(pods/3, " pods have changed"))
	if n := srv.Watches(); n != watches {
		t.Errorf("%d watches, there were %d", n, watches)
	}
	for kind, n := range verb("list") {
		if n > 1 {
			t.Errorf("%s were listed %d times", kind, n)
		}
	}
}

// managed is what the API server notes of who wrote which fields, of an object of medium size.
var managed = `[{"manager":"kubelet","operation":"Update","apiVersion":"v1","time":"2026-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{` +
	strings.Repeat(`"f:metadata":{"f:annotations":{".":{},"f:example":{}},"f:labels":{".":{},"f:app":{}}},`, 15) + `"f:spec":{}},"subresource":"status"}]`

// largeNode is a Node with labels, conditions and images, 12 kB of JSON.
func largeNode(name string, a netip.Addr) []byte {
	labels, images := []string{}, []string{}
	for i := range 20 {
		labels = append(labels, fmt.Sprintf(`"topology.example/label-%d":%q`, i, strings.Repeat("x", 30)))
	}
	for i := range 50 {
		images = append(images, fmt.Sprintf(`{"names":["registry.example/team/image-%d@sha256:%064d","registry.example/team/image-%d:v1"],"sizeBytes":123456789}`, i, i, i))
	}
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Node","metadata":{"name":%q,"uid":"uid-%s","resourceVersion":"1","labels":{%s},"managedFields":%s},"spec":{"podCIDR":"10.244.0.0/24","podCIDRs":["10.244.0.0/24"]},`+
		`"status":{"addresses":[{"type":"InternalIP","address":%q},{"type":"Hostname","address":%q}],"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","message":"kubelet is posting ready status"},`+
		`{"type":"NetworkUnavailable","status":"False","reason":"WeftIsUp","message":"x"}],"images":[%s]}}`,
		name, name, strings.Join(labels, ","), managed, a, name, strings.Join(images, ","))
}

// podName is the name of a pod: twenty each are of one Deployment.
func podName(i int) (namespace, name string) {
	return fmt.Sprintf("team-%d", i/20%100), fmt.Sprintf("service-%d-6d5f7c9b8-%05d", i/20, i)
}

// largePod is the Pod of a number, with two containers, 6 kB of JSON. It runs, with the address of another number.
func largePod(namespace, name string, i, address int) []byte {
	env, containers, statuses := []string{}, []string{}, []string{}
	for j := range 10 {
		env = append(env, fmt.Sprintf(`{"name":"SETTING_%d","value":"a value of this setting, number %d"}`, j, j))
	}
	for j := range 2 {
		containers = append(containers, fmt.Sprintf(`{"name":"c%d","image":"registry.example/team/image-%d:v1","ports":[{"name":"http","containerPort":808%d,"protocol":"TCP"}],"env":[%s],"resources":{"requests":{"cpu":"100m","memory":"128Mi"}}}`, j, j, j, strings.Join(env, ",")))
		statuses = append(statuses, fmt.Sprintf(`{"name":"c%d","ready":true,"restartCount":0,"image":"registry.example/team/image-%d:v1","imageID":"registry.example/team/image-%d@sha256:%064d","containerID":"containerd://%064d"}`, j, j, j, j, i))
	}
	ip := netip.AddrFrom4([4]byte{10, byte(64 + address>>16), byte(address >> 8), byte(address)})
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"namespace":%q,"uid":"0b3c8f6e-5f0e-4d6a-9f55-%012d","resourceVersion":"1","labels":{"app":"service-%d","tier":"web","pod-template-hash":"6d5f7c9b8","app.kubernetes.io/instance":"release-%d","app.kubernetes.io/part-of":"product"},"managedFields":%s},`+
		`"spec":{"nodeName":"n%d","containers":[%s]},"status":{"phase":"Running","podIP":%q,"podIPs":[{"ip":%q}],"hostIP":"198.18.0.1","containerStatuses":[%s]}}`,
		name, namespace, i, i/20, i/20, managed, i%clusterNodes, strings.Join(containers, ","), ip, ip, strings.Join(statuses, ","))
}
