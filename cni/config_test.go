// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// TestRefusals pins what the runtime is told of what cannot be: nothing is asked of the daemon then.
func TestRefusals(t *testing.T) {
	long := strings.Repeat("a", 300)
	for name, c := range map[string]struct {
		env   []string
		stdin string // in place of conf
		conf  []any
		code  uint
		want  string // message and details
	}{
		"no command": {
			env: []string{"CNI_COMMAND", ""}, code: 4,
			want: `CNI_COMMAND is not set: nothing says what to do; this is a CNI plugin, which container runtimes run; put a configuration of type "weft" in their configuration directory`,
		},
		"unknown command": {env: []string{"CNI_COMMAND", "UPDATE"}, code: 4, want: `CNI_COMMAND is "UPDATE"; it has to be ADD, DEL, CHECK, GC, STATUS or VERSION`},
		"command's case":  {env: []string{"CNI_COMMAND", "add"}, code: 4, want: `CNI_COMMAND is "add"; it has to be`},
		"no JSON": {
			stdin: "{", code: 6, want: `the configuration on standard input cannot be decoded: unexpected end of JSON input; it has to be a JSON object`,
		},
		"a list":       {stdin: "[]", code: 6, want: `cannot be decoded`},
		"null":         {stdin: "null", code: 6, want: `the configuration on standard input is null; it has to be a JSON object`},
		"two objects":  {stdin: "{}{}", code: 6, want: `cannot be decoded`},
		"deep":         {stdin: strings.Repeat("[", 100_000), code: 6, want: `cannot be decoded: invalid character '[' exceeded max depth`},
		"huge":         {stdin: `{"name":"` + strings.Repeat("a", maxStdin) + `"}`, code: 6, want: `the configuration on standard input is larger than 1048576 bytes; make it smaller`},
		"no version":   {conf: []any{"cniVersion", nil}, code: 1, want: `cniVersion "0.1.0" is not one that weft has; set it to one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0`},
		"old version":  {conf: []any{"cniVersion", "0.2.0"}, code: 1, want: `cniVersion "0.2.0" is not one`},
		"new version":  {conf: []any{"cniVersion", "1.2.0"}, code: 1, want: `cniVersion "1.2.0" is not one`},
		"odd version":  {conf: []any{"cniVersion", 1.1}, code: 6, want: `cniVersion is "1.1"; it has to be a string, as "1.1.0"`},
		"early CHECK":  {env: []string{"CNI_COMMAND", "CHECK"}, conf: []any{"cniVersion", "0.3.1"}, code: 1, want: `CHECK is not in version 0.3.1 of the specification; set cniVersion to 0.4.0 or later`},
		"early GC":     {env: []string{"CNI_COMMAND", "GC"}, conf: []any{"cniVersion", "1.0.0"}, code: 1, want: `GC is not in version 1.0.0 of the specification; set cniVersion to 1.1.0 or later`},
		"early STATUS": {env: []string{"CNI_COMMAND", "STATUS"}, conf: []any{"cniVersion", "1.0.0"}, code: 1, want: `STATUS is not in version 1.0.0`},

		"no name": {
			conf: []any{"name", nil}, code: 7,
			want: `"name": "" is no name of a network; it has to begin with a letter or digit, and to consist of those, of dots, hyphens and underscores, 200 at most`,
		},
		"name that is a path": {conf: []any{"name", "../a"}, code: 7, want: `"name": "../a" is no name of a network`},
		"long name":           {conf: []any{"name", long}, code: 7, want: `"name": "` + long[:64] + `"... is no name`},
		"name of two lines":   {conf: []any{"name", "a\nb"}, code: 7, want: `"name": "a\nb" is no name`},
		"name that is none":   {conf: []any{"name", 3}, code: 7, want: `"name": 3 is not what it should be; it has to be a string`},
		"no type":             {conf: []any{"type", nil}, code: 7, want: `the configuration has no "type"; it is the plugin's file name, as "weft"`},
		"unknown key":         {conf: []any{"mtuu", 1400}, code: 2, want: `the configuration has "mtuu": 1400, which weft does not act upon; remove it; the keys of weft are "runDir", "mtu", "ifname", "labels" and "namespace"`},
		"large unknown key":   {conf: []any{"x", obj{"y": long}}, code: 2, want: `the configuration has "x": "{\"y\":\"aaa`},
		"other case":          {conf: []any{"MTU", 1400}, code: 2, want: `the configuration has "MTU": 1400`},
		"unknown key in ipam": {
			conf: []any{"type", "ptp", "ipam", obj{"type": "weft", "subnet": "10.0.0.0/8"}}, code: 2,
			want: `the configuration has "subnet" in "ipam": "10.0.0.0/8", which weft does not act upon; remove it; the keys of weft are "runDir", "labels" and "namespace"`,
		},
		"labels that are none": {conf: []any{"labels", []string{"a"}}, code: 7, want: `"labels": ["a"] is not what it should be; it has to be an object of strings`},
		"label of a number":    {conf: []any{"labels", obj{"a": 1}}, code: 7, want: `"labels": {"a":1} is not what it should be; it has to be an object of strings`},
		"namespace and number": {conf: []any{"namespace", 1}, code: 7, want: `"namespace": 1 is not what it should be; it has to be a string`},
		"long namespace":       {conf: []any{"namespace", long}, code: 7, want: `"labels" or "namespace" is too large; a container has 64 labels and a namespace of 63 letters at most`},
		"other ipam":           {conf: []any{"ipam", obj{"type": "host-local"}}, code: 2, want: `the configuration has "ipam": {"type":"host-local"}, which weft does not act upon; weft gives the addresses itself; remove it`},
		"ipam that is none":    {conf: []any{"ipam", "weft"}, code: 7, want: `"ipam": "weft" is not what it should be; it has to be an object as the conventions of CNI have it`},
		"MTU that is none":     {conf: []any{"mtu", "1400"}, code: 7, want: `"mtu": "1400" is not what it should be; it has to be a whole number`},
		"small MTU":            {conf: []any{"mtu", 575}, code: 7, want: `"mtu": 575 is none; it has to be between 576 and 65535 bytes, or 0 for that of the node`},
		"negative MTU":         {conf: []any{"mtu", -1}, code: 7, want: `"mtu": -1 is none`},
		"large MTU":            {conf: []any{"mtu", 65536}, code: 7, want: `"mtu": 65536 is none`},
		"immense MTU":          {conf: []any{"mtu", json.RawMessage("1e30")}, code: 7, want: `"mtu": 1e30 is not what it should be`},
		"masquerading":         {conf: []any{"ipMasq", "no"}, code: 7, want: `"ipMasq": "no" is not what it should be; it has to be true or false`},
		"run directory":        {conf: []any{"runDir", "run"}, code: 7, want: `"runDir": "run" is no run directory; it has to be the --run-dir of the daemon, an absolute path of 97 bytes at most`},
		"long run directory":   {conf: []any{"runDir", "/" + long}, code: 7, want: `is no run directory`},
		"empty run directory":  {conf: []any{"runDir", ""}, code: 7, want: `"runDir": "" is no run directory`},
		"interface in conf":    {conf: []any{"ifname", "a/b"}, code: 7, want: `"ifname": "a/b" is no name of an interface; it has to be of 1 to 15 letters, digits, hyphens, dots and underscores`},
		"dns":                  {conf: []any{"dns", []int{1}}, code: 7, want: `"dns": [1] is not what it should be; it has to be an object`},

		"no container": {
			env: []string{"CNI_CONTAINERID", ""}, code: 4,
			want: `CNI_CONTAINERID "" is no container's ID; it has to begin with a letter or digit, and to consist of those, of dots, hyphens and underscores, 128 at most`,
		},
		"container that is a path": {env: []string{"CNI_CONTAINERID", "../../etc"}, code: 4, want: `CNI_CONTAINERID "../../etc" is no container's ID`},
		"container of dots":        {env: []string{"CNI_CONTAINERID", ".."}, code: 4, want: `CNI_CONTAINERID ".." is no`},
		"long container":           {env: []string{"CNI_CONTAINERID", long}, code: 4, want: `CNI_CONTAINERID "` + long[:64] + `"... is no`},
		"container and control":    {env: []string{"CNI_CONTAINERID", "a\x1b[2J\n"}, code: 4, want: `CNI_CONTAINERID "a\x1b[2J\n" is no`},
		"container and UTF-8":      {env: []string{"CNI_CONTAINERID", "ä\xff"}, code: 4, want: `CNI_CONTAINERID "\u00e4\xff" is no`},
		"long interface": {
			env: []string{"CNI_IFNAME", "abcdefghijklmnop"}, code: 4,
			want: `CNI_IFNAME "abcdefghijklmnop" is no name of an interface; it has to be of 1 to 15 letters, digits, hyphens, dots and underscores`,
		},
		"interface that is numbered": {env: []string{"CNI_IFNAME", "eth%d"}, code: 4, want: `CNI_IFNAME "eth%d" is no`},
		"interface of dots":          {env: []string{"CNI_IFNAME", ".."}, code: 4, want: `CNI_IFNAME ".." is no`},
		"no namespace": {
			env: []string{"CNI_NETNS", ""}, code: 4,
			want: `CNI_NETNS "" is no path of a network namespace; it has to be absolute, as /run/netns/NAME, and of 1024 bytes at most`,
		},
		"namespace that is relative": {env: []string{"CNI_NETNS", "netns/a"}, code: 4, want: `CNI_NETNS "netns/a" is no`},
		"namespace and control":      {env: []string{"CNI_NETNS", "/a\nb"}, code: 4, want: `CNI_NETNS "/a\nb" is no`},
		"namespace and UTF-8":        {env: []string{"CNI_NETNS", "/a\xff"}, code: 4, want: `CNI_NETNS "/a\xff" is no`},
		"unknown argument": {
			env: []string{"CNI_ARGS", "A=b"}, code: 4,
			want: `CNI_ARGS has "A=b", which weft does not know; it has to be KEY=VALUE;KEY=VALUE, with the keys IP, MAC and those of Kubernetes, or IgnoreUnknown=1`,
		},
		"argument without value": {env: []string{"CNI_ARGS", "IgnoreUnknown=1;A"}, code: 4, want: `CNI_ARGS has "A"; it has to be`},
		"no boolean":             {env: []string{"CNI_ARGS", "IgnoreUnknown=maybe"}, code: 4, want: `CNI_ARGS has IgnoreUnknown="maybe"; it has to be`},
		"long arguments":         {env: []string{"CNI_ARGS", "K8S_POD_NAME=" + strings.Repeat("a", maxArgs)}, code: 4, want: `CNI_ARGS is longer than 8192 bytes; it has to be`},
		"long pod":               {env: []string{"CNI_ARGS", "K8S_POD_NAME=" + long}, code: 4, want: `CNI_ARGS names the pod "` + long[:64] + `"...; it has to be`},
		"pod and space":          {env: []string{"CNI_ARGS", "K8S_POD_NAME=a\u00a0b"}, code: 4, want: `CNI_ARGS names the pod "a\u00a0b"; it has to be`},
		"pod and control":        {env: []string{"CNI_ARGS", "K8S_POD_NAMESPACE=a\tb"}, code: 4, want: `CNI_ARGS names the pod "a\tb"; it has to be`},
		"no address":             {env: []string{"CNI_ARGS", "IP=10.0.0.256"}, code: 4, want: `CNI_ARGS asks for the address "10.0.0.256"; it has to be an IPv4 or IPv6 address of the mesh's range`},
		"address of a zone":      {conf: []any{"runtimeConfig", obj{"ips": []string{"fe80::1%eth0"}}}, code: 7, want: `runtimeConfig asks for the address "fe80::1%eth0"; it has to be`},
		"two addresses": {
			conf: []any{"args", obj{"cni": obj{"ips": []string{"10.0.0.1", "fd00::1", "10.0.0.1", "10.0.0.2"}}}}, code: 7,
			want: `args.cni asks for the address "10.0.0.2" and another one of its family; a container has one IPv4 and one IPv6 address of the mesh`,
		},
		"addresses that are none":   {conf: []any{"runtimeConfig", obj{"ips": "10.0.0.1"}}, code: 7, want: `"ips": "10.0.0.1" is not what it should be; it has to be a list of strings`},
		"MAC that is none":          {env: []string{"CNI_ARGS", "MAC=x"}, code: 4, want: `CNI_ARGS asks for the MAC address "x"; it has to be the address of one interface: six bytes, as 02:00:0a:20:00:01`},
		"MAC of a group":            {conf: []any{"runtimeConfig", obj{"mac": "01:00:5e:00:00:01"}}, code: 7, want: `runtimeConfig asks for the MAC address "01:00:5e:00:00:01"`},
		"MAC of nobody":             {conf: []any{"runtimeConfig", obj{"mac": "00:00:00:00:00:00"}}, code: 7, want: `asks for the MAC address "00:00:00:00:00:00"`},
		"MAC of another kind":       {conf: []any{"runtimeConfig", obj{"mac": "02:00:00:00:00:00:00:01"}}, code: 7, want: `asks for the MAC address "02:00:00:00:00:00:00:01"`},
		"args that are none":        {conf: []any{"args", 3}, code: 7, want: `"args": 3 is not what it should be`},
		"runtimeConfig that is not": {conf: []any{"runtimeConfig", []int{}}, code: 7, want: `"runtimeConfig": [] is not what it should be`},
		"capability of another": {
			conf: []any{"runtimeConfig", obj{"portMappings": []int{80}}}, code: 2,
			want: `the configuration has "portMappings" in "runtimeConfig": [80], which weft does not act upon; take it out of the "capabilities" of weft, and chain the plugin that it is for, ` +
				`as portmap for portMappings or bandwidth for bandwidth`,
		},
		"prevResult that is none": {
			conf: []any{"prevResult", "x"}, code: 7,
			want: `"prevResult" cannot be used: it is no object; the runtime has to give what the plugin before, or ADD, has answered, in version 1.1.0`,
		},
		"ips that are none":             {conf: []any{"prevResult", obj{"ips": "none"}}, code: 7, want: `"prevResult" cannot be used: a string where the specification has none: "ips"; the runtime has to give`},
		"interface that is none":        {conf: []any{"prevResult", obj{"interfaces": []int{3}}}, code: 7, want: `a number where the specification has none: "interfaces`},
		"address that is none":          {conf: []any{"prevResult", obj{"ips": []obj{{"address": "10.0.0.1"}}}}, code: 7, want: `"prevResult" cannot be used: invalid CIDR address: 10.0.0.1; `},
		"name that is a number":         {conf: []any{"prevResult", obj{"interfaces": []obj{{"name": 3}}}}, code: 7, want: `a number where the specification has none: "interfaces`},
		"prevResult of another version": {conf: []any{"prevResult", obj{"cniVersion": "0.4.0"}}, code: 7, want: `"prevResult" cannot be used: `},
		"null interface":                {conf: []any{"prevResult", obj{"interfaces": []any{nil}}}, code: 7, want: `"prevResult" cannot be used: an interface is null; `},
		"null address":                  {conf: []any{"prevResult", obj{"ips": []any{nil}}}, code: 7, want: `"prevResult" cannot be used: an element of ips has no address; `},
		"no address in ips":             {conf: []any{"prevResult", obj{"ips": []any{obj{}}}}, code: 7, want: `an element of ips has no address`},
		"null route":                    {conf: []any{"prevResult", obj{"routes": []any{nil}}}, code: 7, want: `"prevResult" cannot be used: a route has no dst; `},
		"CHECK without prevResult": {
			env: []string{"CNI_COMMAND", "CHECK"}, code: 7, want: `CHECK is asked for without prevResult; the runtime has to give it the result of ADD`,
		},
		"CHECK of another": {
			env: []string{"CNI_COMMAND", "CHECK"}, conf: []any{"prevResult", obj{"interfaces": []obj{{"name": "eth0", "sandbox": "/run/netns/b"}}}}, code: 7,
			want: `"prevResult" has no interface "eth0" in "/run/netns/a"; the runtime has to give what ADD has answered for this container`,
		},
		"CHECK of an odd MAC": {
			env: []string{"CNI_COMMAND", "CHECK"}, conf: []any{"prevResult", obj{"interfaces": []obj{{"name": "eth0", "sandbox": "/run/netns/a", "mac": "x", "mtu": 7}}}}, code: 7,
			want: `"prevResult" has MAC address "x" and MTU 7, which are none; the runtime has to give what ADD has answered`,
		},
		"CHECK of many": {
			env: []string{"CNI_COMMAND", "CHECK"}, code: 7, want: `"prevResult" has 0 addresses and 129 routes; 128 of each are the most`,
			conf: []any{"prevResult", obj{"interfaces": []obj{{"name": "eth0", "sandbox": "/run/netns/a"}}, "routes": times(129, obj{"dst": "10.0.0.0/8", "gw": "10.0.0.1"})}},
		},
	} {
		p := newPlugin(t)
		stdin := c.stdin
		if stdin == "" {
			stdin = p.conf(c.conf...)
		}
		e := p.refused(t, env("ADD", c.env...), stdin)
		if e.Code != c.code || !strings.HasPrefix(e.Error(), c.want) && !strings.Contains(e.Error(), strings.TrimSuffix(c.want, ";")) {
			t.Errorf("%s:\ngot  %d %s\nwant %d %s", name, e.Code, e.Error(), c.code, c.want)
		}
		if p.daemon.asked != 0 || p.kept() != nil {
			t.Errorf("%s: the daemon was asked, or %v kept", name, p.kept())
		}
	}
}

