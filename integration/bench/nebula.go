// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/weftnet/weft/integration/lab"
)

const (
	nebulaPort = 4242
	nebulaMTU  = 1440 // what 1500 leaves: IPv4 20, UDP 8, its header 16, its tag 16
)

// nebulaConfig is Nebula's configuration with its defaults for what costs time: AES, offloads where it has them, one routine
// (two are not faster on two cores), 64 packets a batch; but with the socket buffers that its manual proposes, which speed it
// up greatly, and which the others ask for by themselves. There is no lighthouse: both hosts know each other.
const nebulaConfig = `pki: {ca: %[1]s/ca.crt, cert: %[1]s/host%[2]d.crt, key: %[1]s/host%[2]d.key}
static_host_map: {"%[3]v": ["%[4]v"]}
lighthouse: {am_lighthouse: false, hosts: []}
listen: {host: 0.0.0.0, port: %[5]d, read_buffer: 10485760, write_buffer: 10485760}
tun: {dev: nebula1, mtu: %[6]d}
logging: {level: warning}
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
`

// nebula makes the certificates and the configuration.
func (b *bench) nebula() (*contender, error) {
	dir := b.hosts[0].Dir()
	cert := filepath.Join(filepath.Dir(b.nebulaBinary), "nebula-cert")
	if err := b.tool(cert, "ca", "-name", "bench", "-out-crt", filepath.Join(dir, "ca.crt"), "-out-key", filepath.Join(dir, "ca.key")); err != nil {
		return nil, err
	}
	for i := range b.hosts {
		base := filepath.Join(dir, fmt.Sprintf("host%d", i+1))
		err := b.tool(cert, "sign", "-name", fmt.Sprintf("host%d", i+1), "-networks", own(3, i).String(),
			"-ca-crt", filepath.Join(dir, "ca.crt"), "-ca-key", filepath.Join(dir, "ca.key"), "-out-crt", base+".crt", "-out-key", base+".key")
		if err != nil {
			return nil, err
		}
		config := fmt.Sprintf(nebulaConfig, dir, i+1, own(3, 1-i).Addr(),
			netip.AddrPortFrom(b.hosts[1-i].Link().V4(), nebulaPort), nebulaPort, nebulaMTU)
		if err := os.WriteFile(base+".yml", []byte(config), 0o600); err != nil {
			return nil, err
		}
	}
	run := &processes{}
	return &contender{
		name: nebulaName, from: b.hosts[0].Namespace, to: b.hosts[1].Namespace, addr: own(3, 1).Addr(), samples: samples{},
		kinds: without(common(), fairKind),
		start: func() error {
			for i, h := range b.hosts {
				config := filepath.Join(dir, fmt.Sprintf("host%d.yml", i+1))
				if err := run.start(h, b.nebulaBinary, "-config", config); err != nil {
					return err
				}
			}
			return nil
		},
		check: nothing, stop: run.stop, pids: run.pids,
	}, nil
}

// tool runs a program on the first host and returns an error unless it ends well.
func (b *bench) tool(path string, args ...string) error {
	ctx, cancel := context.WithTimeout(b.ctx, within)
	defer cancel()
	r, err := b.hosts[0].Run(ctx, lab.Command{Path: path, Args: args})
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s ended with code %d: %s", filepath.Base(path), r.Code, strings.TrimSpace(r.Stderr+r.Stdout))
	}
	return err
}

// processes are those of a contender, while it has its turn.
type processes struct{ running []*lab.Process }

func (p *processes) start(h *lab.Host, path string, args ...string) error {
	proc, err := h.Start(lab.Command{Path: path, Args: args})
	if err == nil {
		p.running = append(p.running, proc)
	}
	return err
}

func (p *processes) stop() {
	for _, proc := range p.running {
		proc.Kill()
	}
	p.running = nil
}

func (p *processes) pids() []int {
	var out []int
	for _, proc := range p.running {
		out = append(out, proc.Pid())
	}
	return out
}

// version asks a program for its version and returns the first line of the answer.
func (b *bench) version(path, flag string) (string, error) {
	ctx, cancel := context.WithTimeout(b.ctx, within)
	defer cancel()
	r, err := b.hosts[0].Run(ctx, lab.Command{Path: path, Args: []string{flag}})
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(strings.TrimSpace(r.Stdout), "\n")
	if line == "" {
		return "", errors.New(filepath.Base(path) + " tells no version")
	}
	return line, nil
}
