#!/bin/sh
# Builds the image, labelled with version and commit: scripts/containers/image.sh [TAG…], context-injector:latest
# without. Proxies in the environment hold for the build too.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
"$here/base-images.sh" base builder
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision-dirty
set -- "${1:-context-injector:latest}" "$@"
first=$1
shift
docker build --build-arg VERSION="$version" --build-arg REVISION="$revision" \
    ${RUST_VERSION:+--build-arg RUST_VERSION="$RUST_VERSION"} \
    --build-arg HTTP_PROXY --build-arg HTTPS_PROXY --build-arg NO_PROXY --tag "$first" .
for tag; do docker tag "$first" "$tag"; done
docker image inspect --format '{{ index .RepoTags 0 }}: {{ .Size }} bytes' "$first"
