// SPDX-License-Identifier: Apache-2.0

// Command image packs Weft's container image without a container engine.
//
//	image licenses -o DIR [-C MODULE] [-modfile FILE] PACKAGE...
//	image pack -o FILE -name NAME -version VERSION -licenses DIR ARCH=DIR...
//
// The first adds the licence texts of everything that is linked into PACKAGEs to DIR; the second writes an image for each ARCH,
// from the binaries in its DIR, and one index over all of them, as one tarball that `ctr images import`, `podman load` and
// `docker load` take. The same input makes the same bytes.
//
// It is a module of its own, so that what it needs does not count among Weft's libraries: google/go-containerregistry, which
// makes manifests and layers and checks them.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string, stderr io.Writer) error {
	if len(args) == 0 {
		return errors.New("no command; give licenses or pack")
	}
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	fs.SetOutput(stderr)
	out := fs.String("o", "", "what to write: a directory for licenses, a file for pack")
	switch args[0] {
	case "licenses":
		module := fs.String("C", ".", "directory of the module that the packages are in")
		modfile := fs.String("modfile", "", "go.mod of the packages, relative to the module, unless it is the module's own")
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		if *out == "" || fs.NArg() == 0 {
			return errors.New("licenses: give -o DIR and at least one package")
		}
		return licenses(*out, *module, *modfile, fs.Args())
	case "pack":
		var p pack
		fs.StringVar(&p.name, "name", "", "name of the image, such as registry.example/weft:v1")
		fs.StringVar(&p.version, "version", "", "version, for the label")
		fs.StringVar(&p.licenses, "licenses", "", "directory of licence texts, /licenses in the image")
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		if *out == "" || p.name == "" || p.licenses == "" || fs.NArg() == 0 {
			return errors.New("pack: give -o FILE, -name, -licenses and at least one ARCH=DIR")
		}
		for _, a := range fs.Args() {
			arch, dir, ok := strings.Cut(a, "=")
			if !ok || arch == "" || dir == "" {
				return fmt.Errorf("pack: %q is no ARCH=DIR", a)
			}
			p.platforms = append(p.platforms, platform{arch: arch, binaries: dir})
		}
		return p.write(*out)
	default:
		return fmt.Errorf("unknown command %q; give licenses or pack", args[0])
	}
}
