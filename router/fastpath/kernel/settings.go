// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// settings sets the sysctls of a VXLAN device and says what was changed.
//
// The reverse path filter is loose: while the path to a peer changes, its packets may come by the device although the route to
// it leads elsewhere. Advertisements and redirects of others do not count. Settings that nobody may change stay as they are.
func (d *devices) settings(name string, want device) (changed []string, err error) {
	list := []struct{ family, key, value string }{
		{"ipv4", "rp_filter", "2"},
		{"ipv4", "accept_redirects", "0"},
	}
	if want.v6 {
		list = append(list, []struct{ family, key, value string }{
			{"ipv6", "disable_ipv6", "0"},
			{"ipv6", "accept_ra", "0"},
			{"ipv6", "accept_redirects", "0"},
		}...)
	}
	err = d.ns.run(func() error {
		for _, s := range list {
			path := filepath.Join("/proc/sys/net", s.family, "conf", name, s.key)
			b, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) { // no IPv6, or no /proc
				continue
			}
			if err != nil {
				return fmt.Errorf("reading %s: %w", path, err)
			}
			was := strings.TrimSpace(string(b))
			if was == s.value {
				continue
			}
			if err := os.WriteFile(path, []byte(s.value), 0); errors.Is(err, unix.EROFS) {
				continue
			} else if err != nil {
				return fmt.Errorf("setting %s to %s: %w", path, s.value, err)
			}
			changed = append(changed, fmt.Sprintf("net.%s.conf.%s.%s was changed to %s by somebody; set to %s again", s.family, name, s.key, was, s.value))
		}
		return nil
	})
	return changed, err
}
