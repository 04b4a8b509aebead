#!/usr/bin/env bash
# Measures what clocks cannot disturb (heap, instructions, work of Postgres) and compares it with benches/budgets.toml.
#
#     benches/budgets.sh                        # fails if a value has grown by more than 5 %
#     benches/budgets.sh --accept               # writes the measured values into the file
#     benches/budgets.sh [--accept] heap ...    # only these parts: heap, instructions, postgres
set -euo pipefail
cd "$(dirname "$0")/.."

all=(heap instructions postgres)
parts=() options=()
for argument in "$@"; do
    case $argument in
        --accept) options+=("$argument") ;;
        *)
            if [[ " ${all[*]} " != *" $argument "* ]]; then
                echo "error: $argument is none of --accept ${all[*]}" >&2
                exit 2
            fi
            parts+=("$argument")
            ;;
    esac
done
if (( ${#parts[@]} )); then options+=(--partial); else parts=("${all[@]}"); fi

target=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")
measured=$target/budgets.jsonl
mkdir -p "$target"
: > "$measured"

# The profile and the features of the functions, which `infra/check-functions.sh` has built.
bench() { MEASUREMENTS_FILE=$measured cargo bench --locked --profile ci --package budgets --bench "$@"; }

for part in "${parts[@]}"; do
    case $part in
        heap) bench heap ;;
        instructions)
            if ! command -v valgrind >/dev/null; then
                apt-get update -qq || true
                DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends valgrind libc6-dbg >/dev/null
            fi
            # The version of the crate in benches/budgets/Cargo.toml.
            version=$(sed -n 's/^gungraun = "=\(.*\)"$/\1/p' benches/budgets/Cargo.toml)
            cargo install --quiet --debug --locked --root target/tools --version "$version" gungraun-runner
            PATH=$PWD/target/tools/bin:$PATH GUNGRAUN_HOME=$target/gungraun bench instructions -- --output-format=json >> "$measured"
            ;;
        # As the other benchmarks in `.ci/run`: what Postgres does is the same for a debug build.
        postgres) MEASUREMENTS_FILE=$measured cargo bench --locked --profile dev --bench postgres ;;
    esac
done
python3 benches/budgets.py "$measured" "${options[@]}"
