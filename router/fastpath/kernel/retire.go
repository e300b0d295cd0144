// SPDX-License-Identifier: Apache-2.0

package kernel

import "go.uber.org/zap"

// Retire removes the VXLAN devices that an earlier run with another configuration has left: those of this node whose port or VNI is not
// that of the Config, or that are otherwise not as Apply would make them and cannot be made so. Whoever filters what arrives at the
// port of the Config calls it before that, because nobody filters what arrives at another one. It leaves alone what is right, and may be called before the first
// Apply. It goes on after an error, and can be repeated.
func (k *Kernel) Retire() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.open()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range []string{Device4, Device6} {
		l, exists, err := c.link(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !exists || !k.config.ours(l) || k.config.right(l) {
			continue
		}
		k.doubt = true
		if err := explainDevice(name, "removing", c.removeLink(l.index)); err != nil {
			errs = append(errs, err)
			continue
		}
		k.log.Info("device of an earlier run removed", zap.String("device", name), zap.Uint16("port", l.port), zap.Uint32("vni", l.vni))
	}
	return joined(errs)
}
