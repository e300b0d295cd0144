// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// envPlugins names a directory with two plugins that buildinfo tells to be Weft's: "one" and "two".
const envPlugins = "WEFT_TEST_CNI_PLUGINS"

// pluginSource answers whatever it is asked with what it was built with.
const pluginSource = `package main

import "os"

var versions string

func main() { _, _ = os.Stdout.WriteString("{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[" + versions + "]}") }
`

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cniinstall-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		if err = buildPlugins(dir); err == nil {
			err = os.Setenv(envPlugins, dir)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func buildPlugins(dir string) error {
	src := filepath.Join(dir, "cmd", "weft-cni")
	if err := os.MkdirAll(src, 0o700); err != nil {
		return err
	}
	for path, text := range map[string]string{
		filepath.Join(dir, "go.mod"):  "module github.com/weftnet/weft\n",
		filepath.Join(src, "main.go"): pluginSource,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	for name, versions := range map[string]string{
		"one": `"1.1.0","0.3.1","0.4.0","1.0.0"`,
		"two": `"0.3.1","0.4.0","1.0.0","1.1.0","9.0.0"`,
	} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X 'main.versions="+versions+"'", "-o", filepath.Join(dir, name), "./cmd/weft-cni")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building a plugin: %w\n%s", err, out)
		}
	}
	return nil
}
