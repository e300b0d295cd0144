// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// daemonSet renders the chart with values and returns its DaemonSet.
func daemonSet(t *testing.T, values string) *appsv1.DaemonSet {
	t.Helper()
	text, err := render(t, values)
	if err != nil {
		t.Fatalf("%s: %v", values, err)
	}
	return find[*appsv1.DaemonSet](t, objects(t, text), "weft")
}

func TestValuesBecomeFlags(t *testing.T) {
	for _, c := range []struct{ values, launch, install string }{
		{"", "kube launch", "kube install"},
		{"range: 10.64.0.0/10,fd00::/96", "kube launch --range=10.64.0.0/10,fd00::/96", "kube install"},
		{"reserve: [10.32.0.0/24, 10.32.9.0/24]", "kube launch --reserve=10.32.0.0/24,10.32.9.0/24", "kube install"},
		{"mtu: 8900", "kube launch --mtu=8900", "kube install"},
		{"encryption: false", "kube launch --encryption=off", "kube install"},
		{"trustedSubnets: [10.0.0.0/16, 'fd00::/64']", "kube launch --trusted-subnets=10.0.0.0/16,fd00::/64", "kube install"},
		{"masquerade: false", "kube launch --no-masquerade", "kube install"},
		{"port: 7000", "kube launch --port=7000", "kube install"},
		{"logLevel: debug", "kube launch --log-level=debug", "kube install"},
		{"dataDir: /data/weft", "kube launch --data-dir=/data/weft", "kube install"},
		{"cni: {binDir: /usr/lib/cni}", "kube launch --bin-dir=/usr/lib/cni", "kube install --bin-dir=/usr/lib/cni"},
		{"cni: {confDir: /var/lib/cni/conf}", "kube launch --conf-dir=/var/lib/cni/conf", "kube install"},
		{"{mtu: 1400, extraArgs: [--quarantine=2m, --no-gro]}", "kube launch --mtu=1400 --quarantine=2m --no-gro", "kube install"},
	} {
		spec := daemonSet(t, c.values).Spec.Template.Spec
		if got := strings.Join(spec.Containers[0].Args, " "); got != c.launch {
			t.Errorf("%s: the daemon's arguments are %q, want %q", c.values, got, c.launch)
		}
		if got := strings.Join(spec.InitContainers[0].Args, " "); got != c.install {
			t.Errorf("%s: the init container's arguments are %q, want %q", c.values, got, c.install)
		}
	}
}

