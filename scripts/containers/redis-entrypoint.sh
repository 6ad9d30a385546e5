#!/bin/sh
# The manner of the official image: options of the server alone, `redis-server` with options, or any command.
set -eu
[ "${1:-}" != redis-server ] || shift
case "${1:--}" in
-*) exec redis-server --protected-mode no "$@" ;;
*) exec "$@" ;;
esac
