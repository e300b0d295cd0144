// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	lookTime = 2 * time.Second // for which a look at the processors lasts, with nothing of this program running
	busyFrom = 0.1             // share of their time from which they count as busy
)

// processors is what they have done since the machine runs, in ticks of all of them.
type processors struct{ idle, stolen, all float64 }

// parseProcessors reads the text of /proc/stat (proc(5)). Waiting for a disk is idle, too.
func parseProcessors(stat string) (p processors, err error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return p, fmt.Errorf("no times of the processors in %q", line)
	}
	for i, f := range fields[1:9] { // guests' time, which follows, is in user and nice already
		v, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return p, fmt.Errorf("no times of the processors in %q", line)
		}
		p.all += v
		switch i {
		case 3, 4:
			p.idle += v
		case 7:
			p.stolen = v
		}
	}
	return p, nil
}

// used returns the share of the time since an earlier look in which the processors were not idle, 0 to 1.
func (p processors) used(before processors) float64 {
	if p.all <= before.all {
		return 0
	}
	return min(max(1-(p.idle-before.idle)/(p.all-before.all), 0), 1)
}

// seconds returns how much time of all processors was used since an earlier look. What a hypervisor took from them is not in it.
func (p processors) seconds(before processors) float64 {
	return max(p.all-before.all-(p.idle-before.idle)-(p.stolen-before.stolen), 0) / tick
}

// readProcessors reads what they have done so far.
func readProcessors() (processors, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return processors{}, err
	}
	return parseProcessors(string(stat))
}

// look watches the processors for some time.
func look(ctx context.Context, length time.Duration) (used float64, err error) {
	before, err := readProcessors()
	if err != nil {
		return 0, err
	}
	if err := sleep(ctx, length); err != nil {
		return 0, err
	}
	after, err := readProcessors()
	return after.used(before), err
}

// busy returns a note if others used much of the processors in one of the looks, before each round, and what that does to the figures.
func busy(looks []float64, so string) []string {
	var most float64
	var times int
	for _, used := range looks {
		most = max(most, used)
		if used >= busyFrom {
			times++
		}
	}
	if times == 0 {
		return nil
	}
	return []string{fmt.Sprintf("The machine was busy with something else before %d of the %d rounds: up to %.0f%% of its processors' time. %s, and ratios uncertain.",
		times, len(looks), most*100, so)}
}
