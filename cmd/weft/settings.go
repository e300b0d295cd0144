// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// kernelSettings is where the kernel's settings are.
const kernelSettings = "/proc/sys"

// writableSettings makes the kernel's settings below dir writable where a container engine has mounted them read-only, which it
// does for every container that is not privileged: for this container alone.
func writableSettings(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("looking at %s: %w", dir, err)
	}
	if fs.Flags&unix.ST_RDONLY == 0 {
		return nil
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("%s is read-only, and cannot be made writable: %w; give the container the capability SYS_ADMIN and no AppArmor profile, or make it privileged", dir, err)
	}
	return nil
}
