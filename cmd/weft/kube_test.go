// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// weftWith runs a command line with an environment of its own.
func weftWith(t *testing.T, environment map[string]string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = execute(context.Background(), args, env{out: &o, err: &e, getenv: func(k string) string { return environment[k] }})
	return code, o.String(), e.String()
}

func TestKubeTellsWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	plugin := filepath.Join(dir, "weft-cni")
	config := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(config, []byte("nonsense: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		environment map[string]string
		args        []string
		code        int
		want        string // of the first line
	}{
		"no name": {
			nil,
			[]string{"kube", "launch"},
			exitUsage,
			"weft: the name of this host's Node object is missing: give it by --name, or by NODE_NAME, as the downward API does (spec.nodeName)",
		},
		"no cluster": {
			map[string]string{"NODE_NAME": "n1"},
			[]string{"kube", "launch"},
			exitFailed,
			"weft: this is no pod of a Kubernetes cluster (KUBERNETES_SERVICE_HOST is not set); run it in one, or give --kubeconfig",
		},
		"bad kubeconfig": {
			map[string]string{"NODE_NAME": "n1"},
			[]string{"kube", "launch", "--kubeconfig", config},
			exitFailed,
			"weft: finding the Kubernetes API server: ",
		},
		"flags of launch are checked": {
			map[string]string{"NODE_NAME": "n1"},
			[]string{"kube", "launch", "--port", "0"},
			exitUsage,
			"weft: --port 0 is no port; give one between 1 and 65535",
		},
		"no flag of launch that the cluster has the say in": {
			map[string]string{"NODE_NAME": "n1"}, []string{"kube", "launch", "--peer", "192.0.2.1"}, exitUsage, "weft: unknown flag: --peer",
		},
		"probe without a pod": {
			nil,
			[]string{"kube", "probe", "ready"},
			exitUsage,
			"weft: the name of the pod is missing: give it by POD_NAME, as the downward API does (metadata.name)",
		},
		"probe of nobody": {
			map[string]string{"POD_NAME": "weft-of-nobody"},
			[]string{"kube", "probe", "live"},
			exitFailed,
			"weft: the daemon of pod weft-of-nobody does not answer: ",
		},
		"probe of what": {
			map[string]string{"POD_NAME": "weft-of-nobody"}, []string{"kube", "probe", "well"}, exitUsage, `weft: invalid argument "well" for "weft kube probe"`,
		},
		"install without a plugin": {
			nil, []string{"kube", "install", "--bin-dir", dir, "--plugin", plugin}, exitFailed, "weft: the CNI plugin " + plugin + " is not there; ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			code, _, errs := weftWith(t, c.environment, c.args...)
			line, _, _ := strings.Cut(errs, "\n")
			if code != c.code || !strings.HasPrefix(line, c.want) || !strings.HasSuffix(c.want, " ") && !strings.HasSuffix(c.want, `"`) && line != c.want {
				t.Errorf("exit code %d, %q", code, errs)
			}
		})
	}
}
