// SPDX-License-Identifier: Apache-2.0

// Package portable opens TUN devices by github.com/songgao/water, which asks no more of a
// kernel than that it has such devices: no offloads, no queues but one.
//
// On Linux (attach_linux.go) it attaches single queues, of which package tun makes its portable devices. water's own Read waits for
// a packet, which a shard must not; therefore the descriptor is taken out of what water opens.
//
// On macOS (queue.go, device_darwin.go) there is no descriptor to be had: water has to remove the four bytes that the
// kernel puts before each packet. There a Queue reads ahead, on a goroutine of its own, so that its Read does not wait.
//
// Imported by package tun, which is for Linux only, as the rest of the router is.
package portable
