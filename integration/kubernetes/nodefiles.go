// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// containerdConfig has the runtime find the CNI plugin where Weft installs it by default. Without CAP_SYS_RESOURCE no process can lower its score.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
# It tells when it calls the plugin and when that has answered.
[debug]
  level = "debug"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10.1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`

// files writes the node's configuration.
func (p *nodePlan) files() error {
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for name, addr := range p.Hosts {
		fmt.Fprintf(&hosts, "%s %s\n", addr, name)
	}
	kubelet, err := json.Marshal(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false}, "webhook": map[string]any{"enabled": true},
			"x509": map[string]any{"clientCAFile": "/etc/kubernetes/ca.crt"},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"cgroupDriver":             "cgroupfs", "cgroupRoot": p.Cgroup, "failCgroupV1": false, "failSwapOn": false,
		"clusterDomain": "cluster.local", "clusterDNS": []string{p.DNS},
		// The machine's disk is not the node's.
		"evictionHard":                map[string]string{"nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
		"imageGCHighThresholdPercent": 100, "localStorageCapacityIsolation": false,
	})
	if err != nil {
		return err
	}
	proxy, err := json.Marshal(map[string]any{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode": p.Proxy, "clusterCIDR": p.Pods, "hostnameOverride": p.Name,
		"clientConnection": map[string]any{"kubeconfig": "/etc/kubernetes/proxy.kubeconfig"},
		// The machine's settings of connection tracking stay.
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	})
	if err != nil {
		return err
	}
	// A node that boots again has the files of before.
	if _, err := os.Stat(filepath.Join(p.Dir, "made")); err != nil {
		for _, d := range []string{"/etc/cni", "/opt/cni", "/var/lib/weft"} {
			if err := os.RemoveAll(d); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(p.Dir, "made"), nil, 0o600); err != nil {
			return err
		}
	}
	for _, d := range []string{"/etc/cni/net.d", "/opt/cni/bin", "/etc/containerd", "/etc/kubernetes"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	contents := map[string][]byte{
		"/etc/hostname": []byte(p.Name + "\n"), "/etc/hosts": []byte(hosts.String()),
		"/etc/resolv.conf":             []byte("nameserver 192.0.2.1\n"), // nobody: what is not the cluster's has no answer
		"/etc/containerd/config.toml":  []byte(containerdConfig),
		"/etc/kubernetes/kubelet.json": kubelet, "/etc/kubernetes/proxy.json": proxy,
	}
	for to, from := range map[string]string{
		"/etc/kubernetes/ca.crt":             filepath.Join(p.PKI, "ca.crt"),
		"/etc/kubernetes/kubelet.kubeconfig": filepath.Join(p.PKI, p.Name+".kubeconfig"),
		"/etc/kubernetes/proxy.kubeconfig":   filepath.Join(p.PKI, "proxy.kubeconfig"),
		"/opt/cni/bin/loopback":              filepath.Join(p.Bin, "loopback"),
	} {
		if contents[to], err = os.ReadFile(from); err != nil {
			return err
		}
	}
	for to, content := range contents {
		if err := os.RemoveAll(to); err != nil { // a link would lead to the machine's
			return err
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(to, "/opt/cni/bin/") {
			mode = 0o755
		}
		if err := os.WriteFile(to, content, mode); err != nil {
			return err
		}
	}
	return nil
}
