// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRunning says that no daemon answers: it has not done what it was asked for.
var ErrNotRunning = errors.New("no weft daemon is running")

// ErrBrokenOff says that the daemon ended before it answered: it has done what it was asked for, or not.
var ErrBrokenOff = errors.New("the weft daemon ended before it answered")

// Daemon is what the plugin needs of the daemon of its host: one round trip for each verb. Errors are of type [*Error] where the daemon has refused, or
// wrap [ErrNotRunning] where there is none, or [ErrBrokenOff] where it has ended meanwhile.
type Daemon interface {
	// Attach is ADD. When it returns, packets flow, or nothing remains. Asked again for the same key, it gives the same answer.
	Attach(ctx context.Context, r Request) (Attachment, error)
	// Check is CHECK or, if r.Key is the zero Key, STATUS.
	Check(ctx context.Context, r CheckRequest) error
	// Detach is DEL or, if r.Key is the zero Key, GC. What is gone already is no error.
	Detach(ctx context.Context, r Release) error
}

// Key names an attachment: it is unique on a host.
type Key struct {
	ContainerID string `json:"container_id"`
	IfName      string `json:"ifname"`
}

// Request asks for an interface and addresses, or for addresses alone.
type Request struct {
	Key
	Network string `json:"network"` // name of the network configuration
	Netns   string `json:"netns"`   // path of the namespace, as the daemon sees it
	// AddressesOnly is the IPAM of another plugin, which makes the interface.
	AddressesOnly bool         `json:"addresses_only,omitempty"`
	IPs           []netip.Addr `json:"ips,omitempty"` // wanted, at most one of each family; empty: the next free ones
	MAC           string       `json:"mac,omitempty"` // of the interface in the container; empty: one computed from the key
	MTU           int          `json:"mtu,omitempty"` // bytes; 0: that of the node
	Pod           Pod          `json:"pod,omitzero"`
	// Labels and Namespace are what network policies know the container by, where there is no Kubernetes; nil and empty: as it was, or the default.
	Labels    map[string]string `json:"labels,omitempty"`
	Namespace string            `json:"namespace,omitempty"`
	// Begun is when the plugin began, by [Uptime]; 0: nobody knows. What was begun before something newer is not done after that.
	Begun time.Duration `json:"begun,omitempty"`
}

// Pod tells for what the container is, as CNI_ARGS has it; it may be empty.
type Pod struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// Attachment is what a container has got.
type Attachment struct {
	HostIf    string       `json:"host_if,omitempty"` // end of the veth on the host; empty as the MACs: addresses only
	HostMAC   string       `json:"host_mac,omitempty"`
	MAC       string       `json:"mac,omitempty"`
	MTU       int          `json:"mtu"`
	Addresses []netip.Addr `json:"addresses"` // v4 first
	Routes    []Route      `json:"routes"`
	// Universe are the networks that the addresses are in, if there are only addresses: other plugins make the routes of an interface from them.
	// Where there is an interface, its addresses are in no network.
	Universe []netip.Prefix `json:"universe,omitempty"`
	Warnings []string       `json:"warnings,omitempty"` // what does not work, a line each
}

// Route is a route in the container; GW is an address of the host.
type Route struct {
	Dst netip.Prefix `json:"dst"`
	GW  netip.Addr   `json:"gw"`
}

// CheckRequest asks whether an attachment is as it was made. The zero Key asks whether one could be made.
type CheckRequest struct {
	Key
	Network       string     `json:"network"`
	Netns         string     `json:"netns"`
	AddressesOnly bool       `json:"addresses_only,omitempty"`
	Want          Attachment `json:"want"` // as the result of ADD, passed on by the runtime, has it; what it does not say is zero
}

// Release asks to take an attachment away or, with the zero Key, all attachments of a network that are not valid.
type Release struct {
	Key
	Network string `json:"network"`
	Netns   string `json:"netns,omitempty"` // may be gone, or empty
	Valid   []Key  `json:"valid,omitempty"` // of GC: what stays
	// Begun is as in [Request].
	Begun time.Duration `json:"begun,omitempty"`
}

// Lifetime is how long the plugin waits for an answer to ADD at the most: nobody knows of what is attached later.
const Lifetime = deadline

// Uptime is the time by which plugin and daemon compare what they were asked for: that since the machine has started, as long as it was not
// suspended (CLOCK_MONOTONIC, by which the plugin's patience ends as well). It is 0 if the kernel does not tell.
func Uptime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// Codes of errors that the specification has (1.1.0, "Error") or leaves to the plugin (100 and above).
const (
	CodeVersion     = 1 // incompatible version
	CodeUnsupported = 2 // unsupported field in the network configuration
	CodeUnknown     = 3 // container unknown
	CodeEnvironment = 4 // invalid environment variable
	CodeIO          = 5
	CodeDecode      = 6 // the configuration cannot be decoded
	CodeConfig      = 7 // invalid network configuration
	CodeTryLater    = 11
	CodeUnavailable = 50  // STATUS: no ADD is possible
	CodeLimited     = 51  // STATUS: nor do containers that there are have full connectivity
	CodeFailed      = 100 // the daemon could not do it
	CodeDiffers     = 101 // CHECK has found a difference
)

// Error is an error as the runtime gets it.
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`               // what happened, to what
	Details string `json:"details,omitempty"` // what to do
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return fmt.Sprintf("%s; %s", e.Msg, e.Details)
}
