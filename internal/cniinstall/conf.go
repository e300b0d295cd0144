// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

const (
	// DefaultNetwork is what the network is called unless it is told otherwise.
	DefaultNetwork = "weft"
	maxNetwork     = 200 // bytes of a name, as the plugin takes it
	// oldVersion is what runtimes understand that do not know cniVersions, which came after it.
	oldVersion = "1.0.0"
	maxConf    = 1 << 20 // bytes of a configuration that is read
)

// conf is a network configuration, as far as it is Weft's.
type conf struct {
	CNIVersion  string   `json:"cniVersion"`
	CNIVersions []string `json:"cniVersions,omitempty"`
	Name        string   `json:"name"`
	DisableGC   bool     `json:"disableGC,omitempty"`
	Plugins     []plugin `json:"plugins"`
}

type plugin struct {
	Type         string          `json:"type"`
	RunDir       string          `json:"runDir,omitempty"`
	SNAT         bool            `json:"snat,omitempty"`
	Capabilities map[string]bool `json:"capabilities"`
}

// link is a plugin that may follow Weft's.
type link struct {
	plugin
	own  string // the name under which Weft installs it itself; "": it does not
	what string // it is for
}

// chained are the plugins that follow Weft's, if they are there.
func chained() []link {
	return []link{
		{plugin{Type: "portmap", SNAT: true, Capabilities: map[string]bool{"portMappings": true}}, portmapName, "ports of the host for containers (hostPort)"},
		{plugin{Type: "bandwidth", Capabilities: map[string]bool{"bandwidth": true}}, "", "limits of bandwidth"},
	}
}

// in has the link name the plugin that is to be taken of those in the directory: Weft's own if it is there.
func (l link) in(dir string) link {
	if l.own != "" {
		if _, err := os.Stat(filepath.Join(dir, l.own)); err == nil {
			l.Type = l.own
		}
	}
	return l
}

