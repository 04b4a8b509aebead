#!/usr/bin/env bash
# Runs the Connect conformance suite against our transport: the server as gRPC and as gRPC-Web, and the functions of AWS Lambda.
#
#   cargo build --package conformance-server
#   tests/conformance/run.sh target/debug/conformance-server
#
# What is known to fail has to fail with tonic and tonic-web alone as well: then it is theirs, not ours.
# Needs Go. The suite's version is in the file version; it is kept in CONFORMANCE_CACHE (target/conformance
# if not set).
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

# Says how many cases passed, and everything if one did not end as it should.
judged() { # WHAT ARGUMENTS…
  local what=$1 said status=0
  shift
  said=$("$suite" --mode server "$@" 2>&1) || status=$?
  if (( status == 0 )); then
    printf 'ok  %s: ' "$what"
    sed -n '/^Total cases/,$p' <<<"$said" | tr '\n' ' '
    echo
  else
    printf '%s\nFAIL  %s\n' "$said" "$what"
    failed=1
  fi
}

failed=0
for way in grpc grpc-web lambda; do
  known=$here/$way.known-failing.txt mode=()
  if [[ $way == lambda ]]; then mode=(--lambda); fi
  judged "$way" --conf "$here/$way.yaml" --known-failing "@$known" -- "$server" ${mode[@]+"${mode[@]}"}
  judged "$way, known to fail, with tonic alone" \
    --conf "$here/$way.yaml" --run "@$known" --known-failing "@$known" -- "$server" --bare
done
exit $failed
