// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"

	"github.com/weftnet/weft/cni"
)

// maxRelease bounds a request of GC in bytes: it names all containers of the host.
const maxRelease = 2 << 20

// CNI is the part of [Service] that container runtimes use, by the plugin. Its errors may be of type [*cni.Error]: the client returns them as such.
type CNI interface {
	CNIAttach(ctx context.Context, r cni.Request) (cni.Attachment, error)
	CNICheck(ctx context.Context, r cni.CheckRequest) error
	CNIDetach(ctx context.Context, r cni.Release) error
}

// CNIAttach asks for an interface, or for addresses alone.
func (c *Client) CNIAttach(ctx context.Context, r cni.Request) (a cni.Attachment, err error) {
	return a, c.call(ctx, http.MethodPost, "cni/attach", r, &a)
}

// CNICheck asks whether an attachment is as it should be, or whether one could be made.
func (c *Client) CNICheck(ctx context.Context, r cni.CheckRequest) error {
	return c.call(ctx, http.MethodPost, "cni/check", r, nil)
}

// CNIDetach takes attachments away.
func (c *Client) CNIDetach(ctx context.Context, r cni.Release) error {
	return c.call(ctx, http.MethodPost, "cni/detach", r, nil)
}

// CNIOrigin tells for what container a workload was attached by a runtime.
type CNIOrigin struct {
	Network      string `json:"network"` // name of the network configuration
	ContainerID  string `json:"container_id"`
	PodNamespace string `json:"pod_namespace,omitempty"`
	PodName      string `json:"pod_name,omitempty"`
	PodUID       string `json:"pod_uid,omitempty"`
}

func serveCNI(mux *http.ServeMux, s CNI) {
	none := func(err error) (struct{}, error) { return struct{}{}, err }
	post(mux, "cni/attach", s.CNIAttach)
	post(mux, "cni/check", func(ctx context.Context, r cni.CheckRequest) (struct{}, error) { return none(s.CNICheck(ctx, r)) })
	postUpTo(mux, "cni/detach", maxRelease, func(ctx context.Context, r cni.Release) (struct{}, error) { return none(s.CNIDetach(ctx, r)) })
}
