// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	answerPatience = 5 * time.Second
	maxAnswer      = 64 << 10 // bytes
)

// versions asks a plugin which versions of the specification it knows, and returns them in order.
func versions(ctx context.Context, path string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	var out bounded
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(os.Environ(), "CNI_COMMAND=VERSION")
	cmd.Stdin = strings.NewReader(`{"cniVersion":"` + oldVersion + `"}`)
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("plugin %s cannot be run here: %w", path, errors.Join(ctx.Err(), err))
	}
	var answer struct {
		Supported []string `json:"supportedVersions"`
	}
	err := json.Unmarshal(out.b, &answer)
	list := slices.DeleteFunc(answer.Supported, func(v string) bool { return parseVersion(v) == nil })
	if err != nil || len(list) == 0 {
		return nil, fmt.Errorf("plugin %s does not tell which versions of CNI it knows", path)
	}
	slices.SortFunc(list, compareVersions)
	return slices.Compact(list), nil
}

// bounded takes no more than an answer can be.
type bounded struct{ b []byte }

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.b)+len(p) > maxAnswer {
		return 0, errors.New("its answer is too long")
	}
	b.b = append(b.b, p...)
	return len(p), nil
}

func compareVersions(a, b string) int {
	return cmp.Or(slices.Compare(parseVersion(a), parseVersion(b)), strings.Compare(a, b))
}

// parseVersion returns the three numbers of a version, nil if it is none.
func parseVersion(s string) []int {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return nil
	}
	var out []int
	for _, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 || len(p) > 6 {
			return nil
		}
		out = append(out, n)
	}
	return out
}
