# The two commands: `make demo` and `make test`. Both install what is missing first.

.PHONY: demo test build release install-packages install-test-packages format lint unit sdk

demo: build
	@./target/debug/aoai-lb demo

# Everything CI runs.
test: install-test-packages format lint unit sdk

build: install-packages
	cargo build --locked

# The binary for a VM: target/release/aoai-lb
release: install-packages
	cargo build --locked --release

format:
	cargo fmt --check

lint:
	cargo clippy --locked --all-targets -- -D warnings

# Rules, and the running binary against simulated Azure; the dependency tree among them.
unit:
	cargo test --locked --no-fail-fast

# The official SDKs, unmodified, through the running binary, which the tests have built.
sdk: install-test-packages
	cargo test --locked --no-run --quiet
	python3 tests/sdk/run.py target/debug/aoai-lb

install-packages:
	@sh .ci/packages

install-test-packages:
	@sh .ci/packages test
