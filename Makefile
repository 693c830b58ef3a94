# Each target first installs what it needs and this machine lacks (deploy/install.sh says what and why).

CARGO ?= cargo
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help demo run build test lint bench chaos

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## two phones and an analyst, on a Kafka and a Postgres of their own
	@deploy/install.sh demo
	$(CARGO) build
	$(CARGO) run --example demo

run: ## the whole service on this machine, staying up (Ctrl-C stops it)
	@deploy/install.sh run
	$(CARGO) run -- dev

build: ## the release binary
	@deploy/install.sh build
	$(CARGO) build --release
	@echo "Built $(TARGET_DIR)/release/tidelog"

test: ## everything: formatting, lints, unit tests, then tests against a real Kafka and Postgres
	@deploy/install.sh test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) build
	$(CARGO) test --workspace --lib --bins
	$(CARGO) test --workspace --test '*'

chaos: ## breaks everything while phones work: CHAOS_SECONDS (1800), CHAOS_SEED
	@deploy/install.sh test
	$(CARGO) build
	TIDELOG_CHAOS_SECONDS=$(or $(CHAOS_SECONDS),1800) TIDELOG_CHAOS_SEED=$(or $(CHAOS_SEED),1) TIDELOG_CHAOS_PHONES=$(or $(CHAOS_PHONES),40) TIDELOG_CHAOS_ITEMS=$(or $(CHAOS_ITEMS),50) \
		$(CARGO) test --test chaos -- --nocapture all_faults_mixed

lint: ## formatting, clippy, documentation, dependencies
	@deploy/install.sh lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; else \
		echo "Skipped: licences and advisories. To check them: cargo install cargo-deny --locked"; fi

bench: ## measures speed and memory side by side, and writes BENCHMARKS.md
	@deploy/install.sh bench
	$(CARGO) build --release
	$(CARGO) run --release -- bench
