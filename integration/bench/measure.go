// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/weftnet/weft/integration/lab"
)

const (
	warmUp = 300 * time.Millisecond // of each stream measurement; it does not count
	block  = 128 << 10              // bytes per read and write of a stream
	tick   = 100                    // USER_HZ, the unit of CPU times in /proc, is 100 on all platforms that Go knows
)

// connect opens n TCP connections from one namespace to an address in another one. The caller closes them.
func connect(ctx context.Context, from, to *lab.Namespace, addr netip.Addr, n int) (clients, servers []net.Conn, err error) {
	var listener *net.TCPListener
	err = to.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = listener.Close() }()
	for range n {
		err = from.Do(func() error {
			d := net.Dialer{Timeout: within}
			c, err := d.DialContext(ctx, "tcp", listener.Addr().String())
			if err == nil {
				clients = append(clients, c)
			}
			return err
		})
		var s net.Conn
		if err == nil {
			if err = listener.SetDeadline(time.Now().Add(within)); err == nil {
				s, err = listener.Accept()
			}
		}
		if err != nil {
			closeAll(clients, servers)
			return nil, nil, err
		}
		servers = append(servers, s)
	}
	return clients, servers, nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func closeAll(lists ...[]net.Conn) {
	for _, l := range lists {
		for _, c := range l {
			_ = c.Close()
		}
	}
}

// flow is what one stream measurement saw.
type flow struct {
	gbit    float64 // received
	rate    float64 // Gb/s
	cpu     float64 // seconds of the forwarding processes in the same time
	machine float64 // seconds of all processors, whoever used them
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// cpuSeconds returns the CPU time that the processes have used so far, user and system.
func cpuSeconds(pids []int) (float64, error) {
	var sum float64
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		s, err := parseStat(string(stat))
		if err != nil {
			return 0, err
		}
		sum += s
	}
	return sum, nil
}

// parseStat returns the CPU seconds in the text of /proc/PID/stat.
func parseStat(stat string) (float64, error) {
	// The name, in parentheses, may hold anything. Behind it come the fields from the third one on.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("no CPU times in %q", stat)
	}
	user, err := strconv.ParseFloat(fields[11], 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(fields[12], 64)
	return (user + system) / tick, err
}

// largestRSS returns the resident memory of the largest process, in MiB.
func largestRSS(pids []int) (float64, error) {
	var most float64
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		kib, err := strconv.ParseFloat(strings.TrimSuffix(field(string(status), "VmRSS"), " kB"), 64)
		if err != nil {
			return 0, fmt.Errorf("RSS of %d: %w", pid, err)
		}
		most = max(most, kib/1024)
	}
	return most, nil
}

// field returns the value of the first line "name: value", as in /proc/cpuinfo.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
