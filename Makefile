# Every job of CI calls one of these targets; `make` alone lists them.
# Whatever is downloaded or built for reuse lives in CHANDLER_CACHE, outside the checkout.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export CHANDLER_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/chandler
override CHANDLER_CACHE := $(abspath $(CHANDLER_CACHE))
export CARGO_TARGET_DIR ?= $(CHANDLER_CACHE)/target
export CARGO_TERM_PROGRESS_WHEN ?= never

# The cluster of the end-to-end stories; `make cluster-up NAME=lab` makes another one beside it.
NAME ?= dev
# Options of the cluster, such as CLUSTER_FLAGS="--gpus 4 --fake-nodes 50 --audit".
CLUSTER_FLAGS ?=
# One story by a part of its name: make e2e STORY=operator_killed
STORY ?=

##@ What a person runs

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: ## A cluster, Chandler in it, a model deployed, an answer (CLUSTER=existing|kind|k3d for your own cluster)
	hack/quickstart

test: ## Everything: lints, unit and golden tests, chart, images, stories on a cluster of their own
	hack/test

##@ The cluster

cluster-up: ## A real Kubernetes on this machine; prints the kubeconfig's path (NAME=dev CLUSTER_FLAGS=…)
	e2e/cluster/cluster up --name $(NAME) $(CLUSTER_FLAGS)

cluster-down: ## Ends it; leaves no process, mount, bridge, namespace or table behind
	e2e/cluster/cluster down --name $(NAME)

##@ Images

images: ## OCI images of operator, runtime and hub stand-in under build/images (ARCH=amd64)
	hack/images

images-load: ## Imports them into a cluster (CLUSTER=kind|k3d NAME=…; default: the cluster NAME of cluster-up)
	hack/images-load

images-push: ## Pushes them (REGISTRY=registry.example.com/team)
	hack/images-push $(REGISTRY)

runtime-cuda: ## The runtime with code for NVIDIA GPUs, on any machine; its image: hack/images runtime-cuda
	hack/runtime-cuda

images-reproducible: ## Builds them twice in different places and compares the digests
	hack/images-reproducible

##@ Checks, from quick to long

check: fmt clippy deny ## Format, lints, licences and sources

own-target:
	hack/own-target

fmt:
	cargo fmt --all --check

clippy: own-target
	cargo clippy --workspace --all-targets --locked -- -D warnings

deny: ## Licences, bans and sources of all dependencies
	hack/deny

unit: own-target ## Unit, golden and in-process tests; no cluster needed
	model=$$(hack/demo-model); registry=$$(hack/xinference-registry); suite=$$(hack/json-schema-suite); tokenizer=$$(hack/llama-tokenizer); CHANDLER_LLAMA_TOKENIZER=$$tokenizer CHANDLER_JSON_SCHEMA_SUITE=$$suite CHANDLER_DEMO_MODEL=$$model CHANDLER_XINFERENCE_REGISTRY=$$registry cargo test --locked

cuda-emulated: own-target ## The CUDA kernels compiled for this machine's processor, for tests without a card; prints the path
	@hack/cuda-emulated

cuda-kernels: ## Compiles the kernels for NVIDIA GPUs and shows what each takes of one; brings the compiler from PyPI
	hack/cuda-kernels

# Of the same features as the program of `hack/runtime-cuda --debug`, so that it is compiled once.
cuda-test: own-target ## Kernels and CUDA backend on a card that is played on the host; the program with code for GPUs on a machine without
	fatbin=$$(hack/cuda-kernels); played=$$(hack/cuda-emulated); model=$$(hack/demo-model); \
	export CHANDLER_DEMO_MODEL=$$model CHANDLER_KERNELS_FATBIN=$$fatbin CHANDLER_EMULATED_KERNELS=$$(realpath $$played); \
	cargo clippy --locked -p chandler-runtime --all-targets --features cuda,emulated-card -- -D warnings; \
	cargo test --locked -p chandler-runtime --features cuda,emulated-card,fake-model --test cuda --test kernels
	hack/runtime-cuda --debug

hub-test: own-target ## Both official hub clients against the hub stand-in, and the runtime's fetch against its faults
	cargo build --locked -p chandler-runtime
	CHANDLER_RUNTIME=$$(realpath $(CARGO_TARGET_DIR))/debug/chandler-runtime cargo test --locked -p chandler-e2e --lib --bins --test hub -- --nocapture

