# make demo          the main job end to end, with a check of its own
# make demo KEEP=1   the same, and everything stays up until Ctrl-C
# make test          unit, property and integration tests
# make lint          what CI refuses

.PHONY: demo test lint

demo:
	@scripts/ensure-servers.sh
	cargo build --quiet --locked
	@target/debug/context-injector demo $(if $(KEEP),--keep)

test:
	@scripts/ensure-servers.sh tests
	cargo test --locked

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
