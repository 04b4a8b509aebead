#!/usr/bin/env bash
# Runs the benchmarks and writes their tables into docs/explanation/measurements.md, with the machine, the commit and the date.
#
#     benches/report.sh                              # on an otherwise idle machine, in about 15 minutes
#     benches/report.sh memory index many-users limits      # what takes longer; the other tables stay
#     benches/report.sh streams soak                 # 7 minutes
#     benches/report.sh --quick [...]        # a trial in seconds, which writes target/measurements.md instead
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")
mkdir -p "$target"
export MEASUREMENTS_FILE=$target/measurements.jsonl
: > "$MEASUREMENTS_FILE"

options=() page=docs/explanation/measurements.md profile=bench
if [ "${1:-}" = --quick ]; then
    shift
    # Built already by those who run tests.
    options=(--quick) profile=dev page=$target/measurements.md
    cp docs/explanation/measurements.md "$page"
fi
bench() { cargo bench --locked --profile "$profile" --bench "$1" -- "${options[@]}" "${@:2}"; }
if (( $# )); then
    bench "$@"
else
    bench streams
    bench memory
fi
benches/report.py "$MEASUREMENTS_FILE" "$page"
