// SPDX-License-Identifier: Apache-2.0

package deps

import (
	"go/ast"
	"slices"
	"strings"
)

// engines returns the directories whose packages never import each other.
func engines() []string { return []string{"cni", "ipam", "mesh", "policy", "router"} }

// pureAllows returns, for each pure package, what it may import besides the standard library: pure packages of the module, by their
// directories, and libraries.
func pureAllows() map[string][]string {
	return map[string][]string{
		"ipam/ring":       {},
		"policy":          {},
		"policy/compile":  {"policy"},
		"router/envelope": {"golang.org/x/crypto"},
		"router/fastpath": {},
		"router/packet":   {},
		"router/pathmtu":  {},
		"router/reach":    {},
		"router/relay":    {},
		"router/route":    {"github.com/gaissmai/bart"},
		"router/session": {
			"github.com/flynn/noise",
			"golang.org/x/crypto",
			"golang.zx2c4.com/wireguard/ratelimiter",
			"golang.zx2c4.com/wireguard/replay",
			"golang.zx2c4.com/wireguard/tai64n",
			"router/session/aesgcm",
		},
		"router/session/aesgcm": {"golang.org/x/sys/cpu"},
	}
}

// impure returns the parts of the standard library that a pure package does without, and why.
func impure() map[string]string {
	return map[string]string{
		"crypto/rand":   "randomness is an argument (io.Reader)",
		"log":           "pure packages log nothing",
		"math/rand":     "randomness is an argument (io.Reader)",
		"net":           "pure packages do no I/O; addresses are net/netip",
		"os":            "pure packages do no I/O",
		"os/exec":       "pure packages do no I/O",
		"plugin":        "pure packages do no I/O",
		"runtime/debug": "pure packages have nothing to do with the process",
		"syscall":       "pure packages do no I/O",
	}
}

// owned returns the libraries that only the named packages know.
func owned() map[string][]string {
	return map[string][]string{
		"github.com/containernetworking/cni": {"cni", "cmd/weft-cni", "integration"},
		"github.com/hashicorp/memberlist":    {"mesh"},
		"github.com/quic-go/quic-go":         {"mesh/udpstream"},
		"github.com/google/nftables":         {"internal/hostnet", "integration/lab", "router/fastpath/bypass"},
		"github.com/songgao/water":           {"router/tun/portable"},
		"go.yaml.in/yaml":                    {"policy/manifest"},
		"k8s.io":                             {"internal/kube"},
	}
}

// oracles returns the packages by which integration tests may judge what the built binaries do, which are pure, and the API server that they may
// show them.
func oracles() []string { return []string{"policy", "policy/policytest", "internal/kube/kubetest"} }

func pure(pkg string) bool {
	_, ok := pureAllows()[pkg]
	return ok
}

// support reports whether pkg exists for tests: its name ends like httptest's does. Only tests import it, and it may import
// what it helps to test.
func support(pkg string) bool { return strings.HasSuffix(pkg, "test") }

// under reports whether the package p is dir or lies below it.
func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func underAny(p string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return under(p, dir) })
}

// engineOf returns the engine that pkg belongs to, "" if none.
func engineOf(pkg string) string {
	for _, e := range engines() {
		if under(pkg, e) {
			return e
		}
	}
	return ""
}

func (c *checker) checkImports(f *file) {
	for _, i := range f.imports() {
		if i.own {
			c.checkOwnImport(f, i)
			continue
		}
		for lib, users := range owned() {
			if under(i.path, lib) && !slices.Contains(users, f.pkg) {
				c.report(i.pos, "library", "only %s may import %s", strings.Join(users, " and "), i.path)
			}
		}
		if pure(f.pkg) && !f.test {
			c.checkPureImport(f, i)
		}
	}
}

// checkOwnImport checks an import inside the module. Tests are held to it like everything else.
func (c *checker) checkOwnImport(f *file, i imported) {
	engine := engineOf(f.pkg)
	switch {
	case pure(f.pkg) && !f.test && !slices.Contains(pureAllows()[f.pkg], i.path):
		c.report(i.pos, "pure", "%s is pure and imports nothing of the module that is not on its list, but imports %s", f.pkg, i.path)
	case engine != "" && !under(i.path, engine):
		c.report(i.pos, "engine", "%s belongs to the engine %s and imports %s: engines import their own packages only", f.pkg, engine, i.path)
	case support(i.path) && !f.test && !support(f.pkg):
		c.report(i.pos, "support", "%s imports %s, which is for tests", f.pkg, i.path)
	case engine != "" && i.path != f.pkg && under(f.pkg, i.path) && !pure(i.path) && !f.test && !support(f.pkg):
		c.report(i.pos, "upwards", "%s imports %s, which lies above it", f.pkg, i.path)
	case under(f.pkg, "integration") && !under(i.path, "integration") && !(f.test && slices.Contains(oracles(), i.path)):
		c.report(i.pos, "black-box", "%s imports %s: integration tests know the built binaries only", f.pkg, i.path)
	case !under(f.pkg, "integration") && under(i.path, "integration"):
		c.report(i.pos, "black-box", "%s imports %s, which is for integration tests", f.pkg, i.path)
	case under(i.path, "cmd"):
		c.report(i.pos, "command", "%s imports the command %s", f.pkg, i.path)
	}
}

func (c *checker) checkPureImport(f *file, i imported) {
	for bad, why := range impure() {
		if under(i.path, bad) && i.path != "net/netip" {
			c.report(i.pos, "pure", "%s imports %s: %s", f.pkg, i.path, why)
			return
		}
	}
	first, _, _ := strings.Cut(i.path, "/")
	if strings.Contains(first, ".") && !underAny(i.path, pureAllows()[f.pkg]) {
		c.report(i.pos, "pure", "%s imports %s, which is not on its list", f.pkg, i.path)
	}
}

// checkMeetings finds packages outside the engines in which several engines meet. Pure packages are values, not engines,
// so they do not count.
func (c *checker) checkMeetings() {
	met := map[string]map[string]bool{}
	for _, f := range c.files {
		if f.test || engineOf(f.pkg) != "" || under(f.pkg, "internal/node") {
			continue
		}
		for _, i := range f.imports() {
			engine := engineOf(i.path)
			if !i.own || engine == "" || pure(i.path) {
				continue
			}
			if met[f.pkg] == nil {
				met[f.pkg] = map[string]bool{}
			}
			if !met[f.pkg][engine] {
				met[f.pkg][engine] = true
				if len(met[f.pkg]) > 1 {
					c.report(i.pos, "meeting", "%s imports a second engine, %s: engines meet in internal/node only", f.pkg, engine)
				}
			}
		}
	}
}

// checkInit forbids init functions: what a package needs, its constructor makes.
func (c *checker) checkInit(f *file) {
	for _, d := range f.ast.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			c.report(fn.Pos(), "init", "func init: let a constructor do it")
		}
	}
}
