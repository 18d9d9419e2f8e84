# What there is to do here: `make help`. Everything it downloads or builds besides target/ lies in
# ${COFFERDAM_CACHE:-~/.cache/cofferdam}, keyed by what it is made from, and is made once.

TARGET  := target/x86_64-unknown-linux-gnu
BIN     := $(TARGET)/release/cofferdam
# Where the program looks for the default guest: ../share/cofferdam beside its own directory.
GUEST   := $(TARGET)/share/cofferdam
LAB     := tests/lab/run
PREFIX  := /usr/local

.DEFAULT_GOAL := help
.PHONY: help run install test soak bench build setup guest lint fmt fuzz clean

help: ## List what there is to do
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup guest build ## Set up what is missing, build, boot the default guest, then run a container
	@resources/run $(BIN)

install: setup guest build ## Install programs, guest, manual and completions: make install PREFIX=/usr/local
	@resources/install $(PREFIX)

test: setup guest ## Unit tests, a short fuzz, and every test that boots something
	@tests/run

soak: setup guest ## What goes wrong once in hundreds: many labs, many starts, databases that are killed
	@tests/run soak

bench: setup guest build ## Measure boots beside QEMU microvm, containers beside runc, check the budgets
	@resources/bench/run

build: ## Build the release binaries
	@cargo build --release --locked --quiet 2>&1 || cargo build --release --locked
	@ln -f $(BIN) $(BIN)-runc

setup: ## Install the Debian packages that are missing
	@resources/setup

guest: setup ## Build the guest kernel and root file systems (once)
	@resources/guest $(GUEST)

lint: ## rustfmt and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

fmt: ## Format the code
	cargo fmt --all

fuzz: setup ## Fuzz the loaders, the devices and their transport, a minute each
	@fuzz/run

clean: ## Remove what was built in the tree; the cache outside stays
	cargo clean
