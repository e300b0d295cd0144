// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

const (
	pluginType    = "weft" // under which the plugin is installed
	defaultRunDir = "/run/weft"
	defaultIfName = "eth0"

	minMTU, maxMTU = 576, 65535 // bytes
	maxRunDir      = 97         // bytes: the socket's name below it is the longest that a socket may have, unix(7)
	maxName        = 200        // bytes of the network's name
	maxLabels      = 64         // of a container
)

// config is a network configuration as the plugin gets it.
type config struct {
	keys map[string]json.RawMessage // all of it

	network       string
	addressesOnly bool
	runDir        string // of the daemon
	ifName        string
	mtu           int               // bytes; 0: the node's
	labels        map[string]string // for network policies
	namespace     string            // likewise
	dns           types.DNS
	wanted        wishes
}

// decodeConfig decodes the outermost object of a configuration.
func decodeConfig(raw []byte) (c config, err error) {
	if err := json.Unmarshal(raw, &c.keys); err != nil {
		return c, &Error{CodeDecode, "the configuration on standard input cannot be decoded: " + oneLine(err.Error()), "it has to be a JSON object"}
	}
	if c.keys == nil {
		return c, &Error{CodeDecode, "the configuration on standard input is null", "it has to be a JSON object"}
	}
	return c, nil
}

// read reads what the configuration says to the plugin of that file name; releasing, only what it takes to find the attachments and the daemon.
func (c *config) read(name string, releasing bool) error {
	typ := ""
	if err := c.value(c.keys, "name", &c.network); err != nil {
		return err
	}
	if c.network == "" || len(c.network) > maxName || !identifier(c.network) {
		return invalid(`"name": `+quoted(c.network)+" is no name of a network",
			"it has to begin with a letter or digit, and to consist of those, of dots, hyphens and underscores, %d at most", maxName)
	}
	if err := c.value(c.keys, "type", &typ); err != nil {
		return err
	}
	if typ == "" {
		return invalid(`the configuration has no "type"`, "it is the plugin's file name, as %q", pluginType)
	}
	own := c.keys // keys among which those of weft are
	ipam := map[string]json.RawMessage{}
	if err := c.value(c.keys, "ipam", &ipam); err != nil && !releasing {
		return err
	}
	ipamType := ""
	if err := c.value(ipam, "type", &ipamType); err != nil && !releasing {
		return err
	}
	c.addressesOnly = addressesOnly(name, typ, ipamType)
	if c.addressesOnly {
		own = ipam
	}
	if err := c.readOwn(own); err != nil || releasing {
		return err
	}
	if err := c.unknown(own, ipamType, typ); err != nil {
		return err
	}
	if err := c.value(c.keys, "dns", &c.dns); err != nil {
		return err
	}
	return c.readWishes()
}

// addressesOnly tells whether the plugin that runs as name is asked as the IPAM of another plugin, which gives it the whole of its own configuration.
func addressesOnly(name, typ, ipam string) bool {
	if typ != name && ipam != name { // it runs under another name than the configuration has
		name = pluginType
	}
	return ipam == name && typ != name
}

// readOwn reads the keys that only weft has.
func (c *config) readOwn(own map[string]json.RawMessage) error {
	c.runDir, c.ifName = defaultRunDir, defaultIfName
	if err := c.value(own, "runDir", &c.runDir); err != nil {
		return err
	}
	if !filepath.IsAbs(c.runDir) || len(c.runDir) > maxRunDir || control(c.runDir) {
		return invalid(`"runDir": `+quoted(c.runDir)+" is no run directory", "it has to be the --run-dir of the daemon, an absolute path of %d bytes at most", maxRunDir)
	}
	c.runDir = filepath.Clean(c.runDir)
	if c.addressesOnly {
		return nil
	}
	if err := c.value(own, "ifname", &c.ifName); err != nil {
		return err
	}
	if why := badIfName(c.ifName); why != "" {
		return invalid(`"ifname": `+quoted(c.ifName)+" is no name of an interface", "%s", why)
	}
	return nil
}

