// SPDX-License-Identifier: Apache-2.0

package hostnet

// What the engine of kernel paths asks besides.

// Passes says whether the table that is in place has the rules of kernel paths: whether what [Host.SetPlain] has set last, without an error, counts. If
// not, nothing passes.
func (h *Host) Passes() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.table != nil && h.table.use.plain
}

// CarriesIPv6 says whether the device, with that MTU in bytes, can do IPv6 on this host: where it cannot, [Host.Apply] gives it no IPv6 address.
func (h *Host) CarriesIPv6(device string, mtu int) bool {
	able := false
	err := h.ns.run(func() error {
		disabled, err := readSysctl(confKey("ipv6", device, "disable_ipv6"))
		able = err == nil && disabled == "0"
		return nil
	})
	return err == nil && able && mtu >= minMTU6
}

// Tighten gives back the reverse path filters that [Host.Apply] has loosened for kernel paths, as if the Loose of its [Desired] were empty, and returns the
// rest of the changes. It is for the end of the daemon, and works without an Apply before. What could not be given back is still among the rest.
func (h *Host) Tighten(c Changes) (Changes, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	rest := c
	err := h.ns.run(func() (err error) {
		rest, err = c.tighten(nil)
		return err
	})
	return rest, err
}
