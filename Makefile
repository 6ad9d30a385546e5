# make demo          the main job end to end, with a check of its own
# make demo KEEP=1   the same, and everything stays up until Ctrl-C
# make test          unit, property and integration tests
# make model         the protocol's states under many faults at once; `make test` has the narrow ones
# make chaos         everything fails at once, for minutes; CHAOS_SEED=… draws the same again, CHAOS_SCALE=… percent of it
# make chaos-net     networks are cut between containers, for minutes, needs docker; CHAOS_SEED, CHAOS_SCALE as above,
#                    CHAOS_CUTS=broker,redis,api,nodes picks the cuts
# make fuzz          12 million hostile inputs (RUNS=… for each of three targets)
# make lint          what CI refuses
# make bench         the worker beside its peers; BENCH=cold,hot picks scenarios (see benches/whole/main.rs)

.PHONY: demo test model chaos chaos-net fuzz lint bench bench-instructions

demo:
	@scripts/ensure-servers.sh
	cargo build --quiet --locked
	@target/debug/context-injector demo $(if $(KEEP),--keep)

test:
	@scripts/ensure-servers.sh tests
	cargo test --locked

model:
	cargo test --locked --profile model --test model -- --include-ignored --nocapture --test-threads 1

chaos:
	@scripts/ensure-servers.sh
	cargo test --locked --test it -- --ignored --nocapture --exact chaos::everything_fails_for_minutes

# Twice: order over retries needs Redis where queues change hands (README), so Redis is cut off where they do not.
CHAOS_CUTS ?= broker,api,nodes redis,api
chaos-net:
	@scripts/containers/base-images.sh base rabbitmq redis firewall
	set -e; for cuts in $(CHAOS_CUTS); do CHAOS_CUTS=$$cuts cargo test --locked --test it -- \
	    --ignored --nocapture --exact chaos::net::networks_are_cut_between_containers; done

# Inputs that nobody would write, RUNS of them for each of three targets; installs cargo-fuzz where it is missing.
RUNS ?= 4000000
fuzz:
	@scripts/fuzz.sh $(RUNS)

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

bench:
	@scripts/ensure-servers.sh
	cargo bench --locked --bench whole

# Where time is too noisy: instructions of the pure parts, by callgrind. FILTER=… picks some.
bench-instructions:
	cargo bench --locked --bench micro --no-run
	valgrind --tool=callgrind --callgrind-out-file=target/bench/callgrind.out \
	    $$(ls -t target/release/deps/micro-* | grep -v '\.d$$' | head -n 1) \
	    --bench --sample-count 1 --sample-size 100 $(FILTER)
	callgrind_annotate target/bench/callgrind.out | head -n 60

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