func times(n int, o obj) (all []obj) {
	for range n {
		all = append(all, o)
	}
	return all
}

// TestErrorsVersion: an error is told in the version of the configuration, if that is one.
func TestErrorsVersion(t *testing.T) {
	for version, want := range map[string]string{"0.4.0": "0.4.0", "9.0.0": "1.1.0", "0.3.1": "0.3.1"} {
		p := newPlugin(t)
		_, out, _ := p.run(t.Context(), env("ADD", "CNI_NETNS", ""), p.conf("cniVersion", version))
		if !strings.HasPrefix(out, `{"cniVersion":"`+want+`","code":`) {
			t.Errorf("%s: %s", version, out)
		}
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("no\nterminal") }

func TestUnreadableInput(t *testing.T) {
	for verb, code := range map[string]int{"ADD": 1, "VERSION": 0} {
		var out strings.Builder
		got := Run(t.Context(), Env{Getenv: func(string) string { return verb }, Stdin: broken{}, Stdout: &out, Stderr: io.Discard})
		if got != code {
			t.Fatalf("%s: exit %d, %s", verb, got, out.String())
		}
		if code == 0 {
			continue
		}
		e := wellFormed(t, got, out.String())
		want := Error{CodeIO, "the configuration cannot be read from standard input: no terminal", "the runtime has to give it there, and close it"}
		if e != want {
			t.Errorf("got %+v", e)
		}
	}
}

// TestPanic: a fault of the plugin is an error of the specification, too.
func TestPanic(t *testing.T) {
	p := newPlugin(t)
	p.step = func(string) { panic("at\nonce") }
	code, out, stderr := p.run(t.Context(), env("ADD"), p.conf())
	e := wellFormed(t, code, out)
	want := Error{999, "the plugin has a fault: at once", "report it with what it wrote to its standard error; what was begun is undone by the runtime's DEL"}
	if e != want || !strings.Contains(stderr, "panic: at\nonce\n") || !strings.Contains(stderr, "config_test.go") {
		t.Errorf("got %+v and %s", e, stderr)
	}
}

// FuzzRun holds that whatever a runtime gives the plugin, it answers with what the specification has, and lets nothing through to the daemon that
// is not bounded and clean, which the fake looks at.
func FuzzRun(f *testing.F) {
	const conf = `{"cniVersion":"1.1.0","name":"n","type":"weft","runDir":"RUNDIR"`
	for _, verb := range []string{"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", ""} {
		f.Add(verb, "c1", "/run/netns/a", "eth0", "K8S_POD_NAME=x;IP=10.0.0.1", conf+`,"prevResult":`+added+`,"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}`)
	}
	f.Add("ADD", "c1", "/n", "", "IgnoreUnknown=true;A=b", conf+`,"runtimeConfig":{"ips":["::1"],"mac":"02:00:00:00:00:01","dns":{"servers":["x"]}},"args":{"cni":{"ips":["10.0.0.1/8"]}},"mtu":1400}`)
	f.Add("ADD", "c1", "/n", "eth0", "", `{"cniVersion":"0.4.0","name":"n","type":"ptp","ipam":{"type":"weft","runDir":"RUNDIR"},"prevResult":3}`)
	f.Add("CHECK", "c1", "/n", "eth0", "", `{"cniVersion":"0.4.0","name":"n","type":"weft","prevResult":{"interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"version":"6","address":"::1/1","interface":-1}]}}`)
	for _, v := range versions() {
		f.Add("ADD", "c1", "/n", "eth0", "", `{"cniVersion":"`+v+`","name":"n","type":"weft","prevResult":{"interfaces":[{}],"ips":[{"address":"1.2.3.4/8"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":null}}`)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, verb, container, netns, ifname, args, stdin string) {
		p := &plugin{daemon: newFake(), name: "weft", runDir: dir}
		code, out, stderr := p.run(t.Context(), map[string]string{
			"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifname, "CNI_ARGS": args,
		}, strings.ReplaceAll(stdin, "RUNDIR", p.runDir))
		if strings.Contains(stderr, "panic") || strings.Contains(out, "let through") {
			t.Fatalf("%s\n%s", out, stderr)
		}
		if code != 0 {
			wellFormed(t, code, out)
			if len(p.daemon.requests) > 0 || len(p.daemon.released) > 0 {
				t.Errorf("an error, but the daemon was asked: %s", out)
			}
			return
		}
		var answer map[string]json.RawMessage
		switch verb {
		case "ADD", "VERSION":
			if err := json.Unmarshal([]byte(out), &answer); err != nil || answer["cniVersion"] == nil || strings.Count(out, "\n") != 1 {
				t.Errorf("%q is no result: %v", out, err)
			}
		case "DEL", "CHECK", "GC", "STATUS":
			if out != "" {
				t.Errorf("it answers %q", out)
			}
		default:
			t.Errorf("%s succeeds", verb)
		}
		if verb == "GC" && (len(p.daemon.released) != 1 || !strings.Contains(stdin, "attachments")) {
			t.Errorf("GC without a list: %s", stdin)
		}
		if verb == "DEL" && fmt.Sprint(p.daemon.released[0].Key) == fmt.Sprint(Key{}) {
			t.Error("DEL of everything")
		}
	})
}
