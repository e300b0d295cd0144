// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"
)

// Identity is what network policies know a workload by, on hosts without Kubernetes.
type Identity struct {
	Namespace string            `json:"namespace,omitempty"` // of policies, not of the kernel
	Name      string            `json:"name,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Ports     []NamedPort       `json:"ports,omitempty"`
}

// NamedPort is a port that policies may call by its name.
type NamedPort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"` // tcp, udp or sctp
	Port     uint16 `json:"port"`
}

// LabelRequest asks to change the labels of a workload, which is called by its ID, its name for policies, its pod or an address.
type LabelRequest struct {
	Workload string            `json:"workload"`
	Set      map[string]string `json:"set,omitempty"`
	Remove   []string          `json:"remove,omitempty"`
}

// Labels is the part of [Service] about labels of workloads.
type Labels interface {
	// Label returns once policies know the workload by its new labels on this host.
	Label(ctx context.Context, r LabelRequest) (Workload, error)
}

// Label changes the labels of a workload.
func (c *Client) Label(ctx context.Context, r LabelRequest) (w Workload, err error) {
	return w, c.call(ctx, http.MethodPost, "label", r, &w)
}

func serveLabels(mux *http.ServeMux, s Labels) { post(mux, "label", s.Label) }
