# SPDX-License-Identifier: Apache-2.0
#
# Everything runs from a clean clone with Go, make and (for demo and test) root. `make help` lists the targets.

GO        ?= go
BIN       := bin
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS   := -s -w -X main.version=$(VERSION)
BUILD     := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
LINT      := $(GO) tool -modfile=tools/go.mod golangci-lint
# CNIBUILD builds the reference plugins and cnitool, pinned in tools/cni/go.mod, into bin/cni
CNIBUILD  := $(BUILD) -modfile=tools/cni/go.mod -o $(BIN)/cni/ tool
COMMANDS  := $(notdir $(patsubst %/,%,$(dir $(wildcard cmd/*/main.go))))
# IMAGE is the name that `make image` gives the image, the one that the manifests ask for unless they are told another
IMAGE     ?= ghcr.io/weftnet/weft:dev
# PKG and RUN narrow `make test`: make test PKG=./ipam/... RUN=TestMerge
PKG       ?= ./...
RUN       ?=
# LARGE are the tests that the race detector crashes in (golang.org/issue/78156), or is too slow for; they run without it
LARGE     := ^(TestTenNodesFailure|TestCutIsBounded|TestPartitionAmongTheDead|TestScale)$$
# MODULES are those of tools and tests whose libraries are not Weft's
MODULES   := tools/image deploy integration/kubernetes
FUZZTIME  ?= 10s
# SIMS is how many runs of the simulator of address management `make test` has, SOAK how long `make soak` has new ones
SIMS      ?= 10000
SOAK      ?= 4h
# SCALE is how many nodes the meshes of `make scale` have
SCALE     ?= 1000 5000
# SEEDS is how many biased runs of the simulator a mutant may survive in `make mutants`, ARGS is for its other flags
SEEDS     ?= 5000
ARGS      ?=
BENCHTIME ?= 1s
# ROUNDS is how often each contender of `make bench` has its turn, COMPARE narrows what is compared, without writing the document:
# make bench ROUNDS=1 COMPARE='-measure udp -contenders weft,nebula'; make benchpolicy COMPARE='-policies 1000 -rounds 1' does likewise
ROUNDS    ?= 3
COMPARE   ?=
# NEBULA is the release to compare with (1.12, the first with offloads, needs a newer Go than Weft); empty: bin/nebula and
# bin/nebula-cert as they are, if they are there
NEBULA    ?= v1.11.1
# PODS is how many pods `make benchcni` has; with other than 1000 it writes no document
PODS      ?= 1000
TIMEOUT   ?= 25m

.DEFAULT_GOAL := build
.PHONY: build demo test lint fmt fuzz soak model mutants scale bench benchcni benchpolicy image manifests clean help $(addprefix $(BIN)/,$(COMMANDS))

build: $(addprefix $(BIN)/,$(COMMANDS)) ## Build the static binaries into bin/ (default)

# Go knows best what is out of date: the files are phony, the build cache makes a second run quick.
$(addprefix $(BIN)/,$(COMMANDS)):
	$(BUILD) -o $@ ./cmd/$(@F)

demo: build ## Bring up three hosts on this machine, connect six workloads, measure, prove the encryption, remove it all (root)
	$(BUILD) -o $(BIN)/demo ./integration/demo
	$(BIN)/demo --weft $(BIN)/weft

# The tests that hosts take part in need the binaries; scripts/race says why a few packages are tested in parts.
test: build ## Run all tests with the race detector, also those that build hosts in network namespaces (root)
	@set -eu; race=-race; cgo=1; \
	if ! printf '#include <stdlib.h>\nint main(void){return 0;}\n' | $$($(GO) env CC) -x c -o /dev/null - >/dev/null 2>&1; then \
		echo 'make test: no working C compiler found: running without the race detector' >&2; race=; cgo=0; \
	fi; \
	set -x; $(BUILD) -o $(BIN)/wireguard-go golang.zx2c4.com/wireguard; $(CNIBUILD); \
	WEFT_BIN=$(CURDIR)/$(BIN)/weft WEFT_WIREGUARD_GO=$(CURDIR)/$(BIN)/wireguard-go WEFT_CNI_BIN=$(CURDIR)/$(BIN)/weft-cni WEFT_CNI_REFERENCE=$(CURDIR)/$(BIN)/cni \
		CGO_ENABLED=$$cgo GO='$(GO)' RACE=$$race TIMEOUT=$(TIMEOUT) RUN='$(RUN)' scripts/race $$($(GO) list $(PKG)); \
	if [ -n "$$race" ]; then CGO_ENABLED=0 $(GO) test -timeout $(TIMEOUT) -run '$(or $(RUN),$(LARGE))' ./mesh ./internal/node; fi; \
	$(if $(RUN)$(filter-out ./...,$(PKG)),:,for m in $(MODULES); do CGO_ENABLED=0 $(GO) -C $$m test ./...; done); \
	$(if $(RUN)$(filter-out ./...,$(PKG)),:,CGO_ENABLED=0 $(GO) test -timeout $(TIMEOUT) -v -run '^(TestSimulation|TestCrashAtEveryCommit|TestReplaceAllNodes)$$' ./ipam -sim.runs=$(SIMS) -sim.crashes=20)

lint: ## Check style, correctness and import directions (golangci-lint, pinned in tools/go.mod), and that the portable TUN builds for macOS
	$(LINT) run
	@for m in $(MODULES); do (cd $$m && $(GO) tool -modfile='$(CURDIR)/tools/go.mod' golangci-lint run --build-tags e2e) || exit 1; done
	GOOS=darwin CGO_ENABLED=0 $(GO) vet ./router/tun/portable

fmt: ## Format the source
	$(LINT) fmt

fuzz: ## Fuzz every decoder for FUZZTIME each (default 10s)
	@GO='$(GO)' FUZZTIME='$(FUZZTIME)' scripts/fuzz

soak: build ## Run the tests of addresses, and of thirty daemons, on hosts at full length (root), then new schedules of their simulator for SOAK (default 4h), until one fails
	WEFT_BIN=$(CURDIR)/$(BIN)/weft CGO_ENABLED=0 $(GO) test -timeout 1h -v -run '^(TestKillUnderLoad|TestFleet|TestThirty|TestChain|TestPathFlips)$$' ./integration -soak
	CGO_ENABLED=0 $(GO) test -timeout 0 -v -run '^TestSimulationSoak$$' ./ipam -sim.soak=$(SOAK)

model: ## Check the models of grant, takeover and the votes on retirements with spin (QUICK=1: the small ones only)
	@scripts/model

mutants: ## Break the rules of the IPAM one line at a time: the simulator must notice each (SEEDS=5000, ARGS='-run NAME')
	$(GO) run ./ipam/mutants -seeds $(SEEDS) $(ARGS)

scale: ## Simulate a mesh of each size in SCALE (default 1000 and 5000 nodes) in one process, and write what it takes into docs/scale.md (hours)
	@for n in $(SCALE); do \
		GO='$(GO)' scripts/scale $$n || exit 1; \
	done

bench: build ## Compare Weft with its like on two hosts, write docs/benchmarks.md, then run the Go benchmarks (root)
	$(BUILD) -o $(BIN)/wireguard-go golang.zx2c4.com/wireguard
	@if [ -n '$(NEBULA)' ]; then GOBIN='$(CURDIR)/$(BIN)' CGO_ENABLED=0 $(GO) install -trimpath \
		github.com/slackhq/nebula/cmd/nebula@$(NEBULA) github.com/slackhq/nebula/cmd/nebula-cert@$(NEBULA) || \
		echo 'make bench: Nebula $(NEBULA) cannot be built here: going on without' >&2; fi
	$(BUILD) -o $(BIN)/bench ./integration/bench
	$(BIN)/bench -weft $(BIN)/weft -wireguard-go $(BIN)/wireguard-go -nebula $(BIN)/nebula -rounds $(ROUNDS) \
		$(if $(COMPARE),$(COMPARE),-o docs/benchmarks.md)
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) $(PKG)

benchcni: build ## Compare the CNI plugin with the reference plugins, pod by pod, for PODS pods (default 1000), and write docs/benchmarks-cni.md (root)
	$(CNIBUILD)
	$(BUILD) -o $(BIN)/bench ./integration/bench
	$(BIN)/bench cni -weft $(BIN)/weft -weft-cni $(BIN)/weft-cni -reference $(BIN)/cni -pods $(PODS) $(if $(filter 1000,$(PODS)),-o docs/benchmarks-cni.md)

benchpolicy: build ## Measure what 10,000 network policies take and cost, on two hosts with 100 workloads each, and write docs/benchmarks-policy.md (root; seven minutes)
	$(BUILD) -o $(BIN)/bench ./integration/bench
	$(BIN)/bench policy -weft $(BIN)/weft $(if $(COMPARE),$(COMPARE),-o docs/benchmarks-policy.md)

# E2E narrows `make e2e`: make e2e E2E='-run TestUp', E2E='-run TestAPIServerAway -away 5m', E2E='-run TestUpstream -focus DNS'
E2E       ?=

e2e: image ## Try the image and the manifest in a real Kubernetes cluster of namespaces (root; builds Kubernetes first, ten minutes; E2E='-run TestUp')
	$(GO) -C integration/kubernetes run ./build -o '$(CURDIR)/$(BIN)/e2e'
	WEFT_E2E='$(CURDIR)/$(BIN)/e2e' WEFT_E2E_IMAGE='$(CURDIR)/$(BIN)/weft-image.tar' CGO_ENABLED=0 \
		$(GO) -C integration/kubernetes test -tags e2e -count 1 -v -timeout 4h . $(E2E)

manifests: ## Write deploy/kubernetes/weft.yaml anew from the Helm chart
	$(GO) -C deploy test -count 1 -run '^TestManifestIsTheChart$$' -update .

# PORTMAP is the CNI project's plugin for hostPort, which the image brings for nodes that have none; its version is in tools/cni/go.mod
PORTMAP   := github.com/containernetworking/plugins/plugins/meta/portmap

# Without what Go would note of the checkout, so that the Dockerfile and another clone of the same version make the same files.
image: ## Pack the container image for amd64 and arm64 into bin/weft-image.tar, without a container engine (IMAGE=name:tag)
	@set -eu; rm -rf $(BIN)/image; for arch in amd64 arm64; do \
		mkdir -p $(BIN)/image/$$arch; \
		GOOS=linux GOARCH=$$arch $(BUILD) -buildvcs=false -o $(BIN)/image/$$arch/ ./cmd/...; \
		GOOS=linux GOARCH=$$arch $(BUILD) -buildvcs=false -modfile=tools/cni/go.mod -o $(BIN)/image/$$arch/ $(PORTMAP); \
	done
	$(GO) -C tools/image run . licenses -o '$(CURDIR)/$(BIN)/image/licenses' -C '$(CURDIR)' ./cmd/...
	$(GO) -C tools/image run . licenses -o '$(CURDIR)/$(BIN)/image/licenses' -C '$(CURDIR)' -modfile tools/cni/go.mod $(PORTMAP)
	$(GO) -C tools/image run . pack -o '$(CURDIR)/$(BIN)/weft-image.tar' -name '$(IMAGE)' -version '$(VERSION)' \
		-licenses '$(CURDIR)/$(BIN)/image/licenses' amd64='$(CURDIR)/$(BIN)/image/amd64' arm64='$(CURDIR)/$(BIN)/image/arm64'
	@ls -l $(BIN)/weft-image.tar

clean: ## Remove what was built
	rm -rf $(BIN)

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
