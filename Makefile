# make demo          the main job end to end, with a check of its own
# make demo KEEP=1   the same, and everything stays up until Ctrl-C
# make test          unit, property and integration tests
# make fuzz          12 million hostile inputs (RUNS=… for each of three targets)
# make lint          what CI refuses

.PHONY: demo test fuzz lint

demo:
	@scripts/ensure-servers.sh
	cargo build --quiet --locked
	@target/debug/context-injector demo $(if $(KEEP),--keep)

test:
	@scripts/ensure-servers.sh tests
	cargo test --locked

# Inputs that nobody would write, RUNS of them for each of three targets; needs cargo-fuzz.
RUNS ?= 4000000
fuzz:
	@scripts/fuzz.sh $(RUNS)

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

# make alerts        the tests of deploy/prometheus/alerts.yaml, by Prometheus' own promtool

.PHONY: alerts

alerts:
	@scripts/check-alerts.sh

# Containers. Where no image registry can be reached, the images are made of Debian's packages and the toolchain here.
#
# make image            the image context-injector:latest
# make compose-demo     deploy/compose.yaml from nothing to nothing: the reference example, its outcome, a check
# make test-containers  the integration tests against RabbitMQ 4 and Redis 8 in containers; FILTER=… runs some of them

.PHONY: image compose-demo test-containers

image:
	@scripts/containers/image.sh

# CONTEXT_INJECTOR_IMAGE=… takes an image that is there instead of building one; KEEP=1 leaves everything running.
compose-demo: $(if $(CONTEXT_INJECTOR_IMAGE),,image)
	@scripts/containers/base-images.sh rabbitmq redis
	@KEEP=$(KEEP) scripts/containers/compose-demo.sh

test-containers: export TEST_SERVERS = containers
test-containers: export RABBITMQ_IMAGE ?= rabbitmq:4
test-containers: export REDIS_IMAGE ?= redis:8
test-containers: export TEST_RABBITMQ_IMAGE = $(RABBITMQ_IMAGE)
test-containers: export TEST_REDIS_IMAGE = $(REDIS_IMAGE)
test-containers:
	@scripts/containers/base-images.sh rabbitmq redis
	cargo test --locked --test it -- $(FILTER)
