// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The probes of the kubelet are asked by weft kube probe, which runs in the pod, over an abstract unix socket (unix(7)) with the name of the
// pod: during an update two pods of a host share its network, so a port would be answered by the wrong one, and a file in their common
// directory, too.

// probePatience bounds one probe.
const probePatience = 2 * time.Second

// health is what a probe is told.
type health struct {
	Ready bool   `json:"ready"`
	Text  string `json:"text"`
}

func probeSocket(pod string) string { return "@weft/kube/" + pod }

// ServeProbes answers Probe for this pod until the function that it returns is called.
func (a *Agent) ServeProbes(ctx context.Context, pod string) (stop func() error, err error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", probeSocket(pod))
	if err != nil {
		return nil, fmt.Errorf("listening for the probes of the kubelet: %w; does this pod run a second time in this network namespace?", err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(100 * time.Millisecond) // out of descriptors, say
				continue
			}
			_ = c.SetDeadline(time.Now().Add(probePatience))
			var h health
			h.Ready, h.Text = a.Health()
			_ = json.NewEncoder(c).Encode(h)
			_ = c.Close()
		}
	})
	return func() error {
		err := ln.Close()
		serving.Wait()
		return err
	}, nil
}

// Probe asks the daemon of a pod how it is: an error says that it does not answer.
func Probe(ctx context.Context, pod string) (ready bool, text string, err error) {
	dialer := net.Dialer{Timeout: probePatience}
	c, err := dialer.DialContext(ctx, "unix", probeSocket(pod))
	if err != nil {
		return false, "", fmt.Errorf("the daemon of pod %s does not answer: %w; look into its log", pod, err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(probePatience))
	var h health
	if err := json.NewDecoder(io.LimitReader(c, 4096)).Decode(&h); err != nil {
		return false, "", fmt.Errorf("the daemon of pod %s does not answer: %w; look into its log", pod, err)
	}
	return h.Ready, h.Text, nil
}
