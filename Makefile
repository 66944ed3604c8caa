# Postern. `make run` starts the sample of config.hcl; `make test` runs everything that proves it.

AGENTS  := $(notdir $(patsubst %/main.go,%,$(wildcard plugins/*/main.go)))
TOOLS   := $(CURDIR)/bin/tools
VERSION ?= 0.1.0
LDFLAGS := -X main.version=$(VERSION)

BUF         := github.com/bufbuild/buf/cmd/buf@v1.75.0
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PROTOC_GO   := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
PROTOC_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2

.PHONY: build run test check generate bench eval-contentfilter corpora crash fire vm fuzz fuzz-short clean

build: ## the host at bin/postern, each agent at bin/agents/NAME
	@mkdir -p bin/agents
	go build -ldflags '$(LDFLAGS)' -o bin/postern ./cmd/postern
	go build -o bin/agents/ $(AGENTS:%=./plugins/%)

run: build ## the host with the repository's config.hcl, on loopback
	bin/postern serve --config config.hcl

test: build ## every test; those of the whole behind the others, since each drives many processes, four at a time, since they mostly wait, and without the race detector, which would see only the tests
	go test -race -vet=off -p 3 -timeout 15m $$(go list ./... | grep -v '/test$$')
	go test -vet=off -parallel 4 -timeout 15m ./test

check: ## formatting, vet, staticcheck, the protocol's rules
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'gofmt would change:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go vet -tags vm ./test ./host/internal/cgroup
	go mod verify
	$(TOOLS)/staticcheck ./...
	cd sdk/agentpb && $(TOOLS)/buf lint
	cd sdk/agentpb && $(TOOLS)/buf breaking --against ../released/1.0

check: $(TOOLS)/buf $(TOOLS)/staticcheck

generate: $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc ## Go code of the protocol, generated docs
	cd sdk/agentpb && PATH=$(TOOLS):$$PATH $(TOOLS)/buf generate --path postern
	go generate ./...

$(TOOLS)/buf:
	GOBIN=$(TOOLS) go install $(BUF)
$(TOOLS)/staticcheck:
	GOBIN=$(TOOLS) go install $(STATICCHECK)
$(TOOLS)/protoc-gen-go:
	GOBIN=$(TOOLS) go install $(PROTOC_GO)
$(TOOLS)/protoc-gen-go-grpc:
	GOBIN=$(TOOLS) go install $(PROTOC_GRPC)

bench: build ## what docs/performance.md shows: messages relayed, memory, agent events, commits
	go run ./bench
	go run ./bench -agents
	go run ./bench -latency
	go run ./bench -storm
	go run ./bench -idle
	go run ./bench -memory
	go run ./bench -swap
	go run ./bench -supervision
	go test -run xxx -bench Event -benchtime 50000x ./host/internal/agent
	go test -run xxx -bench Commit -benchtime 2s ./host/internal/queue

eval-contentfilter: ## the content filter beside bogofilter and SpamAssassin on mail split by source and time: docs/contentfilter.md
	@command -v bogofilter spamassassin >/dev/null || { echo 'apt-get install bogofilter spamassassin'; exit 1; }
	go run ./bench/contentfilter $(EVALFLAGS)

crash: build ## 1,000 kills under load, reconciled; 10,000 crashes of agents that leave nothing
	POSTERN_CRASH_ROUNDS=1000 go test -count 1 -v -timeout 60m -run TestCrash ./test
	POSTERN_CRASHES=10000 go test -count 1 -v -timeout 60m -run TestNothingLeaks ./host/internal/agent

corpora: build ## every message of the corpora through all agents together
	POSTERN_CORPORA=whole go test -count 1 -v -timeout 30m -run TestCorporaThroughAllAgents ./test

fire: build ## ten minutes of swaps under fire: upgrades, kills, stops and reloads under load; ten more of a host that has given up root
	POSTERN_FIRE=10m go test -count 1 -v -timeout 50m -run TestSwapUnderFire ./test

vm: ## what takes another machine, in virtual ones: control groups, systemd, the sandbox on other kernels. As root; half an hour
	test/vm/run small
	test/vm/run container
	test/vm/run systemd 6.12
	test/vm/run systemd

FUZZTIME ?= 30s
fuzz: ## every fuzzer in turn, FUZZTIME each, little of it for making what was found smaller
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read dir; do \
	  grep -ho '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -c6- | while read f; do \
	    echo "$$dir $$f"; go test -run xxx -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$dir || exit 1; \
	  done || exit 1; \
	done

# Fuzzers of what strangers, operators and agents send: verbs in every state, framing, addresses, configuration, answers.
SHORT := session:FuzzSession session:FuzzBDAT wire:FuzzFramer wire:FuzzParseCommand config:FuzzLoad pipeline:FuzzAnswer
fuzz-short: ## those, 500 inputs each: what CI has time for. Not by the clock: go test takes an input that is under way at its end for a failure
	@for f in $(SHORT:%=./host/internal/%) ./sdk/address:FuzzParse ./sdk/address:FuzzWrite ./sdk/address:FuzzParsePath; do \
	  go test -run xxx -fuzz "^$${f#*:}$$" -fuzztime 500x "$${f%:*}" || exit 1; \
	done

clean:
	rm -rf bin var
