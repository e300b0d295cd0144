// SPDX-License-Identifier: Apache-2.0

package deps

import (
	"errors"
	"go/ast"
	"go/token"
	"go/types"
	"strings"
)

// clock returns the functions of package time that read the clock or start a timer.
func clock() []string {
	return []string{"Now", "Since", "Until", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer", "Sleep"}
}

// checkPure finds what a pure package must not do: read the clock, start goroutines, print.
func (c *checker) checkPure(f *file) {
	names := map[string]string{} // local name of an import -> path
	for _, spec := range f.ast.Imports {
		p := strings.Trim(spec.Path.Value, `"`)
		name := p[strings.LastIndex(p, "/")+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = p
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			c.report(n.Pos(), "pure", "%s starts a goroutine", f.pkg)
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "print" || id.Name == "println") {
				c.report(n.Pos(), "pure", "%s prints", f.pkg)
			}
		case *ast.SelectorExpr:
			id, ok := n.X.(*ast.Ident)
			if !ok {
				return true
			}
			switch names[id.Name] {
			case "time":
				for _, name := range clock() {
					if n.Sel.Name == name {
						c.report(n.Pos(), "pure", "%s uses time.%s: time is an argument", f.pkg, name)
					}
				}
			case "fmt":
				if strings.HasPrefix(n.Sel.Name, "Print") {
					c.report(n.Pos(), "pure", "%s uses fmt.%s", f.pkg, n.Sel.Name)
				}
			}
		}
		return true
	})
}

// noImporter makes the type checker do without the imported packages: names of this package resolve all the same.
type noImporter struct{}

func (noImporter) Import(string) (*types.Package, error) { return nil, errors.New("not loaded") }

// checkGlobals finds package-level variables that are more than a constant table or an error sentinel: those that
// something writes to or takes the address of, and those whose type only makes sense when it changes.
func (c *checker) checkGlobals() {
	pkgs := map[string][]*file{}
	for _, f := range c.files {
		if !f.test {
			pkgs[f.pkg] = append(pkgs[f.pkg], f)
		}
	}
	for _, files := range pkgs {
		c.checkPackageGlobals(files)
	}
}

func (c *checker) checkPackageGlobals(files []*file) {
	parsed := make([]*ast.File, 0, len(files))
	for _, f := range files {
		parsed = append(parsed, f.ast)
	}
	info := &types.Info{Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{
		Importer: noImporter{}, FakeImportC: true, DisableUnusedImportCheck: true,
		Error: func(error) {}, // types of other packages are missing: names are enough
	}
	pkg, _ := conf.Check(files[0].pkg, c.fset, parsed, info)
	global := func(e ast.Expr) (string, bool) {
		id := root(e)
		if id == nil {
			return "", false
		}
		v, ok := info.Uses[id].(*types.Var)
		return id.Name, ok && pkg != nil && v.Parent() == pkg.Scope()
	}
	for _, f := range parsed {
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
				c.checkVarTypes(g)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, lhs := range n.Lhs {
					if name, ok := global(lhs); ok {
						c.report(n.Pos(), "global", "writes to the package-level variable %s", name)
					}
				}
			case *ast.IncDecStmt:
				if name, ok := global(n.X); ok {
					c.report(n.Pos(), "global", "writes to the package-level variable %s", name)
				}
			case *ast.UnaryExpr:
				if name, ok := global(n.X); ok && n.Op == token.AND {
					c.report(n.Pos(), "global", "takes the address of the package-level variable %s", name)
				}
			}
			return true
		})
	}
}

// checkVarTypes finds declarations of state: channels, locks, pools, atomics.
func (c *checker) checkVarTypes(g *ast.GenDecl) {
	for _, spec := range g.Specs {
		v := spec.(*ast.ValueSpec)
		t := v.Type
		for _, value := range v.Values {
			if t == nil {
				t = madeType(value)
			}
		}
		switch t := t.(type) {
		case *ast.ChanType:
			c.report(v.Pos(), "global", "package-level channel %s", v.Names[0].Name)
		case *ast.SelectorExpr:
			if id, ok := t.X.(*ast.Ident); ok && (id.Name == "sync" || id.Name == "atomic") {
				c.report(v.Pos(), "global", "package-level %s.%s %s", id.Name, t.Sel.Name, v.Names[0].Name)
			}
		}
	}
}

// madeType returns the type of T{}, &T{} or make(T), nil for anything else.
func madeType(e ast.Expr) ast.Expr {
	switch e := e.(type) {
	case *ast.UnaryExpr:
		return madeType(e.X)
	case *ast.CompositeLit:
		return e.Type
	case *ast.CallExpr:
		if id, ok := e.Fun.(*ast.Ident); ok && (id.Name == "make" || id.Name == "new") && len(e.Args) > 0 {
			return e.Args[0]
		}
	}
	return nil
}

// root returns the identifier at the left end of an expression like a.b[c].d, nil if there is none.
func root(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		default:
			return nil
		}
	}
}