func TestValuesBecomeFields(t *testing.T) {
	for _, c := range []struct {
		values string
		want   string
		get    func(*appsv1.DaemonSet) any
	}{
		{"", "ghcr.io/weftnet/weft:dev", func(d *appsv1.DaemonSet) any { return d.Spec.Template.Spec.Containers[0].Image }},
		{"image: {tag: v1}", "ghcr.io/weftnet/weft:v1", func(d *appsv1.DaemonSet) any { return d.Spec.Template.Spec.InitContainers[0].Image }},
		{"image: {repository: r.example/w, pullPolicy: Never}", "r.example/w:dev Never", func(d *appsv1.DaemonSet) any {
			return d.Spec.Template.Spec.Containers[0].Image + " " + string(d.Spec.Template.Spec.Containers[0].ImagePullPolicy)
		}},
		{"image: {pullSecrets: [{name: s}]}", "[{s}]", func(d *appsv1.DaemonSet) any { return d.Spec.Template.Spec.ImagePullSecrets }},
		{"resources: {limits: {memory: 200Mi}, requests: {cpu: 5m}}", "200Mi 5m", func(d *appsv1.DaemonSet) any {
			r := d.Spec.Template.Spec.Containers[0].Resources
			return r.Limits.Memory().String() + " " + r.Requests.Cpu().String()
		}},
		{"", "[{ Exists   <nil>}]", func(d *appsv1.DaemonSet) any { return d.Spec.Template.Spec.Tolerations }},
		{"tolerations: [{key: k, operator: Exists}]", "[{k Exists   <nil>}]", func(d *appsv1.DaemonSet) any { return d.Spec.Template.Spec.Tolerations }},
		{"nodeSelector: {pool: a}", "map[kubernetes.io/os:linux pool:a]", func(d *appsv1.DaemonSet) any { return d.Spec.Template.Spec.NodeSelector }},
		{"priorityClassName: high", "high", func(d *appsv1.DaemonSet) any { return d.Spec.Template.Spec.PriorityClassName }},
		{"maxSurge: 25%", "25%", func(d *appsv1.DaemonSet) any { return d.Spec.UpdateStrategy.RollingUpdate.MaxSurge }},
		{"podLabels: {a: b}", "map[a:b app.kubernetes.io/name:weft]", func(d *appsv1.DaemonSet) any { return d.Spec.Template.Labels }},
		{"podAnnotations: {a: b}", "map[a:b]", func(d *appsv1.DaemonSet) any { return d.Spec.Template.Annotations }},
		{"apiServer: {host: api.example, port: 6443}", "api.example:6443", func(d *appsv1.DaemonSet) any {
			return environment(d, "KUBERNETES_SERVICE_HOST") + ":" + environment(d, "KUBERNETES_SERVICE_PORT")
		}},
		{"cni: {binDir: /b, confDir: /c}", "/b=/b /c=/c", func(d *appsv1.DaemonSet) any {
			return mount(d, "cni-bin") + " " + mount(d, "cni-conf")
		}},
		{"dataDir: /d", "/d=/d", func(d *appsv1.DaemonSet) any { return mount(d, "data") }},
	} {
		if got := fmt.Sprint(c.get(daemonSet(t, c.values))); got != c.want {
			t.Errorf("%s: %s, want %s", c.values, got, c.want)
		}
	}
}

// environment returns what the daemon finds in a variable.
func environment(d *appsv1.DaemonSet, name string) string {
	for _, e := range d.Spec.Template.Spec.Containers[0].Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

// mount returns which directory of the node the volume is, and where the daemon finds it: "node=container".
func mount(d *appsv1.DaemonSet, volume string) string {
	spec := d.Spec.Template.Spec
	for _, v := range spec.Volumes {
		for _, m := range spec.Containers[0].VolumeMounts {
			if v.Name == volume && m.Name == volume {
				return v.HostPath.Path + "=" + m.MountPath
			}
		}
	}
	return ""
}

func TestValuesRefused(t *testing.T) {
	for values, want := range map[string]string{
		"encrypt: false":         "encrypt",
		"encryption: off-ish":    "encryption",
		"mtu: big":               "mtu",
		"port: 65535":            "port",
		"logLevel: loud":         "logLevel",
		"cni: {binDir: cni/bin}": "binDir",
		"name: other":            "name",
		"image: {digest: x}":     "digest",
	} {
		if _, err := render(t, values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error that names %s", values, err, want)
		}
	}
}

// TestConfinement pins what the pods may do on their nodes. Whoever adds to it has to say so here.
func TestConfinement(t *testing.T) {
	spec := daemonSet(t, "").Spec.Template.Spec
	if spec.HostPID || spec.HostIPC || !spec.HostNetwork {
		t.Errorf("the pods have the node's pid %v, ipc %v, network %v; want the network alone", spec.HostPID, spec.HostIPC, spec.HostNetwork)
	}
	if spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("seccomp is %v", spec.SecurityContext.SeccompProfile.Type)
	}
	want := map[string][]corev1.Capability{"install": nil, "weft": {"NET_ADMIN", "SYS_ADMIN"}}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		s := c.SecurityContext
		if s.Privileged != nil || !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || s.ProcMount != nil {
			t.Errorf("%s: %+v", c.Name, s)
		}
		if !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || !slices.Equal(s.Capabilities.Add, want[c.Name]) {
			t.Errorf("%s drops %v and adds %v, want ALL and %v", c.Name, s.Capabilities.Drop, s.Capabilities.Add, want[c.Name])
		}
		for _, p := range c.Ports {
			t.Errorf("%s declares port %d: two pods of a node could not run at a time", c.Name, p.ContainerPort)
		}
	}
	hosts := []string{}
	for _, v := range spec.Volumes {
		if v.HostPath != nil {
			hosts = append(hosts, v.HostPath.Path)
		}
	}
	if paths := []string{"/var/lib/weft", "/run/weft", "/run/netns", "/opt/cni/bin", "/etc/cni/net.d", "/dev/net/tun"}; !slices.Equal(hosts, paths) {
		t.Errorf("of the node the pods see %q, want %q", hosts, paths)
	}
}

