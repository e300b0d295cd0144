// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

const (
	chartDir = "helm/weft"
	manifest = "kubernetes/weft.yaml"
	head     = `# SPDX-License-Identifier: Apache-2.0
#
# Weft on every node of a cluster: kubectl apply -f weft.yaml, kubectl delete -f weft.yaml. docs/kubernetes.md is the manual.
# This is what the chart in deploy/helm/weft renders with its default values; make manifests writes it.
`
)

var updateFlag = flag.Bool("update", false, "write "+manifest)

// render returns what the chart makes of values (YAML), in the order of its files, as `helm template --namespace kube-system` does.
func render(t *testing.T, values string) (string, error) {
	t.Helper()
	c, err := loader.LoadDir(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	given := map[string]any{}
	if err := yaml.Unmarshal([]byte(values), &given); err != nil {
		t.Fatal(err)
	}
	caps := chartutil.DefaultCapabilities.Copy()
	caps.KubeVersion = chartutil.KubeVersion{Version: "v1.35.0", Major: "1", Minor: "35"}
	vals, err := chartutil.ToRenderValues(c, given, chartutil.ReleaseOptions{Name: "weft", Namespace: "kube-system", IsInstall: true}, caps)
	if err != nil {
		return "", err
	}
	files, err := engine.Engine{Strict: true}.Render(c, vals)
	if err != nil {
		return "", err
	}
	docs := []string{}
	for _, f := range []string{"daemonset.yaml", "rbac.yaml"} {
		text, ok := files["weft/templates/"+f]
		if !ok {
			t.Fatalf("the chart has no %s", f)
		}
		delete(files, "weft/templates/"+f)
		docs = append(docs, strings.TrimSpace(text)+"\n")
	}
	for f := range files {
		if strings.HasSuffix(f, ".yaml") {
			t.Errorf("%s is not part of what is compared", f)
		}
	}
	return strings.Join(docs, "---\n"), nil
}

// objects decodes the documents strictly, by the types that Kubernetes has for them: unknown, doubled and mistyped fields are errors.
func objects(t *testing.T, text string) []runtime.Object {
	t.Helper()
	dec := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{Yaml: true, Strict: true})
	out := []runtime.Object{}
	for doc := range strings.SplitSeq(text, "\n---\n") {
		o, _, err := dec.Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		out = append(out, o)
	}
	return out
}

// find returns the one object of type T with the name.
func find[T interface {
	runtime.Object
	GetName() string
}](t *testing.T, all []runtime.Object, name string) T {
	t.Helper()
	var found []T
	for _, o := range all {
		if x, ok := o.(T); ok && x.GetName() == name {
			found = append(found, x)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects %T named %s, want one", len(found), *new(T), name)
	}
	return found[0]
}

func TestManifestIsTheChart(t *testing.T) {
	want, err := render(t, "")
	if err != nil {
		t.Fatal(err)
	}
	want = head + want
	if *updateFlag {
		if err := os.WriteFile(manifest, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, []byte(want)) {
		t.Errorf("%s is not what %s renders: run make manifests", manifest, chartDir)
	}
	objects(t, string(got))
}

func TestLint(t *testing.T) {
	result := lint.AllWithKubeVersion(chartDir, map[string]any{}, "kube-system", &chartutil.KubeVersion{Version: "v1.35.0", Major: "1", Minor: "35"})
	for _, m := range result.Messages {
		if m.Severity > support.InfoSev { // that a chart has no icon is only information
			t.Error(m)
		}
	}
	if _, err := os.Stat(filepath.Join(chartDir, "templates", "NOTES.txt")); err != nil {
		t.Error(err)
	}
}
