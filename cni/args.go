// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

const (
	maxContainerID = 128     // bytes
	maxIfName      = 15      // bytes, as the kernel has it
	maxPath        = 1024    // bytes of the namespace's path
	maxArgs        = 8 << 10 // bytes of CNI_ARGS
	maxPod         = 253     // bytes of a pod's name, as Kubernetes has it
	maxExcerpt     = 64      // bytes of what an error quotes
)

// key is the attachment that the environment names.
func (c *call) key() (Key, error) {
	k := Key{ContainerID: c.env.Getenv("CNI_CONTAINERID"), IfName: c.env.Getenv("CNI_IFNAME")}
	if k.ContainerID == "" || len(k.ContainerID) > maxContainerID || !identifier(k.ContainerID) {
		return Key{}, &Error{
			CodeEnvironment, "CNI_CONTAINERID " + quoted(k.ContainerID) + " is no container's ID",
			"it has to begin with a letter or digit, and to consist of those, of dots, hyphens and underscores, " + strconv.Itoa(maxContainerID) + " at most",
		}
	}
	if k.IfName == "" {
		k.IfName = c.conf.ifName
	}
	if why := badIfName(k.IfName); why != "" {
		return Key{}, &Error{CodeEnvironment, "CNI_IFNAME " + quoted(k.IfName) + " is no name of an interface", why}
	}
	return k, nil
}

// netns is the path of the namespace that the environment names.
func (c *call) netns() (string, error) {
	p := c.env.Getenv("CNI_NETNS")
	if !filepath.IsAbs(p) || len(p) > maxPath || control(p) {
		return "", &Error{
			CodeEnvironment, "CNI_NETNS " + quoted(p) + " is no path of a network namespace",
			"it has to be absolute, as /run/netns/NAME, and of " + strconv.Itoa(maxPath) + " bytes at most",
		}
	}
	return p, nil
}

// args reads CNI_ARGS: what the runtime wants, and what pod the container is.
func (c *call) args() (w wishes, p Pod, err error) {
	all := c.env.Getenv("CNI_ARGS")
	bad := func(what string) (wishes, Pod, error) {
		return wishes{}, Pod{}, &Error{CodeEnvironment, "CNI_ARGS " + what, "it has to be KEY=VALUE;KEY=VALUE, with the keys IP, MAC and those of Kubernetes, or IgnoreUnknown=1"}
	}
	if len(all) > maxArgs {
		return bad("is longer than " + strconv.Itoa(maxArgs) + " bytes")
	}
	values := map[string]string{}
	for pair := range strings.SplitSeq(all, ";") {
		if pair == "" {
			continue
		}
		k, v, ok := strings.Cut(pair, "=")
		if !ok || k == "" {
			return bad("has " + quoted(pair))
		}
		values[k] = v
	}
	ignore, err := strconv.ParseBool(cmp.Or(values["IgnoreUnknown"], "0"))
	if err != nil {
		return bad("has IgnoreUnknown=" + quoted(values["IgnoreUnknown"]))
	}
	for k, v := range values {
		switch k {
		case "IgnoreUnknown", "IP", "MAC", "K8S_POD_INFRA_CONTAINER_ID":
		case "K8S_POD_NAMESPACE":
			p.Namespace = v
		case "K8S_POD_NAME":
			p.Name = v
		case "K8S_POD_UID":
			p.UID = v
		default:
			if !ignore {
				return bad("has " + quoted(k+"="+v) + ", which weft does not know")
			}
		}
	}
	for _, v := range []string{p.Namespace, p.Name, p.UID} {
		if len(v) > maxPod || control(v) || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return bad("names the pod " + quoted(v))
		}
	}
	var ips []string
	if v := values["IP"]; v != "" {
		ips = strings.Split(v, ",")
	}
	return w, p, w.add("CNI_ARGS", ips, values["MAC"])
}

// add takes over what source says, in place of what was said before.
func (w *wishes) add(source string, ips []string, mac string) error {
	bad := func(what, why string) error {
		code := uint(CodeConfig)
		if source == "CNI_ARGS" {
			code = CodeEnvironment
		}
		return &Error{code, source + " asks for " + what, why}
	}
	if len(ips) > 0 {
		w.ips = nil
	}
	for _, s := range ips {
		a, err := netip.ParseAddr(s)
		if err != nil {
			p, perr := netip.ParsePrefix(s)
			a, err = p.Addr(), perr
		}
		a = a.Unmap()
		if err != nil || a.Zone() != "" {
			return bad("the address "+quoted(s), "it has to be an IPv4 or IPv6 address of the mesh's range")
		}
		if slices.ContainsFunc(w.ips, func(o netip.Addr) bool { return o.Is4() == a.Is4() && o != a }) {
			return bad("the address "+quoted(s)+" and another one of its family", "a container has one IPv4 and one IPv6 address of the mesh")
		}
		if !slices.Contains(w.ips, a) {
			w.ips = append(w.ips, a)
		}
	}
	if mac == "" {
		return nil
	}
	m, err := net.ParseMAC(mac)
	if err != nil || len(m) != 6 || m[0]&1 != 0 || m.String() == "00:00:00:00:00:00" {
		return bad("the MAC address "+quoted(mac), "it has to be the address of one interface: six bytes, as 02:00:0a:20:00:01")
	}
	w.mac = m.String()
	return nil
}

// over returns w where it says something, and o elsewhere.
func (w wishes) over(o wishes) wishes {
	if len(w.ips) == 0 {
		w.ips = o.ips
	}
	return wishes{ips: w.ips, mac: cmp.Or(w.mac, o.mac)}
}

// identifier reports whether s has only the characters of container IDs and names of networks, in which no path hides.
func identifier(s string) bool {
	for i := range len(s) {
		ch := s[i]
		switch {
		case ch >= '0' && ch <= '9', ch >= 'a' && ch <= 'z', ch >= 'A' && ch <= 'Z':
		case i > 0 && (ch == '_' || ch == '.' || ch == '-'):
		default:
			return false
		}
	}
	return true
}

// badIfName tells what is wrong with the name of an interface, or nothing. The kernel would take more, but numbers the names that have a percent
// sign, and others read a slash, a colon or an at sign in their own way.
func badIfName(s string) string {
	bad := func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune("-._", r)
	}
	if s == "" || len(s) > maxIfName || s == "." || s == ".." || strings.ContainsFunc(s, bad) {
		return "it has to be of 1 to " + strconv.Itoa(maxIfName) + " letters, digits, hyphens, dots and underscores"
	}
	return ""
}

// control reports whether s has characters that are no part of any text on one line.
func control(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '�' })
}

// quoted is s as an error tells it.
func quoted(s string) string {
	q := strconv.QuoteToASCII(s[:min(len(s), maxExcerpt)])
	if len(s) > maxExcerpt {
		q += "..."
	}
	return q
}

// excerpt is a value of JSON as an error tells it.
func excerpt(s string) string {
	if len(s) > maxExcerpt || control(s) {
		return quoted(s)
	}
	return s
}
