// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
)

const (
	current = "1.1.0" // version of the specification
	oldest  = "0.3.0"
	// maxVersion bounds what a runtime may call its version.
	maxVersion = 32
)

// versions lists what the plugin answers in, the oldest first.
func versions() []string { return []string{oldest, "0.3.1", "0.4.0", "1.0.0", current} }

// since reports whether the version v of the specification has what came with first. Both are of versions().
func since(v, first string) bool {
	return slices.Index(versions(), v) >= slices.Index(versions(), first)
}

// chosenVersion is the version in which verb, which came with first, is asked for and answered.
func (c *config) chosenVersion(verb, first string) (string, error) {
	v := "0.1.0" // of configurations that do not say it
	if raw, ok := c.keys["cniVersion"]; ok {
		if json.Unmarshal(raw, &v) != nil {
			return "", &Error{CodeDecode, "cniVersion is " + quoted(string(raw)), `it has to be a string, as "` + current + `"`}
		}
	}
	if !slices.Contains(versions(), v) {
		return "", &Error{CodeVersion, "cniVersion " + quoted(v) + " is not one that weft has", "set it to one of " + strings.Join(versions(), ", ")}
	}
	if !since(v, first) {
		return "", &Error{CodeVersion, verb + " is not in version " + v + " of the specification", "set cniVersion to " + first + " or later"}
	}
	return v, nil
}

// answerVersion answers VERSION: also where standard input has nothing of use, as it tells what to write there.
func (c *call) answerVersion() error {
	out := struct {
		Version   string   `json:"cniVersion"`
		Supported []string `json:"supportedVersions"`
	}{current, versions()}
	var in struct {
		Version string `json:"cniVersion"`
	}
	raw, err := io.ReadAll(io.LimitReader(c.env.Stdin, maxStdin))
	if err == nil && json.Unmarshal(raw, &in) == nil && dotted(in.Version) {
		out.Version = in.Version
	}
	return c.print(out)
}

// dotted reports whether v looks like a version.
func dotted(v string) bool {
	return v != "" && len(v) <= maxVersion && strings.Trim(v, "0123456789.") == ""
}
