# `make` tells what there is to make.
TARGET ?= $(shell uname -m)-unknown-linux-musl
NAME   := containerd-shim-rs-v2
BINARY := target/$(TARGET)/release/$(NAME)
PREFIX ?= /usr/local
# What `-v` calls the revision. Set it to build from an archive without git's data.
SHIM_REVISION ?= $(or $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null),unknown)

# For sh: what removes this program, once no server of it runs.
REFUSE  = . packaging/servers.sh && refuse_while_serving '$(DESTDIR)$(PREFIX)/bin/$(NAME)'

.PHONY: help setup build check audit test test-vm chaos soak demo fuzz sanitize bench install uninstall dist deb rpm installer

help: ## this list
	@awk -F ':[a-z ]*## ' '/^[a-z-]+:.*## / { sub(/:.*/, "", $$1); printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what building and testing need (root; Debian)
	@hack/setup

build: ## the static release binary (TARGET=aarch64-unknown-linux-musl for arm64)
	@RUST_TARGET='$(TARGET)' hack/setup musl
	@SHIM_REVISION='$(SHIM_REVISION)' hack/release $(TARGET)
	@hack/check-binary $(BINARY)

# Unit tests that need root say so and are skipped for others; with NO_SKIP=1 they fail.
check: ## format, lints, layers, dependencies, documents, unit tests (no root, no daemon)
	@cargo fmt --all --check
	@cargo clippy --locked --all-targets -- -D warnings
	@hack/check-layers
	@hack/check-dependencies
	@cargo test --locked --lib --bins --test documents

# Needs cargo-deny (`cargo install cargo-deny --locked`: minutes) and access to the advisory
# database, which cargo-deny fetches with git. Not a part of check: that works without both.
audit: ## all rules of deny.toml, known vulnerabilities among them (network)
	@cargo deny --locked check

test: ## everything: setup, check, build, tests of the shim, tests with daemons (root)
	@hack/test

test-vm: build ## tests in emulated machines: cgroup v2, CRIU, systemd (root)
	@hack/test-vm

chaos: build ## what dies, hangs, is used up or floods: the long form, and containerd's shims (root)
	@hack/chaos

soak: build ## 1,000 containers, 10,000 execs in one server; restarts of containerd (root, 20 min)
	@hack/chaos soak

demo: ## see it run a container, beside containerd's own shim (root)
	@hack/demo

fuzz: ## fuzz the parsers and the server, a minute each (FUZZ="--time 10 cli")
	@hack/fuzz $(FUZZ)

sanitize: ## unit tests under Miri and AddressSanitizer (nightly Rust; minutes)
	@hack/sanitize

bench: ## measure the shim beside the others (root, half an hour; QUICK=1: 5 minutes)
	@hack/bench

install: ## install the built binary: PREFIX=/usr/local, DESTDIR=
	@[ -x $(BINARY) ] || { echo "no $(BINARY): run make build first" >&2; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/$(NAME)
	install -D -m 644 packaging/$(NAME).bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/$(NAME)
	install -d $(DESTDIR)$(PREFIX)/share/man/man8
	gzip -n9 <packaging/$(NAME).8 >$(DESTDIR)$(PREFIX)/share/man/man8/$(NAME).8.gz
	@echo "containerd finds it as runtime io.containerd.rs.v2. To let it serve io.containerd.runc.v2, name"
	@echo "it so in a directory that comes before containerd's own shim on containerd's PATH:"
	@echo "  ln -s $(PREFIX)/bin/$(NAME) $(PREFIX)/bin/containerd-shim-runc-v2"

uninstall: ## remove what install has installed; refuses while servers of it run (FORCE=1)
	@$(REFUSE)
	rm -f $(DESTDIR)$(PREFIX)/bin/$(NAME) $(DESTDIR)$(PREFIX)/share/man/man8/$(NAME).8.gz \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/$(NAME)
	@for link in $(DESTDIR)$(PREFIX)/bin/*; do \
		[ "$$(readlink "$$link")" != $(PREFIX)/bin/$(NAME) ] || echo "$$link was a link to it: remove it, or point it at containerd's own shim"; \
	done

dist: ## a tarball of the built binary, with its checksum, in build/packages
	@hack/package dist $(TARGET)

deb: ## a Debian package of the built binary, in build/packages
	@hack/package deb $(TARGET)

rpm: ## an rpm package of the built binary, in build/packages
	@hack/package rpm $(TARGET)

installer: build ## an image that installs it on Kubernetes' nodes: build/installer.tar
	@hack/setup packages
	@mkdir -p build
	@hack/image build/installer.tar localhost/$(NAME)-installer:latest '["node"]' bin/node=deploy/node opt/$(NAME)=$(BINARY)