// TestRBAC pins what the daemons may do in the cluster.
func TestRBAC(t *testing.T) {
	text, err := render(t, "")
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, text)
	if _, ok := all[0].(*appsv1.DaemonSet); !ok {
		t.Errorf("the first object is %T: the DaemonSet has to be deleted before what lets its pods see that", all[0])
	}
	got := []string{}
	note := func(where string, rules []rbacv1.PolicyRule) {
		for _, r := range rules {
			got = append(got, strings.TrimSpace(fmt.Sprintf("%s: %s %s %s", where, strings.Join(r.Verbs, ","),
				strings.Join(r.Resources, ","), strings.Join(r.ResourceNames, ","))))
		}
	}
	bound := map[string]bool{}
	for _, o := range all {
		switch o := o.(type) {
		case *rbacv1.ClusterRole:
			note("cluster", o.Rules)
		case *rbacv1.Role:
			note(o.Namespace, o.Rules)
		case *rbacv1.ClusterRoleBinding:
			bound["cluster/"+o.RoleRef.Name] = subject(o.Subjects)
		case *rbacv1.RoleBinding:
			bound[o.Namespace+"/"+o.RoleRef.Name] = subject(o.Subjects)
		}
	}
	want := []string{
		"cluster: get,list,watch nodes",
		"cluster: patch nodes/status",
		"cluster: create,patch events",
		"cluster: list,watch pods,namespaces",
		"cluster: list,watch networkpolicies",
		"cluster: list,watch clusternetworkpolicies",
		"cluster: list servicecidrs",
		"kube-system: create secrets",
		"kube-system: get,list,watch,patch secrets weft",
		"kube-system: get,list,watch daemonsets weft",
		"kube-system: get configmaps kubeadm-config,kube-proxy",
		"default: get services kubernetes",
	}
	if !slices.Equal(got, want) {
		t.Errorf("allowed is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, role := range []string{"cluster/weft", "kube-system/weft", "kube-system/weft-range", "default/weft-range"} {
		if !bound[role] {
			t.Errorf("%s is not bound to the daemons' account", role)
		}
	}
}

// subject tells whether the daemons' account is the only one.
func subject(s []rbacv1.Subject) bool {
	return len(s) == 1 && s[0].Kind == "ServiceAccount" && s[0].Name == "weft" && s[0].Namespace == "kube-system"
}

// TestUpdateKeepsTraffic: a node's new pod is there before the old one goes, and both can be.
func TestUpdateKeepsTraffic(t *testing.T) {
	d := daemonSet(t, "")
	u := d.Spec.UpdateStrategy
	if u.Type != appsv1.RollingUpdateDaemonSetStrategyType || u.RollingUpdate.MaxUnavailable.String() != "0" || u.RollingUpdate.MaxSurge.String() != "1" {
		t.Errorf("the update strategy is %+v", u)
	}
	c := d.Spec.Template.Spec.Containers[0]
	if c.ReadinessProbe == nil || c.LivenessProbe == nil || c.Lifecycle != nil {
		t.Errorf("probes %v %v, hooks %v", c.ReadinessProbe, c.LivenessProbe, c.Lifecycle)
	}
}
