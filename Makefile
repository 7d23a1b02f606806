# Needs Go, git, make and gcc (for the race detector). Everything else is built
# into bin/, in the versions given here.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BIN     := $(CURDIR)/bin
LDFLAGS := -s -w -X github.com/homeiac/homelab/internal/version.version=$(VERSION)

BUF_VERSION                := v1.75.0
PROTOC_GEN_GO_VERSION      := v1.36.12
PROTOC_GEN_GO_GRPC_VERSION := v1.6.2
GOLANGCI_LINT_VERSION      := v2.15.0
NFPM_VERSION               := v2.45.2
CYCLONEDX_GOMOD_VERSION    := v1.10.0

BUF                := bin/.buf-$(BUF_VERSION)
PROTOC_GEN_GO      := bin/.protoc-gen-go-$(PROTOC_GEN_GO_VERSION)
PROTOC_GEN_GO_GRPC := bin/.protoc-gen-go-grpc-$(PROTOC_GEN_GO_GRPC_VERSION)
GOLANGCI_LINT      := bin/.golangci-lint-$(GOLANGCI_LINT_VERSION)
NFPM               := bin/.nfpm-$(NFPM_VERSION)
CYCLONEDX_GOMOD    := bin/.cyclonedx-gomod-$(CYCLONEDX_GOMOD_VERSION)

.PHONY: all build dist dist-check tools generate check-generated lint test fuzz e2e bench soak demo scenarios clean

all: generate lint test

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ \
		./cli/hlctl ./agent/hl-agent ./controller/hl-controller ./lab/hl-lab

# All that is released, into dist/: programs, packages, completions, man pages, a bill of
# materials, checksums.
dist: $(NFPM) $(CYCLONEDX_GOMOD)
	VERSION='$(VERSION)' deploy/packages/build.sh

# The commit, built in two folders, must give the same bytes, and what was built must be
# whole: programs, packages, checksums, bills of materials.
dist-check: $(NFPM) $(CYCLONEDX_GOMOD)
	deploy/packages/twice.sh

generate: $(BUF) $(PROTOC_GEN_GO) $(PROTOC_GEN_GO_GRPC)
	bin/buf generate

# Fails when gen/ is not what the protos give: changed, missing or left over.
check-generated: generate
	git diff --exit-code -- gen
	@left=$$(git ls-files --others --exclude-standard -- gen); \
	if [ -n "$$left" ]; then echo "generated but not checked in:"; echo "$$left"; exit 1; fi

lint: $(BUF) $(GOLANGCI_LINT)
	bin/buf lint
	bin/buf format --diff --exit-code
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go' ':!gen')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go vet -tags e2e,bench,soak,dist ./test/... ./internal/gossip
	go vet -tags manual ./internal/manual
	bin/golangci-lint run ./...

# The planner once more without the race detector: it starts no goroutine, and ten
# times as many random worlds are tried so.
test:
	GORACE=atexit_sleep_ms=0 go test -race -timeout 5m ./...
	go test -timeout 5m ./controller/plan

# What strangers send, looked for a short while for what was not thought of; what was
# found before is tried in every test. So many inputs instead of so many seconds: where
# the time ends, Go before 1.27 fails now and then with "context deadline exceeded" and
# no input (golang/go#75804). FUZZTIMES=20 looks twenty times as long. Not made smaller
# than it was found: that can take a minute for each input that is new.
FUZZTIMES := 1
fuzz_one = go test ./$(1) -run '^$$' -fuzz '^$(2)$$' -fuzztime $$(($(3) * $(FUZZTIMES)))x -fuzzminimizetime 1x
fuzz:
	$(call fuzz_one,agent/image,FuzzChecksumList,60000)
	$(call fuzz_one,agent/image,FuzzHead,60000)
	$(call fuzz_one,agent/image,FuzzUnpack,80000)
	$(call fuzz_one,internal/spec,FuzzParse,60000)
	$(call fuzz_one,agent/driver/proxmox/args,FuzzCreate,100000)
	$(call fuzz_one,agent/driver/proxmox/parse,FuzzVM,120000)
	$(call fuzz_one,agent/driver/proxmox/parse,FuzzOutputs,60000)
	$(call fuzz_one,cli,FuzzDotenv,15000)
	$(call fuzz_one,cli,FuzzFromHosts,20000)
	$(call fuzz_one,internal/config,FuzzParse,200000)
	$(call fuzz_one,internal/gossip,FuzzMeta,80000)
	$(call fuzz_one,internal/k3s,FuzzParseProbe,120000)
	$(call fuzz_one,internal/k3s,FuzzGuestTexts,80000)
	$(call fuzz_one,internal/mark,FuzzMark,300000)
	$(call fuzz_one,internal/rpc,FuzzParseToken,120000)
	$(call fuzz_one,internal/rpc,FuzzTrust,80000)

# Whole-system tests with real processes; they use the binaries in bin/.
e2e: build $(NFPM)
	go test -tags e2e -count 1 -timeout 30m ./test/...

# One line per figure, with its bound.
bench: build $(NFPM)
	go test -tags bench,e2e -count 1 -timeout 20m -v -run '^TestBench' ./test/... ./internal/gossip

# An hour under CPU load: no false alarm of the gossip. And a third of a million
# random fleets and faults against the planner.
soak: build
	go test -count 1 -timeout 60m ./controller/plan -run 'WhateverBreaks|MustNeverHappen|NeverAddsAStep' -rapid.checks 300000
	go test -tags soak -count 1 -timeout 90m -v -run '^TestSoak' ./test/... ./internal/gossip

demo: build
	bin/hl-lab tour

# The validation scenarios, each from nothing.
scenarios: build
	bin/hl-lab demo

clean:
	rm -rf bin dist

tools: $(BUF) $(PROTOC_GEN_GO) $(PROTOC_GEN_GO_GRPC) $(GOLANGCI_LINT)

# install NAME, PACKAGE, VERSION: the stamp of another version is another file,
# so a tool is built again exactly when its version here changes.
define install
	@mkdir -p bin
	@go version -m bin/$(1) 2>/dev/null | grep -qE '\smod\s+\S+\s+$(3)(\s|$$)' || \
		{ echo "building $(1) $(3)"; GOBIN=$(BIN) GOFLAGS= go install $(2)@$(3); }
	@rm -f bin/.$(1)-v*
	@touch $@
endef

$(BUF):
	$(call install,buf,github.com/bufbuild/buf/cmd/buf,$(BUF_VERSION))
$(PROTOC_GEN_GO):
	$(call install,protoc-gen-go,google.golang.org/protobuf/cmd/protoc-gen-go,$(PROTOC_GEN_GO_VERSION))
$(PROTOC_GEN_GO_GRPC):
	$(call install,protoc-gen-go-grpc,google.golang.org/grpc/cmd/protoc-gen-go-grpc,$(PROTOC_GEN_GO_GRPC_VERSION))
$(GOLANGCI_LINT):
	$(call install,golangci-lint,github.com/golangci/golangci-lint/v2/cmd/golangci-lint,$(GOLANGCI_LINT_VERSION))
$(NFPM):
	$(call install,nfpm,github.com/goreleaser/nfpm/v2/cmd/nfpm,$(NFPM_VERSION))
$(CYCLONEDX_GOMOD):
	$(call install,cyclonedx-gomod,github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod,$(CYCLONEDX_GOMOD_VERSION))
