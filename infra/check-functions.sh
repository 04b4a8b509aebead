#!/usr/bin/env bash
# Checks the functions as they are deployed, but built faster (the profile `ci`):
#
#     infra/check-functions.sh
#
# What they link, and their tests with these very programs.
set -euo pipefail
cd "$(dirname "$0")/.."

functions=(stream-chat retrieve-memory manage-memory remember)

# What a function has no use for, and would start later with: an embedded Postgres, a model in the process, and a server with
# what stands around it. The client of providers is built on hyper and tower-http as well, so there it is their features.
unwanted='^(pglite-|ruzstd|tar|candle-|tokenizers|rayon|axum|tonic-health|tonic-reflection)[^ ]* v'
unwanted+='|^tower-http v[^ ]* .*(cors|validate-request)|^tonic v[^ ]* .*(router|server|transport|channel)|^hyper v[^ ]* .*server'
linked() { cargo tree --locked --package "$1" --edges normal --prefix none --format '{p} {f}' | sort -u; }

# The pattern itself may be wrong: the server has everything of it.
if (( $(linked agent-local | grep -cE "$unwanted") < 10 )); then
    echo "error: what is looked for in the functions is not even in agent-local" >&2
    exit 1
fi
for function in "${functions[@]}"; do
    if linked "$function" | grep -E "$unwanted" >&2; then
        echo "error: $function links what a function has no use for (above)" >&2
        exit 1
    fi
    echo "ok  $function links no server, no database and no model"
done

# Without the rest of the workspace, whose features would come along.
packages=()
for function in "${functions[@]}" panicking-function; do packages+=(--package "$function"); done
cargo build --locked --profile ci "${packages[@]}"
FUNCTION_PROGRAMS_DIR=$PWD/target/ci cargo test --locked "${packages[@]}"
