// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"maps"
	"strings"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/store"
)

// errStays keeps a release in the backlog.
var errStays = errors.New("it is only looked at")

// CNILeft counts what runtimes have attached, and not deleted since, by the state in dataDir and what the plugin has kept in runDir. The
// daemon must have ended. Where there is no state there is none of it.
func CNILeft(dataDir, runDir string) (n int, err error) {
	if !store.Exists(dataDir) {
		return 0, nil
	}
	st, err := store.Open(dataDir)
	if err != nil {
		return 0, err
	}
	defer closing(&err, st)
	all, err := loadWorkloads(st)
	if err != nil {
		return 0, err
	}
	maps.DeleteFunc(all, func(id string, _ workload) bool { return !strings.HasPrefix(id, ownerCNI) })
	if len(all) == 0 {
		return 0, nil
	}
	// What cannot be read of the backlog deletes nothing.
	_ = cni.NewBacklog(runDir).Each(func(r cni.Release) error {
		if w := all[keyID(r.Key)]; w.CNI != nil && w.CNI.Network == r.Network {
			delete(all, w.ID)
		}
		return errStays
	})
	return len(all), nil
}
