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
	model=$$(hack/demo-model); registry=$$(hack/xinference-registry); CHANDLER_DEMO_MODEL=$$model CHANDLER_XINFERENCE_REGISTRY=$$registry cargo test --locked

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
	hack/on-played-cluster debug faults $(if $(POINTS),--points=$(POINTS)) $(if $(STORY),--story="$(STORY)")

faults-short: ## The same at 40 of them, and every eighth field
	hack/on-played-cluster debug faults --points=40 --every-field=8

bench-operator: ## What the operator takes for thousands of models (N=10000)
	hack/on-played-cluster release bench-operator $(if $(N),--count=$(N))

.PHONY: faults faults-short bench-operator own-target help quickstart test cluster-up cluster-down images images-load images-push images-reproducible check fmt clippy deny unit go-test chart-test generate verify quickstart-test install-test cluster-test e2e e2e-engines rights
