// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Check says what is wrong with an endpoint, in one line that names it.
func (e Endpoint) Check() error {
	if err := e.check(); err != nil {
		return fmt.Errorf("endpoint %s: %w", plain(e.Name.String()), err)
	}
	return nil
}

func (e Endpoint) check() error {
	if err := checkLabelName("its namespace", e.Namespace); err != nil {
		return err
	}
	if err := checkName("its name", e.Name.Name); err != nil {
		return err
	}
	if len(e.ID) > MaxName || len(e.Node) > MaxName {
		return fmt.Errorf("its ID or its node's name has more than %d bytes", MaxName)
	}
	if err := checkLabels(e.Labels); err != nil {
		return err
	}
	if len(e.Addrs) > 2 {
		return fmt.Errorf("it has %d addresses: at most one of IPv4 and one of IPv6", len(e.Addrs))
	}
	for i, a := range e.Addrs {
		if err := checkAddr(a); err != nil {
			return err
		}
		if i > 0 && a.Is4() == e.Addrs[0].Is4() {
			return fmt.Errorf("it has the addresses %v and %v: at most one of IPv4 and one of IPv6", e.Addrs[0], a)
		}
	}
	if n := len(e.Ports); n > MaxObject {
		return fmt.Errorf("it has %d named ports, more than %d", n, MaxObject)
	}
	for _, p := range e.Ports {
		if err := checkLabelName("a port's name", p.Name); err != nil {
			return err
		}
		if !p.Protocol.HasPorts() || p.Port == 0 {
			return fmt.Errorf("port %s is %v %d: use TCP, UDP or SCTP and a number from 1 to 65535", p.Name, p.Protocol, p.Port)
		}
	}
	return nil
}

// Check says what is wrong with a namespace, in one line that names it.
func (n Namespace) Check() error {
	err := checkLabelName("its name", n.Name)
	if err == nil {
		err = checkLabels(n.Labels)
	}
	if err != nil {
		return fmt.Errorf("namespace %s: %w", plain(n.Name), err)
	}
	return nil
}

// Check says what is wrong with a node, in one line that names it.
func (n Node) Check() error {
	err := checkName("its name", n.Name)
	if err == nil {
		err = checkLabels(n.Labels)
	}
	if err == nil && len(n.Addrs) > MaxObject {
		err = fmt.Errorf("it has %d addresses, more than %d", len(n.Addrs), MaxObject)
	}
	for _, a := range n.Addrs {
		if err == nil {
			err = checkAddr(a)
		}
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", plain(n.Name), err)
	}
	return nil
}

func checkAddr(a netip.Addr) error {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
		return fmt.Errorf("%v is no address of IPv4 or IPv6", a)
	}
	return nil
}

func checkLabels(l map[string]string) error {
	if len(l) > MaxObject {
		return fmt.Errorf("it has %d labels, more than %d", len(l), MaxObject)
	}
	for _, k := range slices.Sorted(maps.Keys(l)) {
		if err := checkKey(k); err != nil {
			return err
		}
		if err := checkValue(k, l[k]); err != nil {
			return err
		}
	}
	return nil
}

// checkKey checks a label's key: NAME or PREFIX/NAME.
func checkKey(key string) error {
	prefix, name, slash := strings.Cut(key, "/")
	if !slash {
		prefix, name = "", key
	}
	if len(key) > maxKey || slash && checkName("", prefix) != nil || checkLabelName("", name) != nil {
		return fmt.Errorf("%s is no label's key: use NAME or PREFIX/NAME, the name of at most %d letters, digits, '-', '_' and '.'", plain(key), MaxLabel)
	}
	return nil
}

func checkValue(key, value string) error {
	if value != "" && checkLabelName("", value) != nil {
		return fmt.Errorf("label %s: %s is no label's value: use at most %d letters, digits, '-', '_' and '.'", plain(key), plain(value), MaxLabel)
	}
	return nil
}

func checkName(what, s string) error      { return checkWord(what, s, MaxName) }
func checkLabelName(what, s string) error { return checkWord(what, s, MaxLabel) }

// checkWord refuses what is no word of letters, digits, '-', '_' and '.', with a letter or digit at both ends.
func checkWord(what, s string, most int) error {
	alnum := func(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
	ok := s != "" && len(s) <= most && alnum(s[0]) && alnum(s[len(s)-1])
	for i := 0; ok && i < len(s); i++ {
		ok = alnum(s[i]) || s[i] == '-' || s[i] == '_' || s[i] == '.'
	}
	if !ok {
		return fmt.Errorf("%s is %s: use at most %d letters, digits, '-', '_' and '.', with a letter or digit at both ends", what, plain(s), most)
	}
	return nil
}
