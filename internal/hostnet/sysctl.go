// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	forward4 = "net/ipv4/ip_forward"
	forward6 = "net/ipv6/conf/all/forwarding"
)

func confKey(family, device, name string) string {
	return "net/" + family + "/conf/" + device + "/" + name
}

// The functions below read and write settings of the namespace of the calling thread.

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys", key))
	return strings.TrimSpace(string(b)), err
}

// writeSysctl writes the value if it is another.
func writeSysctl(key, value string) error {
	if old, err := readSysctl(key); err == nil && old == value {
		return nil
	}
	return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
}

// settings are the host-wide sysctls that Weft needs, in the order in which they are set.
type settings struct {
	todo     []Sysctl
	changes  Changes
	warnings []string
}

// plan finds out what is to be set: forwarding, and, as a router ignores router advertisements, their acceptance where they
// are accepted now (Linux, ip-sysctl: accept_ra); and links whose reverse path filter is too strict.
func plan(d Desired, prior Changes) (settings, error) {
	s := settings{changes: prior.clone()}
	was, err := readSysctl(forward4)
	if err != nil {
		return s, fmt.Errorf("reading %s: %w; is /proc mounted?", forward4, err)
	}
	if was == "0" {
		with := map[string]string{}
		if err := collect(with, "ipv4", "forwarding", "0"); err != nil {
			return s, err
		}
		// The kernel couples these two, whatever the value was before.
		redirects := confKey("ipv4", "all", "accept_redirects")
		if v, err := readSysctl(redirects); err == nil && v != "1" {
			with[redirects] = v
		}
		s.add(Sysctl{Key: forward4, Was: was, Set: "1", With: with})
	}
	if err := s.loose(d.Loose); err != nil {
		return s, err
	}
	if !hasV6(d.Universe) {
		return s, nil
	}
	was, err = readSysctl(forward6)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil // no IPv6; Apply warns
	}
	if err != nil {
		return s, fmt.Errorf("reading %s: %w", forward6, err)
	}
	if was == "0" || s.changes.has(forward6) {
		if err := s.keepAdvertisements(d.Device, was); err != nil {
			return s, err
		}
	}
	if was == "0" {
		with := map[string]string{}
		if err := collect(with, "ipv6", "forwarding", "0"); err != nil {
			return s, err
		}
		s.add(Sysctl{Key: forward6, Was: was, Set: "1", With: with})
	}
	return s, nil
}

// keepAdvertisements plans accept_ra=2 for interfaces that would accept advertisements were it not for Weft's forwarding.
func (s *settings) keepAdvertisements(device, forwarding string) error {
	devices, err := devicesOf("ipv6")
	if err != nil {
		return err
	}
	for _, dev := range devices {
		if dev == "lo" || dev == device || isHostIf(dev) || strings.HasPrefix(dev, linkPrefix) {
			continue
		}
		accept, err := readSysctl(confKey("ipv6", dev, "accept_ra"))
		if err != nil || accept != "1" {
			continue // gone meanwhile, or it is decided
		}
		if forwarding == "0" {
			if f, err := readSysctl(confKey("ipv6", dev, "forwarding")); err != nil || f != "0" {
				continue
			}
		}
		s.add(Sysctl{Key: confKey("ipv6", dev, "accept_ra"), Was: accept, Set: "2"})
	}
	return nil
}

func (s *settings) add(c Sysctl) {
	if len(c.With) == 0 {
		c.With = nil
	}
	s.todo = append(s.todo, c)
	if !s.changes.has(c.Key) {
		s.changes.Sysctls = append(s.changes.Sysctls, c)
	}
}

// collect adds to with the setting of all interfaces, and of those to come, where it is not the given value.
func collect(with map[string]string, family, name, not string) error {
	devices, err := devicesOf(family)
	if err != nil {
		return err
	}
	for _, dev := range append(devices, "default") {
		key := confKey(family, dev, name)
		if v, err := readSysctl(key); err == nil && v != not && !isHostIf(dev) && !strings.HasPrefix(dev, linkPrefix) {
			with[key] = v
		}
	}
	return nil
}

// devicesOf lists the interfaces that have settings of a family.
func devicesOf(family string) ([]string, error) {
	dir := filepath.Join("/proc/sys/net", family, "conf")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", dir, err)
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); n != "all" && n != "default" {
			names = append(names, n)
		}
	}
	return names, nil
}

// apply sets what was planned, and returns warnings about what cannot be set.
func (s *settings) apply() (warnings []string) {
	warnings = slices.Clone(s.warnings)
	for _, c := range s.todo {
		if err := writeSysctl(c.Key, c.Set); err != nil && !errors.Is(err, fs.ErrNotExist) {
			warnings = append(warnings, fmt.Sprintf("%s cannot be set to %s: %v; set it on the host, or workloads do not reach others", c.Key, c.Set, cause(err)))
		}
	}
	return warnings
}

// restore sets back what nobody has changed since.
func (c Changes) restore() (restored []string, err error) {
	var errs []error
	for _, s := range slices.Backward(c.Sysctls) {
		now, err := readSysctl(s.Key)
		if err != nil || now != s.Set {
			continue // the interface is gone, or somebody else has decided
		}
		if err := writeSysctl(s.Key, s.Was); err != nil {
			errs = append(errs, fmt.Errorf("setting %s back to %s: %w", s.Key, s.Was, cause(err)))
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(s.With)) {
			if err := writeSysctl(key, s.With[key]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("setting %s back to %s: %w", key, s.With[key], cause(err)))
			}
		}
		restored = append(restored, fmt.Sprintf("sysctl %s, %s again", s.Key, s.Was))
	}
	return restored, errors.Join(errs...)
}

func (c Changes) has(key string) bool {
	return slices.ContainsFunc(c.Sysctls, func(s Sysctl) bool { return s.Key == key })
}

func (c Changes) clone() Changes { return Changes{Sysctls: slices.Clone(c.Sysctls)} }

// cause strips the path, which the message has already.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
