GO ?= go
FUZZTIME ?= 20s
STORE ?= redis
SEED ?= 1
FOR ?= 3m

# The linters are pinned in a module of their own, built once and kept in Go's build cache.
TOOL := $(GO) tool -modfile=internal/tools/go.mod
# What is tested in modules of its own, with requirements that the root module shall not have.
NESTED := internal/bench $(patsubst %/go.mod,%,$(wildcard cmd/go.mod contrib/*/go.mod))
MODULES := $(sort $(patsubst ./%,%,$(dir $(shell find . -name go.mod -not -path '*/testdata/*'))))

# The race detector leaves out what go-zookeeper does among its own goroutines: it reads a
# number that another may write, https://github.com/go-zookeeper/zk/pull/35. What our code
# does beside it is seen all the same.
RACE := -race -gcflags=github.com/go-zookeeper/zk=-race=false

# go.mod names the lowest versions that the tests pass with, so that a lock on Redis raises
# nobody's pgx. Programs use newer ones: the stores' suites run with internal/newest.mod, too.
# Most tests wait for servers, not for a processor: hence more of them at once than those, and
# more packages (-p). What takes all of a processor, and is no code of a store, runs without the race
# detector, too. What a Client makes of a store does not depend on the store's driver: the Client's
# suite runs once, in the last line.
STORES := ./redis ./redlock ./etcd ./postgres ./dynamo ./zookeeper
# Those whose suite takes two to four minutes far away. The others have it, too, and take longer.
FAR ?= ./redis ./etcd ./postgres ./locktest

.PHONY: help test short far servers bench fuzz mutants chaos herd lint lint-code lint-modules lint-imports fmt

help: ## this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: servers ## all tests, with the race detector, against real servers
	LOCK_TEST_MANY=1 $(GO) test -count=1 -run '^TestManyLeases$$' .
	@printf '%s\n' $(NESTED) | xargs -P 3 -I DIR sh -c '\
		out=$$($(GO) test -C DIR -count=1 -timeout 10m ./... 2>&1); rc=$$?; \
		printf "%s\n" "$(GO) test -C DIR -count=1 -timeout 10m ./..." "$$out"; exit $$rc'
	$(GO) test -modfile=internal/newest.mod -count=1 -p 3 -parallel 8 -timeout 40m -run 'Suite($$|Over|BehindNginx)|Fence|AreCaught|Finds|Passes' ./locktest ./httplock $(STORES)
	$(GO) test $(RACE) -shuffle=on -p 3 -parallel 8 -timeout 40m ./...

short: ## the tests that need no server
	$(GO) test -short ./...

far: servers ## the suite on a network with a round trip of 200 ms: minutes
	LOCK_TEST_FAR=1 $(GO) test -count=1 -timeout 30m -parallel 24 -run FarAway $(FAR)

servers: ## install the servers that the tests need and that are missing
	@GO='$(GO)' sh internal/testserver/servers.sh

bench: servers ## measure, and print the tables of docs/performance.md
	@$(GO) test -C internal/bench -count=1 -timeout 60m -v . -args -table | grep -v -e '^=== ' -e '^--- '

fuzz: ## run each fuzz target for FUZZTIME (20s)
	@set -e; for pkg in $$($(GO) list ./...); do \
		list=$$($(GO) test -list '^Fuzz' "$$pkg"); \
		for target in $$(printf '%s\n' "$$list" | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime '$(FUZZTIME)' "$$pkg"; \
		done; \
	done
mutants: servers ## break the code on purpose, PKG=redis alone, and see the tests notice
	$(GO) run ./internal/mutants -pkg '$(PKG)'

chaos: servers ## break STORE (redis) and its callers for FOR (3m), by the schedule of SEED (1)
	$(GO) test -count=1 -timeout 24h -v -run '^TestChaos$$' ./internal/chaos -args -store='$(STORE)' -seed='$(SEED)' -for='$(FOR)'

herd: servers ## 64 callers contend for a key of each store, for FOR (3m) each
	$(GO) test -count=1 -p 1 -timeout 24h -v -run '^TestHerd$$' ./memory $(STORES) -args -herd.for='$(FOR)'

lint: lint-modules lint-imports lint-code ## linters, tidy modules, and what may be imported where

lint-code:
	$(TOOL) golangci-lint run ./...
	@set -e; for dir in $(NESTED) internal/testserver/etcd; do \
		(cd "$$dir" && $(GO) tool -modfile='$(CURDIR)/internal/tools/go.mod' golangci-lint run ./...); \
	done

lint-modules:
	@set -e; for dir in ./ $(MODULES); do \
		if ! $(GO) mod -C "$$dir" tidy -diff; then \
			echo "$${dir}go.mod is not tidy: go mod tidy there, and commit it" >&2; exit 1; \
		fi; \
	done
	$(GO) mod tidy -modfile=internal/newest.mod -diff

# These packages, which programs import whatever their store is, bring in nothing: with what
# they import here counted, but not their tests.
PURE := . ./locktest ./semaphore ./tiers ./httplock

lint-imports:
	@set -e; module=$$($(GO) list -m); \
	deps=$$($(GO) list -deps -f '{{if not .Standard}}{{.ImportPath}}{{end}}' $(PURE)); \
	foreign=$$(printf '%s\n' "$$deps" | grep -v -e "^$$module\$$" -e "^$$module/" || true); \
	if [ -n "$$foreign" ]; then \
		echo "these packages may import the standard library only: $(PURE), not:" >&2; \
		printf '%s\n' "$$foreign" >&2; exit 1; \
	fi

fmt: ## format as the linter wants it
	$(TOOL) gofumpt -w .
