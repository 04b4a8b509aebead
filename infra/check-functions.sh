#!/usr/bin/env bash
# Checks the Lambda functions: which crates they link, and their tests against the programs built with the profile `ci` (the
# deployed features, but optimized less and without LTO, which builds faster).
#
#     infra/check-functions.sh
set -euo pipefail
cd "$(dirname "$0")/.."

functions=(stream-chat retrieve-memory manage-memory remember)

# Crates that would only slow down a function's cold start: embedded Postgres, local models, servers, and the search for AWS
# credentials, which a function has in its environment. The provider client uses hyper and tower-http too, so for those the
# pattern matches server features.
unwanted='^(pglite-|ruzstd|tar|tokenizers|ndarray|safetensors|matrixmultiply|axum|tonic-health|tonic-reflection)[^ ]* v'
unwanted+='|^(aws-config|aws-sdk-(sso|ssooidc|sts)) v'
unwanted+='|^tower-http v[^ ]* .*(cors|validate-request)|^tonic v[^ ]* .*(router|server|transport|channel)|^hyper v[^ ]* .*server'
linked() { cargo tree --locked --package "$1" --edges normal --prefix none --format '{p} {f}' | sort -u; }

# Guards against a pattern that matches nothing: agent-local links all of these.
if (( $(linked agent-local | grep -cE "$unwanted") < 14 )); then
    echo "error: the pattern of unwanted crates does not match those of agent-local" >&2
    exit 1
fi
for function in "${functions[@]}"; do
    if linked "$function" | grep -E "$unwanted" >&2; then
        echo "error: $function links unwanted crates (above)" >&2
        exit 1
    fi
    echo "ok  $function links no server, no database, no model and no search for credentials"
done

# Only these packages: building the whole workspace would unify its features.
packages=()
for function in "${functions[@]}" panicking-function; do packages+=(--package "$function"); done
cargo build --locked --profile ci "${packages[@]}"
# Tests are built with the features of the whole workspace, as those that `cargo test --workspace` runs.
FUNCTION_PROGRAMS_DIR=$PWD/target/ci cargo test --workspace --locked --test function
