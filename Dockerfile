# SPDX-License-Identifier: Apache-2.0

# The image holds static files, which are weft, its CNI plugin and the CNI project's portmap for nodes without one, and the licences of what is
# linked into them: no shell, no libc, no package manager.
# `make image` makes the same one without a container engine, for amd64 and arm64.
#
#   docker build --build-arg VERSION=v0.1.0 -t weft .
#   docker run -d --name weft --privileged --network host --pid host \
#       -v /var/lib/weft:/var/lib/weft -v /run/weft:/run/weft -v /run/netns:/run/netns:rslave \
#       weft launch
#
# The daemon runs as root in the host's network namespace because there is no lesser way to create a TUN device, routes
# and nftables rules (CAP_NET_ADMIN), to enter the network namespace of a workload (CAP_SYS_ADMIN) or to find one by its
# process id (CAP_SYS_PTRACE); --privileged because container engines otherwise mount /proc/sys read-only, where the
# host's forwarding is switched on. So the image names no other user. The client needs none of this, only access to the
# socket in /run/weft.

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN mkdir -p /out/bin && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /out/bin/ ./cmd/...
ARG PORTMAP=github.com/containernetworking/plugins/plugins/meta/portmap
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -modfile=tools/cni/go.mod -o /out/bin/ $PORTMAP
RUN go -C tools/image run . licenses -o /out/licenses -C /src ./cmd/... && \
    go -C tools/image run . licenses -o /out/licenses -C /src -modfile tools/cni/go.mod $PORTMAP

FROM scratch
ARG VERSION=dev
LABEL org.opencontainers.image.title="weft" \
      org.opencontainers.image.description="An encrypted container network in one file" \
      org.opencontainers.image.source="https://github.com/weftnet/weft" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /out/licenses/ /licenses/
COPY --from=build /out/bin/ /usr/local/bin/
ENV PATH=/usr/local/bin
ENTRYPOINT ["/usr/local/bin/weft"]
CMD ["help"]
