# context-injector as an image: one binary, no shell needed, an unprivileged user.
#
#   docker build --tag context-injector .          (make image does it, also where no registry can be reached)
#   docker run --volume ./settings.toml:/etc/context-injector/config.toml:ro context-injector worker
#
# Builds with BuildKit and with the classic builder alike, so no --mount, no heredoc, no COPY --chmod.

ARG RUST_VERSION=1.95

FROM rust:${RUST_VERSION}-slim-trixie AS builder
# jemalloc is built by make, which the slim image lacks.
RUN command -v make || (apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*)
WORKDIR /build
# The dependencies alone, against empty sources: built again only when they change.
COPY Cargo.toml Cargo.lock ./
RUN targets=$(sed -n 's/^path = "\(\(tests\|benches\)\/.*\)"$/\1/p' Cargo.toml) \
    && mkdir -p src $(dirname $targets) && touch src/lib.rs $targets \
    && echo 'fn main() {}' >src/main.rs \
    && cargo build --release --locked \
    && rm -r src
COPY config config
COPY schemas schemas
COPY src src
COPY deploy/image/config.toml /image/etc/context-injector/config.toml
# cargo goes by time stamps, and the sources' may be older than those of the empty ones.
RUN mkdir -p /image/usr/local/bin /image/etc/ssl/certs \
    && touch src/lib.rs src/main.rs \
    && cargo build --release --locked \
    && cp target/release/context-injector /image/usr/local/bin/ \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/

FROM debian:trixie-slim
# One COPY: of several in a row the classic builder loses a layer ("layer does not exist").
COPY --from=builder /image/ /
ENV CONTEXT_INJECTOR_CONFIG=/etc/context-injector/config.toml
# A number, so that runAsNonRoot can be checked without the image's /etc/passwd. Nothing is written to disk.
USER 10001:10001
WORKDIR /
EXPOSE 9464
# Alive, not ready: a broker that is away is no reason to restart us.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["/usr/local/bin/context-injector", "health", "--live"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/context-injector"]
CMD ["run"]

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="context-injector" \
    org.opencontainers.image.description="Writes variables into live bot conversations: queue-driven, exactly-once in effect, conflict-aware, audited" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="debian:trixie-slim"
