// SPDX-License-Identifier: Apache-2.0

package hostnet

import "sync"

// lanes let only one at a time do something to a workload. Different workloads may share a lane, which costs time only.
type lanes [64]sync.Mutex

// lock takes the lane of an ID and returns the function that gives it back.
func (l *lanes) lock(id string) (unlock func()) {
	h := hashID(id)
	lane := &l[int(h[0])%len(l)]
	lane.Lock()
	return lane.Unlock
}
