#!/usr/bin/env bash
# Fuzzes what comes from outside: messages, answers of the platform, templates. RUNS inputs a target (the first argument),
# bounded memory. What it finds new stays in target/fuzz; an input that breaks a check is printed and kept in
# fuzz/artifacts. `fuzz.sh --keep` makes the kept corpus anew, as small as it can be.
set -euo pipefail
cd "$(dirname "$0")/.."
# The cargo-fuzz on the PATH, or one of our own.
tools="$PWD/target/fuzz/tools"
if ! cargo fuzz --version >/dev/null 2>&1; then
    export PATH="$tools/bin:$PATH"
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "installing cargo-fuzz into target/fuzz/tools …"
    if ! cargo install cargo-fuzz --locked --quiet --root "$tools"; then
        echo "make fuzz needs cargo-fuzz, which could not be installed: cargo install cargo-fuzz --locked says why" >&2
        exit 1
    fi
fi
# The instrumentation is a compiler option that stable compilers keep to themselves. There is no unsafe code here for a
# sanitizer to watch.
export RUSTC_BOOTSTRAP=1
targets=(job answer template)
KEPT=95
fuzz() { cargo fuzz "$1" --sanitizer none --target-dir target/fuzz/build "${@:2}"; }
limits=(-max_len=2048 -rss_limit_mb=512 -timeout=5)

if [ "${1:-}" = --keep ]; then
    for target in "${targets[@]}"; do
        small="target/fuzz/small/$target"
        mkdir -p "target/fuzz/$target" "$small"
        rm -f "$small"/*
        fuzz run "$target" "$small" "fuzz/corpus/$target" "target/fuzz/$target" -- \
            -set_cover_merge=1 -use_counters=0 -max_len=256 -rss_limit_mb=512
        # The longest reach furthest; the repository is no place for thousands of files.
        rm -f "fuzz/corpus/$target"/*
        find "$small" -type f -printf '%s %p\n' | sort -rn | head -n "$KEPT" | cut -d ' ' -f 2 |
            xargs -I {} cp {} "fuzz/corpus/$target/"
    done
    exit
fi
for target in "${targets[@]}"; do
    mkdir -p "target/fuzz/$target"
    fuzz run "$target" "target/fuzz/$target" "fuzz/corpus/$target" -- \
        -runs="${1:-4000000}" -dict="fuzz/$target.dict" -print_final_stats=1 "${limits[@]}"
done
