// SPDX-License-Identifier: Apache-2.0

package hostnet

// Missing returns the IDs of the workloads, of which only the IDs count, that have no interface on the host, and changes
// nothing. A namespace that ends takes its interface with it, on both sides; that may be some moments later.
func (h *Host) Missing(workloads []Workload) ([]string, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	c, err := h.ns.open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var missing []string
	for _, w := range workloads {
		if w.AddressesOnly {
			continue
		}
		l, err := c.link(HostIf(w.ID))
		if err != nil {
			return nil, err
		}
		if !vethOf(l, w.ID) {
			missing = append(missing, w.ID)
		}
	}
	return missing, nil
}
