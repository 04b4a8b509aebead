#!/usr/bin/env bash
# Runs the Connect conformance suite against the transport: gRPC, gRPC-Web, and the Lambda functions.
#
#   cargo build --package conformance-server
#   tests/conformance/run.sh target/debug/conformance-server
#
# Known failures must also occur with plain tonic and tonic-web, which shows that they are upstream.
# Needs Go. The file `version` pins the suite, which is cached in CONFORMANCE_CACHE (default target/conformance).
set -euo pipefail

if (( $# != 1 )) || [[ ! -x $1 ]]; then
  echo "usage: tests/conformance/run.sh PATH_TO_CONFORMANCE_SERVER" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
server=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cache=${CONFORMANCE_CACHE:-$here/../../target/conformance}
version=$(<"$here/version")

mkdir -p "$cache/bin"
cache=$(cd "$cache" && pwd)
suite=$cache/bin/connectconformance
if [[ $("$suite" --version 2>/dev/null || true) != *" $version" ]]; then
  GOBIN=$cache/bin go install "connectrpc.com/conformance/cmd/connectconformance@$version"
fi

# Prints the number of passed cases, or the whole output if a case has an unexpected result.
run_suite() { # NAME ARGUMENTS…
  local name=$1 output status=0
  shift
  output=$("$suite" --mode server "$@" 2>&1) || status=$?
  if (( status == 0 )); then
    printf 'ok  %s: ' "$name"
    sed -n '/^Total cases/,$p' <<<"$output" | tr '\n' ' '
    echo
  else
    printf '%s\nFAIL  %s\n' "$output" "$name"
    failed=1
  fi
}

failed=0
for protocol in grpc grpc-web lambda; do
  known=$here/$protocol.known-failing.txt mode=()
  if [[ $protocol == lambda ]]; then mode=(--lambda); fi
  run_suite "$protocol" --conf "$here/$protocol.yaml" --known-failing "@$known" -- "$server" ${mode[@]+"${mode[@]}"}
  run_suite "$protocol, known failures, plain tonic" \
    --conf "$here/$protocol.yaml" --run "@$known" --known-failing "@$known" -- "$server" --bare
done
exit $failed