client-test: own-target ## Unmodified clients of others against a server of this checkout
	hack/client-test

schemathesis: own-target ## Asks a server for everything that its OpenAPI document says (EXAMPLES=50)
	hack/schemathesis $(EXAMPLES)

fuzz: own-target ## Random input for all that reads others' files, requests and answers (TIME=60 seconds for each TARGET=name)
	hack/fuzz $(or $(TIME),60) $(TARGET)

soak: own-target ## An hour of clients that cancel, stall and lie; nothing may be left of them (TIME=3600 seconds)
	hack/soak $(TIME)

go-test: ## Unit tests of the Go programs: cluster, image packing, schemas, rights, chart, what GitOps tools take
	for folder in e2e/cluster hack/image hack/schemas hack/rights hack/chart-check gitops; do (cd $$folder && go vet ./... && CGO_ENABLED=0 go test -v ./...); done

chart-test: ## helm lint, rendered snapshots, kubeconform, schema refusals, metrics, selectors
	hack/chart-test

generate: ## Rewrites what is generated: CRDs, their copies in the chart, the field reference, the files for GitOps tools
	hack/generate

verify: generate check ## Generated files are fresh and the tree is clean
	git diff --exit-code

quickstart-test: ## The quickstart on the cluster NAME, on one "of yours", and where it must stop
	e2e/quickstart_test/run

install-test: ## `kubectl apply -f` of the one file on the cluster NAME, which must be without Chandler
	e2e/install_test/run

cluster-test: ## Clusters come and go, killed at many moments, and leave nothing (takes its own names)
	e2e/cluster/lifecycle_test/run

e2e: ## The stories, on the cluster NAME (STORY=part_of_a_name for one)
	hack/e2e $(STORY)

e2e-engines: ## vLLM and Transformers from PyPI, answering on a cluster of their own (STORY=…; takes 11 GB of disk, not part of `make test`)
	hack/e2e-engines $(STORY)

rights: ## After the stories on a cluster with --audit: rights of the operator that nothing used, requests that were forbidden
	hack/unused-rights

faults: ## The operator killed, refused and cut off at hundreds of its writes, each field walked (POINTS=0 for all writes, STORY=…)
	hack/on-played-cluster debug debug faults $(if $(POINTS),--points=$(POINTS)) $(if $(STORY),--story="$(STORY)")

faults-short: ## The same at 40 of them, and every eighth field
	hack/on-played-cluster debug debug faults --points=40 --every-field=8

bench-operator: ## What the operator takes for thousands of models (N=10000)
	hack/on-played-cluster release release bench-operator $(if $(N),--count=$(N))

bench-operator-short: ## The same for 100 models, in about a minute
	hack/on-played-cluster release debug bench-operator --count=100 --changes=20 --seconds=5 --failing=10

bench-fetch: own-target ## The runtime's fetch beside curl: one 2 GB file and 200 small ones (BYTES=200M ROUNDS=1 for a short look)
	hack/bench-fetch

bench-cpu: own-target ## The runtime beside llama.cpp, mistral.rs and vLLM on this processor (ROUNDS=1 FIGURES="q4_1 start" for a short look; takes 1 GB of disk, 5 GB with vLLM)
	hack/bench-cpu

bench-vision: own-target ## Pictures with the runtime beside Transformers on this processor (ROUNDS=1 for a short look; takes 12 GB of disk)
	hack/bench-vision

gpu-pack: ## Packs what the next two need on a machine with a GPU and without Rust: build/gpu.tar.xz
	hack/gpu-pack

gpu-check: ## On a machine with an NVIDIA GPU: whether the runtime computes rightly on it, in ten minutes
	hack/gpu-check

gpu-bench: ## On a machine with an NVIDIA GPU: how fast, against what the card can do, in ten minutes
	hack/gpu-bench

.PHONY: cuda-kernels cuda-test runtime-cuda gpu-pack gpu-check gpu-bench bench-cpu bench-fetch bench-vision client-test schemathesis faults faults-short bench-operator bench-operator-short own-target hub-test help quickstart test cluster-up cluster-down images images-load images-push images-reproducible check fmt clippy deny unit go-test chart-test generate verify quickstart-test install-test cluster-test e2e e2e-engines rights soak fuzz
