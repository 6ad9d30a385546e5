#!/bin/sh
# Sees to it that the images which the project names are there. Does nothing where they are, pulls them where a
# registry can be reached, and otherwise makes stand-ins under the same names from Debian's packages and from
# the machine's own compiler:
#
#   debian:trixie-slim            debootstrap, from the mirror that the machine's apt uses; needs root
#   rust:<version>-slim-trixie    that, a linker, and the toolchain that `rustc` on the PATH belongs to
#   rabbitmq:4, redis:8           that, and Debian's packages (RabbitMQ 4.0, Redis 8.0)
#
# and, in no registry, context-injector-firewall:trixie (firewall.Dockerfile).
#
#   scripts/containers/base-images.sh [base] [builder] [rabbitmq] [redis] [firewall]   (nothing named: the first four)
#   scripts/containers/base-images.sh remove                          what was made here, not what was pulled
#
# RABBITMQ_IMAGE and REDIS_IMAGE name other images, RUST_VERSION another compiler than the Dockerfile's.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

base=debian:trixie-slim
rust_version=${RUST_VERSION:-$(sed -n 's/^ARG RUST_VERSION=//p' "$root/Dockerfile" | head -n 1)}
builder=rust:$rust_version-slim-trixie
rabbitmq=${RABBITMQ_IMAGE:-rabbitmq:4}
redis=${REDIS_IMAGE:-redis:8}
firewall=context-injector-firewall:trixie
# How the stand-ins are known.
label=context-injector.stand-in

say() { echo "base-images: $*" >&2; }
fail() { say "error: $*"; exit 1; }

is_here() { docker image inspect "$1" >/dev/null 2>&1; }

registry=unknown
# Whether the image is there, or can be pulled. One registry that cannot be reached is not asked again.
has() {
    is_here "$1" && return 0
    [ "$registry" != away ] || return 1
    if timeout 300 docker pull --quiet "$1" >&2; then
        return 0
    fi
    registry=away
    return 1
}

# Its address is the machine's own affair, so it is asked, not written down.
mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1
}

make_base() {
    [ "$(id -u)" -eq 0 ] || fail "no registry, and making $base needs root (debootstrap)"
    command -v debootstrap >/dev/null ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap; } >&2 ||
        fail "no registry, and debootstrap cannot be installed"
    from=$(mirror)
    [ -n "$from" ] || fail "no registry, and this machine's apt knows no Debian mirror: run apt-get update"
    say "making $base by debootstrap"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    if ! debootstrap --variant=minbase --include=ca-certificates trixie "$scratch/root" "$from" >"$scratch/log" 2>&1; then
        tail -n 5 "$scratch/log" >&2
        fail "debootstrap failed"
    fi
    # What the machine trusts, the stand-in trusts: a machine without a registry may stand behind a proxy.
    cp /etc/ssl/certs/ca-certificates.crt "$scratch/root/etc/ssl/certs/ca-certificates.crt"
    # As slim as the official image.
    tar -C "$scratch/root" --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/info/*' \
        --exclude='./usr/share/locale/*' --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
        --exclude='./var/log/*' -c . |
        docker import --change "LABEL $label=true" --change 'CMD ["bash"]' - "$base" >/dev/null
    rm -rf "$scratch"
    trap - EXIT
}

make_builder() {
    has_base
    command -v rustc >/dev/null || fail "no registry, and no rustc on the PATH to make $builder of"
    found=$(rustc --version | cut -d ' ' -f 2)
    case "$found" in
    "$rust_version" | "$rust_version".*) ;;
    *) fail "no registry, and rustc here is $found, not $rust_version: say RUST_VERSION=${found%.*}" ;;
    esac
    say "making $builder from the toolchain here"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    mkdir "$scratch/toolchain"
    # Compiler and standard library; documentation, sources and editors' servers stay behind.
    tar -C "$(rustc --print sysroot)" --exclude=./share --exclude=./etc --exclude=./lib/rustlib/src \
        --exclude='./bin/rust-*' --exclude='./bin/*clippy*' --exclude='./bin/*fmt' --exclude='./libexec/rust-analyzer*' \
        -c . | tar -C "$scratch/toolchain" -x
    build builder "$builder" "$scratch"
    rm -rf "$scratch"
    trap - EXIT
}

make_server() {
    has_base
    say "making $2 from Debian's packages"
    build "$1" "$2" "$here"
}

# build NAME TAG CONTEXT
build() {
    docker build --quiet --label "$label=true" --build-arg HTTP_PROXY --build-arg HTTPS_PROXY --build-arg NO_PROXY \
        --file "$here/$1.Dockerfile" --tag "$2" "$3" >/dev/null || fail "$2 cannot be built"
}

has_base() { has "$base" || make_base; }

remove() {
    # Children before their base; what runs in a container stays, and docker says so.
    for image in "$firewall" "$rabbitmq" "$redis" "$builder" "$base"; do
        made=$(docker image inspect --format "{{ index .Config.Labels \"$label\" }}" "$image" 2>/dev/null || true)
        [ "$made" != true ] || docker image rm "$image"
    done
}

command -v docker >/dev/null || fail "docker is not there"
docker version >/dev/null 2>&1 || fail "docker does not answer: is the daemon running, and may you use it?"
[ -n "$rust_version" ] || fail "the Dockerfile has no ARG RUST_VERSION"
[ $# -gt 0 ] || set -- base builder rabbitmq redis
for wanted; do
    case "$wanted" in
    base) has_base ;;
    builder) has "$builder" || make_builder ;;
    rabbitmq) has "$rabbitmq" || make_server rabbitmq "$rabbitmq" ;;
    redis) has "$redis" || make_server redis "$redis" ;;
    firewall) is_here "$firewall" || make_server firewall "$firewall" ;;
    remove) remove ;;
    *) fail "$wanted: one of base, builder, rabbitmq, redis, firewall, remove" ;;
    esac
done