// nameForm is the form of a network's name that the specification of CNI has.
func nameForm() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`) }

// CheckNetwork refuses what is no name of a network.
func CheckNetwork(name string) error {
	switch {
	case !nameForm().MatchString(name):
		return fmt.Errorf("%q is no name of a network: it consists of letters, digits and _ . - and begins with a letter or digit", name)
	case len(name) > maxNetwork:
		return fmt.Errorf("the name of the network has %d bytes; %d are the most", len(name), maxNetwork)
	}
	return nil
}

// network returns the name of the network, and whether runtimes are kept from GC: what is not said is as in the configuration that Weft has made before, as
// containers were attached by that.
func (c Config) network(have conf) (name string, disableGC bool) {
	name, disableGC = cmp.Or(c.Network, have.Name, DefaultNetwork), have.DisableGC
	if c.DisableGC != nil {
		disableGC = *c.DisableGC
	}
	return name, disableGC
}

// conf returns the configuration for what is installed, which takes the place of the one that Weft has made before, if there is one.
func (c Config) conf(ctx context.Context, have conf, r *Report) (conf, error) {
	path := filepath.Join(c.BinDir, PluginName)
	common, err := versions(ctx, path)
	if err != nil {
		return conf{}, err
	}
	out := conf{Plugins: []plugin{own(c.RunDir)}}
	out.Name, out.DisableGC = c.network(have)
	if have.Name != "" && have.Name != out.Name {
		r.warn("the network was called %s: containers that are in it stay there until they are removed, and no GC of %s sees to them", have.Name, out.Name)
	}
	for _, p := range chained() {
		p = p.in(c.BinDir)
		path := filepath.Join(c.BinDir, p.Type)
		if _, err := os.Stat(path); err != nil {
			r.warn("there is no plugin %s, so no %s: put it there and install again if they are wanted", path, p.what)
			continue
		}
		theirs, err := versions(ctx, path)
		var last string
		if err == nil {
			last = theirs[len(theirs)-1]
			theirs = slices.DeleteFunc(slices.Clone(common), func(v string) bool { return !slices.Contains(theirs, v) })
			if base(theirs) == "" {
				err = fmt.Errorf("plugin %s knows no version of CNI that Weft's knows", path)
			}
		}
		if err != nil {
			r.warn("%v; it is left out, so no %s", err, p.what)
			continue
		}
		if lost := lostVerbs(common, theirs); lost != "" {
			r.warn("plugin %s knows versions of CNI up to %s, and a configuration speaks what all of its plugins know: so runtimes do not ask Weft for %s; put a newer one there and install again", path, last, lost)
		}
		common = theirs
		out.Plugins = append(out.Plugins, p.plugin)
	}
	if out.CNIVersion = base(common); out.CNIVersion == "" {
		return conf{}, fmt.Errorf("plugin %s knows no version of CNI up to %s", path, oldVersion)
	}
	out.CNIVersions = common
	return out, nil
}

func own(runDir string) plugin {
	return plugin{Type: PluginName, RunDir: runDir, Capabilities: map[string]bool{"ips": true, "mac": true}}
}

// lostVerbs names the verbs that the sorted versions before have, and those that are left have not.
func lostVerbs(before, left []string) string {
	has := func(versions []string, since string) bool {
		return compareVersions(versions[len(versions)-1], since) >= 0
	}
	var lost []string
	for _, v := range []struct{ verb, since string }{{"CHECK", "0.4.0"}, {"GC", "1.1.0"}, {"STATUS", "1.1.0"}} {
		if has(before, v.since) && !has(left, v.since) {
			lost = append(lost, v.verb)
		}
	}
	return strings.Join(lost, ", ")
}

// base returns the last of sorted versions that every runtime understands, "" if there is none.
func base(versions []string) string {
	last := ""
	for _, v := range versions {
		if compareVersions(v, oldVersion) <= 0 {
			last = v
		}
	}
	return last
}

func (c conf) text() (io.Reader, error) {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	return bytes.NewReader(append(b, '\n')), nil
}

func (c conf) equal(o conf) bool { return reflect.DeepEqual(c, o) }

// confState is whose work a configuration is.
type confState int

const (
	foreign confState = iota // or none
	edited                   // one with Weft's plugin that Weft has not made so, or a link to one
	asMade
)

// readConf reads a configuration, and tells whose it is.
func readConf(path string) (conf, confState) {
	b, err := readBounded(path)
	if err != nil {
		return conf{}, foreign
	}
	var list struct {
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if json.Unmarshal(b, &list) != nil {
		return conf{}, foreign
	}
	if !slices.ContainsFunc(list.Plugins, func(p struct {
		Type string `json:"type"`
	},
	) bool {
		return p.Type == PluginName
	}) {
		return conf{}, foreign
	}
	var c conf
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if dec.Decode(&c) != nil || !c.made() || !regular(path) {
		return conf{}, edited
	}
	return c, asMade
}

// made tells whether Weft writes such a configuration.
func (c conf) made() bool {
	if CheckNetwork(c.Name) != nil {
		return false
	}
	as := conf{CNIVersion: base(c.CNIVersions), CNIVersions: c.CNIVersions, Name: c.Name, DisableGC: c.DisableGC}
	if len(c.Plugins) > 0 {
		as.Plugins = append(as.Plugins, own(c.Plugins[0].RunDir))
	}
	for _, p := range chained() {
		i := slices.IndexFunc(c.Plugins, func(o plugin) bool { return o.Type == p.Type || o.Type != "" && o.Type == p.own })
		if i >= 0 {
			p.Type = c.Plugins[i].Type
			as.Plugins = append(as.Plugins, p.plugin)
		}
	}
	return c.equal(as)
}

func isConf(path string) bool {
	_, state := readConf(path)
	return state != foreign
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConf+1))
	if err = errors.Join(err, f.Close()); err == nil && len(b) > maxConf {
		err = fmt.Errorf("%s has more than %d bytes", path, maxConf)
	}
	return b, err
}

// earlier lists the configurations that runtimes find before Weft's: they go by the order of the names.
func earlier(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, fmt.Errorf("directory %s cannot be read: %w", dir, plain(err))
	}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			if !e.IsDir() && strings.Compare(e.Name(), ConfName) < 0 {
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}
