// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// built returns what the environment names, or what is built of a package, or of the tools of a module file.
func built(t *testing.T, env, pkg string, flags ...string) string {
	t.Helper()
	if path := os.Getenv(env); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), filepath.Base(pkg))
	if len(flags) > 0 { // several programs: a directory
		path += string(filepath.Separator)
	}
	build := exec.CommandContext(t.Context(), "go", append(slices.Concat([]string{"build", "-trimpath"}, flags), "-o", path, pkg)...)
	build.Dir = filepath.Join("..", "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, out)
	}
	return path
}

// The comparison of CNI plugins runs to its end, with few pods, and tells figures of everybody. It measures nothing here.
func TestCNIComparison(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out.md")
	var out, errs bytes.Buffer
	code := cniMain([]string{
		"-weft", weftBinary(t), "-weft-cni", built(t, "WEFT_CNI_BIN", "./cmd/weft-cni"),
		"-reference", built(t, "WEFT_CNI_REFERENCE", "tool", "-modfile=tools/cni/go.mod"),
		"-pods", "12", "-at-once", "4", "-o", file,
	}, &out, &errs)
	if code != 0 {
		t.Fatalf("exit code %d: %s\n%s", code, &errs, &out)
	}
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\n| weft | ", "\n| ptp + host-local | ", "\n| weft / ptp + host-local | ", "\n| weft, last / first | ", "\n| weft, full / empty | ", "\n| the kernel alone, full / empty | ", "## 12 pods, 4 at a time\n"} {
		if !strings.Contains(string(doc), want) {
			t.Errorf("the document has no %q:\n%s", want, doc)
		}
	}
	if strings.Contains(string(doc), " 0.0 |") || strings.Contains(string(doc), " 0.00 |") {
		t.Errorf("there is a figure that was not measured:\n%s", doc)
	}
}

func TestCNISheets(t *testing.T) {
	ms := func(list ...int) (out []time.Duration) {
		for _, v := range list {
			out = append(out, time.Duration(v)*time.Millisecond)
		}
		return out
	}
	weft := &cniContender{name: "weft", one: cniTimes{add: ms(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 9, 2, 2, 2, 2, 2, 2, 2, 2, 2), del: ms(4)}, many: cniTimes{add: ms(3), del: ms(3)}}
	other := &cniContender{name: "other", one: cniTimes{add: ms(4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4), del: ms(8)}, many: cniTimes{add: ms(12), del: ms(1)}}
	r := cniReport{
		options: cniOptions{pods: 20, atOnce: 5, rounds: 1}, contenders: []*cniContender{weft, other},
		full: cniTimes{add: ms(3), del: ms(6)}, alone: cniTimes{add: ms(2), del: ms(4)},
		kernel: [2]cniTimes{{add: ms(2, 9, 3, 2, 1), del: ms(9)}, {add: ms(1), del: ms(6)}},
	}
	var got []string
	for _, s := range r.sheets() {
		got = append(got, s.title+"\n"+s.markdown())
	}
	head := "|  | ADD p50, ms | ADD p99, ms | DEL p50, ms | DEL p99, ms |\n|---|---:|---:|---:|---:|\n"
	want := []string{
		"20 pods, one after the other\n" + head + "| weft | 1.0 | 9.0 | 4.0 | 4.0 |\n| other | 4.0 | 4.0 | 8.0 | 8.0 |\n| weft / other | 0.25 | 2.25 | 0.50 | 0.50 |\n",
		"20 pods, 5 at a time\n" + head + "| weft | 3.0 | 3.0 | 3.0 | 3.0 |\n| other | 12.0 | 12.0 | 1.0 | 1.0 |\n| weft / other | 0.25 | 0.25 | 3.00 | 3.00 |\n",
		"The pods that are on a node already\n|  | ADD, ms | DEL, ms |\n|---|---:|---:|\n" +
			"| weft, first 10 | 1.0 (1.0-1.0) | - |\n| weft, last 10 | 2.0 (2.0-2.0) | - |\n| weft, last / first | 2.00 | - |\n" +
			"| other, first 10 | 4.0 (4.0-4.0) | - |\n| other, last 10 | 4.0 (4.0-4.0) | - |\n| other, last / first | 1.00 | - |\n" +
			"| weft, in turns: empty node | 2.0 (2.0-2.0) | 4.0 (4.0-4.0) |\n| weft, in turns: node with 20 | 3.0 (3.0-3.0) | 6.0 (6.0-6.0) |\n| weft, full / empty | 1.50 | 1.50 |\n" +
			"| the kernel alone, in turns: empty node | 1.0 (1.0-1.0) | 6.0 (6.0-6.0) |\n| the kernel alone, in turns: node with 20 | 2.0 (2.0-3.0) | 9.0 (9.0-9.0) |\n" +
			"| the kernel alone, full / empty | 2.00 | 1.50 |\n",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestCNIResult(t *testing.T) {
	p := &benchPod{id: "x"}
	if err := p.take([]byte(`{"ips":[{"address":"10.0.0.1/32"},{"address":"fd00::1/128"}]}`)); err != nil || len(p.addrs) != 2 || !json.Valid(p.result) {
		t.Errorf("%v, %v", p.addrs, err)
	}
	for _, bad := range []string{"", "{}", `{"ips":[{"address":"10.0.0.1/32"}]}`, `{"ips":[{"address":"fd00::1/128"},{"address":"fd00::2/128"}]}`, `{"ips":[{"address":"x"}]}`} {
		if err := p.take([]byte(bad)); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestCNIUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"-no-such-flag"}, 2, "flag provided but not defined"},
		{[]string{"-pods", "9"}, 2, "-pods must be 10 or more, -at-once and -rounds positive"},
		{[]string{"-weft", "/nonexistent/weft"}, 1, "stat /nonexistent/weft: no such file or directory; build it with: make benchcni"},
	} {
		var out, errs bytes.Buffer
		if code := cniMain(tt.args, &out, &errs); code != tt.code || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("bench cni %v: code %d, %s", tt.args, code, &errs)
		}
	}
}
