// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
)

const (
	// ifPrefix begins the names of all devices of Weft on the host.
	ifPrefix = "weft"
	// aliasPrefix begins their aliases; a workload's ID follows.
	aliasPrefix = "weft: "
	// deviceAlias marks the TUN device.
	deviceAlias = aliasPrefix + "tunnel"

	hashLen = 5   // bytes of the ID's hash in names and hardware addresses
	maxID   = 200 // bytes; an alias holds 255
)

// First bytes of the hardware addresses, both locally administered unicast (IEEE 802-2014, 8.4).
const (
	hostOUI     = 0x06
	workloadOUI = 0x0a
)

// HostIf returns the name of the host's interface of a workload: "weft" and 10 hexadecimal digits.
func HostIf(id string) string {
	h := hashID(id)
	return ifPrefix + hex.EncodeToString(h[:])
}

func hashID(id string) (h [hashLen]byte) {
	sum := sha256.Sum256([]byte("weft workload interface\x00" + id))
	copy(h[:], sum[:])
	return h
}

// hostMAC returns the hardware address of the host's interface. Its last five bytes are those in the interface's name, which
// tells a veth of ours from others even if a crash came before it got its alias.
func hostMAC(id string) net.HardwareAddr { return mac(hostOUI, hashID(id)) }

// workloadMAC returns the hardware address of the workload's interface.
func workloadMAC(id string) net.HardwareAddr { return mac(workloadOUI, hashID(id)) }

func mac(first byte, h [hashLen]byte) net.HardwareAddr {
	return append(net.HardwareAddr{first}, h[:]...)
}

// veth says whether a link is the host's interface of a workload, and of which; the ID is empty if the alias is still
// missing: it is given last, when the workload's end is connected, too.
func veth(l netlink.Link) (id string, ours bool) {
	a := l.Attrs()
	if l.Type() != "veth" || !isHostIf(a.Name) {
		return "", false
	}
	if a.Alias == "" {
		h, err := hex.DecodeString(a.Name[len(ifPrefix):])
		return "", err == nil && bytes.Equal(a.HardwareAddr, mac(hostOUI, [hashLen]byte(h)))
	}
	return strings.CutPrefix(a.Alias, aliasPrefix)
}

// vethOf says whether a link is the host's interface of this workload.
func vethOf(l netlink.Link, id string) bool {
	if l == nil || l.Attrs().Name != HostIf(id) {
		return false
	}
	found, ours := veth(l)
	return ours && (found == id || found == "")
}

// isHostIf says whether a name has the form of those that HostIf makes.
func isHostIf(name string) bool {
	s, ok := strings.CutPrefix(name, ifPrefix)
	if !ok || len(s) != 2*hashLen {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil && s == strings.ToLower(s)
}

// tunnel says whether a link is the TUN device: marked by an Apply, or not yet marked and of the usual name.
func tunnel(l netlink.Link) bool {
	a := l.Attrs()
	t, ok := l.(*netlink.Tuntap)
	return ok && t.Mode == netlink.TUNTAP_MODE_TUN && (a.Alias == deviceAlias || a.Alias == "" && a.Name == DefaultDevice)
}

// ours says whether Weft made a link.
func ours(l netlink.Link) bool {
	if tunnel(l) {
		return true
	}
	_, ok := veth(l)
	return ok
}

// kernelPath says whether a link is a VXLAN device of router/fastpath/kernel, which makes and removes it.
func kernelPath(l netlink.Link) bool {
	return l.Type() == "vxlan" && l.Attrs().Alias == aliasPrefix+"vxlan"
}

// kernelPathProtocol marks the routes of router/fastpath/kernel.
const kernelPathProtocol = 88

// The marks of the packets that prove kernel paths (router/fastpath/kernel). Only who has CAP_NET_ADMIN or CAP_NET_RAW on the host can set one:
// what comes from a network namespace loses it.
const (
	markDirect = 0x57650001
	markVXLAN  = 0x57650002
)

// The groups of Weft's devices (ip-link(8)): the rules recognise them faster by a number than by their names, which count all the same where a
// device is in no group. A group is set by root alone, and kept by nobody else who uses these numbers.
const (
	groupWorkloads = 0x57650011 // veths of workloads
	groupTunnel    = 0x57650012 // the TUN device
	// GroupWorkloads is that of the veths of workloads that Weft has made, for who serves these besides.
	GroupWorkloads = groupWorkloads
	// GroupPaths is that of the VXLAN devices of kernel paths. What arrives by a device of it is taken for what left a tunnel on this host, whose
	// source has been checked.
	GroupPaths = 0x57650013
)
