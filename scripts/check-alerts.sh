#!/usr/bin/env bash
# Runs the tests of the alerts with Prometheus' own promtool: the one on the PATH, or Debian's (where we are root).
set -euo pipefail
cd "$(dirname "$0")/../deploy/prometheus"

if ! command -v promtool >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing prometheus (apt-get), for promtool …"
        # RUNLEVEL=1: the package shall not start its service.
        apt-get update -qq >/dev/null 2>&1 || true
        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends prometheus \
            >/dev/null 2>&1 || true
    fi
fi
if ! command -v promtool >/dev/null 2>&1; then
    echo "promtool is not here: install Prometheus (Debian: apt-get install prometheus) to test the alerts" >&2
    exit 3
fi
promtool check rules alerts.yaml
promtool test rules alerts.test.yaml
