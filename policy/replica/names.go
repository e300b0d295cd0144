// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"fmt"
	"strings"

	"github.com/weftnet/weft/policy"
)

const (
	maxDNSLabel  = 63  // bytes, RFC 1123
	maxSubdomain = 253 // likewise
	maxLabelName = 63  // bytes of a label's key, behind its prefix, and of its value
	maxPortName  = 15  // bytes, RFC 6335
)

// DNSLabel tells whether s is a name as namespaces have: 1 to 63 lower-case letters, digits and hyphens, the first and the last
// no hyphen.
func DNSLabel(s string) bool { return len(s) <= maxDNSLabel && lowerName(s) }

func lowerName(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// ObjectName tells whether s is a name as most other objects have: 1 to 253 lower-case letters, digits, hyphens and dots, the first and
// the last of what is between two dots no hyphen.
func ObjectName(s string) bool {
	if len(s) > maxSubdomain {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !lowerName(part) {
			return false
		}
	}
	return true
}

// CheckLabel refuses what cannot be a label in Kubernetes.
func CheckLabel(key, value string) error {
	prefix, name, prefixed := strings.Cut(key, "/")
	if !prefixed {
		prefix, name = "", key
	}
	if prefixed && !ObjectName(prefix) || name == "" || !labelText(name) {
		return fmt.Errorf("%.330q is no key of a label; it has to be of 1 to %d letters, digits, hyphens, dots and underscores, the first and the last a letter or digit, "+
			"behind example.com/ if it is to have a prefix", key, maxLabelName)
	}
	if value != "" && !labelText(value) {
		return fmt.Errorf("%.80q is no value of the label %s; it has to be empty, or of up to %d letters, digits, hyphens, dots and underscores, the first and the last a letter or digit",
			value, key, maxLabelName)
	}
	return nil
}

func labelText(s string) bool {
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }
	if len(s) > maxLabelName || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !alnum(c) && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

// CheckPort refuses what cannot be a port of a pod in Kubernetes.
func CheckPort(p Port) error {
	letter, last := false, byte('-')
	bad := p.Name == "" || len(p.Name) > maxPortName
	for i := range len(p.Name) {
		c := p.Name[i]
		letter = letter || c >= 'a' && c <= 'z'
		bad = bad || c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') || c == '-' && last == '-'
		last = c
	}
	if bad || !letter || last == '-' {
		return fmt.Errorf("%.40q is no name of a port; it has to be of 1 to %d lower-case letters, digits and single hyphens between them, one of them a letter", p.Name, maxPortName)
	}
	if p.Port == 0 {
		return fmt.Errorf("the port %s has no number; give one from 1 to 65535", p.Name)
	}
	switch p.Protocol {
	case policy.TCP, policy.UDP, policy.SCTP:
		return nil
	}
	return fmt.Errorf("the port %s is of no protocol that has ports; give tcp, udp or sctp", p.Name)
}