// unknown finds what weft would not act upon: better no container than one that is not as it was asked for.
func (c *config) unknown(own map[string]json.RawMessage, ipamType, typ string) error {
	known := []string{"runDir", "labels", "namespace", "type"}
	where, have := `in "ipam"`, `"runDir", "labels" and "namespace"`
	if err := c.value(own, "labels", &c.labels); err != nil {
		return err
	}
	if err := c.value(own, "namespace", &c.namespace); err != nil {
		return err
	}
	if len(c.labels) > maxLabels || control(c.namespace) || len(c.namespace) > maxPod {
		return invalid(`"labels" or "namespace" is too large`, "a container has %d labels and a namespace of 63 letters at most", maxLabels)
	}
	if !c.addressesOnly {
		where, have = "", `"runDir", "mtu", "ifname", "labels" and "namespace"`
		known = append(known, "mtu", "ifname", "cniVersion", "cniVersions", "name", "args", "ipMasq", "ipam", "dns", "capabilities", "runtimeConfig", "prevResult",
			"disableCheck", "disableGC", "loadOnlyInlinedPlugins")
		if ipamType != "" && ipamType != typ && ipamType != pluginType {
			return unsupported(`"ipam"`, c.keys["ipam"], "weft gives the addresses itself; remove it")
		}
		if err := c.value(own, "mtu", &c.mtu); err != nil {
			return err
		}
		if c.mtu != 0 && (c.mtu < minMTU || c.mtu > maxMTU) {
			return invalid(fmt.Sprintf(`"mtu": %d is none`, c.mtu), "it has to be between %d and %d bytes, or 0 for that of the node", minMTU, maxMTU)
		}
		var masquerade bool // the daemon's flag decides
		if err := c.value(own, "ipMasq", &masquerade); err != nil {
			return err
		}
	}
	for _, k := range slices.Sorted(maps.Keys(own)) {
		if !slices.Contains(known, k) && !strings.HasPrefix(k, "cni.dev/") {
			return unsupported(strings.TrimSpace(quoted(k)+" "+where), own[k], "remove it; the keys of weft are "+have)
		}
	}
	return nil
}

// value reads the value of a key, if it has one, into what v points to.
func (c *config) value(from map[string]json.RawMessage, key string, v any) error {
	raw, ok := from[key]
	if !ok || string(raw) == "null" {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return invalid(quoted(key)+": "+excerpt(string(raw))+" is not what it should be", "it has to be %s", kind(v))
	}
	return nil
}

// kind tells what the value that v points to is in JSON.
func kind(v any) string {
	switch v.(type) {
	case *string:
		return "a string"
	case *int:
		return "a whole number"
	case *bool:
		return "true or false"
	case *[]string:
		return "a list of strings"
	case *map[string]string:
		return "an object of strings"
	default:
		return "an object as the conventions of CNI have it"
	}
}

// wishes are what the runtime would like to have of an attachment.
type wishes struct {
	ips []netip.Addr
	mac string
}

// readWishes reads what the runtime has put into the configuration. Where it says a thing twice, runtimeConfig counts.
func (c *config) readWishes() error {
	var args struct {
		CNI struct {
			IPs []string `json:"ips"`
			MAC string   `json:"mac"`
		} `json:"cni"`
	}
	if err := c.value(c.keys, "args", &args); err != nil {
		return err
	}
	if err := c.wanted.add("args.cni", args.CNI.IPs, args.CNI.MAC); err != nil {
		return err
	}
	runtime := map[string]json.RawMessage{}
	if err := c.value(c.keys, "runtimeConfig", &runtime); err != nil {
		return err
	}
	var ips []string
	var mac string
	if err := c.value(runtime, "ips", &ips); err != nil {
		return err
	}
	if c.addressesOnly { // the others are for the plugin that makes the interface
		return c.wanted.add("runtimeConfig", ips, "")
	}
	if err := c.value(runtime, "mac", &mac); err != nil {
		return err
	}
	var dns struct {
		Servers  []string `json:"servers"`
		Searches []string `json:"searches"`
		Options  []string `json:"options"`
	}
	if err := c.value(runtime, "dns", &dns); err != nil {
		return err
	}
	if len(dns.Servers)+len(dns.Searches)+len(dns.Options) > 0 {
		c.dns = types.DNS{Nameservers: dns.Servers, Search: dns.Searches, Options: dns.Options, Domain: c.dns.Domain}
	}
	for _, k := range slices.Sorted(maps.Keys(runtime)) {
		if !slices.Contains([]string{"ips", "mac", "dns"}, k) {
			return unsupported(quoted(k)+` in "runtimeConfig"`, runtime[k],
				`take it out of the "capabilities" of weft, and chain the plugin that it is for, as portmap for portMappings or bandwidth for bandwidth`)
		}
	}
	return c.wanted.add("runtimeConfig", ips, mac)
}

func invalid(msg, details string, args ...any) *Error {
	return &Error{CodeConfig, msg, fmt.Sprintf(details, args...)}
}

func unsupported(what string, value json.RawMessage, details string) *Error {
	return &Error{CodeUnsupported, "the configuration has " + what + ": " + excerpt(string(value)) + ", which weft does not act upon", details}
}
