#!/usr/bin/env bash
# Runs every example against a real server and checks its output.
#
#   examples/run.sh PATH_TO_AGENT_LOCAL
#
# Needs cargo, Go, python3 and Node 20 or later with npm. Dependencies are pinned by lock files and cached in target/examples and
# next to the Node examples (ignored by git). The server gets a free port, its own data directory and no .env file.
set -euo pipefail

if (( $# != 1 )) || [[ ! -x $1 ]]; then
  echo "usage: examples/run.sh PATH_TO_AGENT_LOCAL" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/.." && pwd)
server=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cache=$root/target/examples
grpcurl_version=$(sed -n 's/^grpcurl_version=//p' "$root/tests/e2e/run.sh")
question="Make me a calculus review plan"

scratch=$(mktemp -d)
server_pid=
cleanup() {
  local tenths
  if [[ -n $server_pid ]]; then
    kill -TERM "$server_pid" 2>/dev/null || true
    for (( tenths = 0; tenths < 100; tenths++ )); do
      kill -0 "$server_pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
  fi
  rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Prints the output only if the command fails.
quietly() {
  "$@" >"$scratch/output" 2>&1 || { cat "$scratch/output" >&2; exit 1; }
}

# ---- dependencies ----
mkdir -p "$cache"
STUB_TOOLS=$cache "$root/infra/generate-stubs.sh"
python=$cache/venv/bin/python
quietly "$python" -m pip install --quiet --disable-pip-version-check --requirement "$here/python/requirements.txt"
GOBIN=$cache/bin quietly go install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version"
quietly go build -C "$here/go" -o "$cache/bin/" ./chat ./bridge
node_example() { # NAME SCRIPT…
  local folder=$here/$1
  if ! cmp -s "$folder/package-lock.json" "$folder/node_modules/.installed"; then
    quietly npm --prefix "$folder" ci --ignore-scripts --no-audit --no-fund
    cp "$folder/package-lock.json" "$folder/node_modules/.installed"
  fi
  # The same protoc as infra/generate-stubs.sh.
  for script in "${@:2}"; do PROTOC="$python -m grpc_tools.protoc" quietly npm --prefix "$folder" run --silent "$script"; done
}
node_example connect-web generate build
node_example grpc-web generate
export PATH=$cache/bin:$PATH PYTHONPATH=$root/gen/python PYTHONDONTWRITEBYTECODE=1

# ---- the server ----
# Authentication is on, so that each example must send its token. Deltas every 5 ms leave time to disconnect and cancel.
export AGENT_TOKEN=test-internal-api-key
cd "$scratch"
env -i PATH="$PATH" HOME="$scratch" LEARNING=off \
  DEMO_MODE=true DEMO_THINKING_DELAY_MS=0 DEMO_CHUNK_DELAY_MS=5 EMBEDDING_PROVIDER=hashed RATE_LIMITS=off \
  AUTH=jwt JWT_SECRET="test secret of at least 32 characters" INTERNAL_API_KEY="$AGENT_TOKEN" \
  GRPC_PORT=0 AGENT_DATA_DIR="$scratch/data" "$server" >"$scratch/stdout" 2>"$scratch/stderr" &
server_pid=$!
for (( tenths = 0; tenths < 1200; tenths++ )); do
  if grep -q '^Ready\.' "$scratch/stdout" || ! kill -0 "$server_pid" 2>/dev/null; then break; fi
  sleep 0.1
done
if ! grep -q '^Ready\.' "$scratch/stdout"; then
  cat "$scratch/stdout" "$scratch/stderr" >&2
  echo "error: the server exited, or was not ready within two minutes" >&2
  exit 1
fi
AGENT_URL=$(sed -n 's|.*\(http://127\.0\.0\.1:[0-9]\{1,\}\).*|\1|p' "$scratch/stdout" | head -n 1)
export AGENT_URL

# ---- the checks ----
passed=0 failed=0
check() { # NAME COMMAND…
  if "${@:2}"; then
    passed=$(( passed + 1 ))
    echo "ok  $1"
  else
    failed=$(( failed + 1 ))
    echo "FAIL  $1"
    tail -n 20 "$scratch/err" "$scratch/out"
  fi
}
# Runs the current example as a user of the same name, with its outputs in files.
run() { # ARGUMENTS…
  AGENT_USER=$example "${command[@]}" "$@" >"$scratch/out" 2>"$scratch/err"
}
prints() { grep -qi -- "$1" "$scratch/err"; }
is_complete() { cmp -s "$scratch/out" "$scratch/answer"; }

streams_answer() { run "$question" && is_complete && prints '^\[THINKING\]' && prints '^\[GENERATING\]'; }
finds_added_memory() { prints '  0\.[0-9]*  The calculus exam is on the ninth of June'; }
resumes() { run --cut-after 20 "$question" && is_complete && [[ $(grep -c '^\[connection lost; resuming\]$' "$scratch/err") == 1 ]]; }
is_cancelled() { ! run --stop-after 20 "$question" && prints '^failed: CANCELLED: ' && ! is_complete && [[ -s $scratch/out ]]; }
is_refused() { ! run ' ' && prints '^refused: invalid_\?argument: message ' && [[ ! -s $scratch/out ]]; }
is_unauthenticated() { ! AGENT_TOKEN='' run "$question" && prints '^refused: unauthenticated: '; }

# The expected answer of demo mode.
"$python" - "$root/shared/llm/demo_responses.json" "$question" >"$scratch/answer" <<'PYTHON'
import json, sys
file, question = sys.argv[1:]
print(next(entry["answer"] for entry in json.load(open(file))["responses"] if question in entry["questions"]))
PYTHON

while read -r -a command; do
  example=${command[0]} command=("${command[@]:1}")
  printf '\n%s\n' "$example"
  check "streams_statuses_and_answer" streams_answer
  check "finds_added_memory" finds_added_memory
  check "resumes_after_disconnect_without_repeats" resumes
  check "cancel_ends_with_error_frame" is_cancelled
  check "refusal_differs_from_failure" is_refused
  check "call_without_token_is_unauthenticated" is_unauthenticated
done <<EXAMPLES
connect-web node $here/connect-web/dist/chat.js
grpc-web node $here/grpc-web/chat.js
go chat
python $python $here/python/chat.py
EXAMPLES

printf '\ngrpcurl\n'
shows() { # PATTERN…
  local pattern
  for pattern in "$@"; do grep -q -- "$pattern" "$scratch/out" || { echo "nothing matches $pattern"; return 1; }; done
}
example=grpcurl command=("$here/grpcurl.sh")
check "every_rpc_succeeds" run "$question"
check "output_has_memories_frames_sessions" shows '^agent\.v1\.AgentService$' '"content": "The calculus exam' '"delta": ' '"finishReason": "STOP"' '"sessions": ' '"turns": 1' '"memories": '
resumes_behind() { # Frame 20 was the last received one. The last four digits count repetitions of a status.
  local first
  first=$(sed -n 's/.*"responseId": ".*-\(.*\)".*/\1/p' "$scratch/out" | sed -n '1p')
  (( 16#$first >> 16 == (16#$(sed -n 's/.*"responseId": ".*-\(.*\)".*/\1/p' "$scratch/err" | sed -n '20p') >> 16) + 1 ))
}
check "resumes_behind_named_frame" resumes_behind

printf '\nbridge\n'
bridge() { go test -C "$here/go" -count=1 ./bridge >"$scratch/out" 2>"$scratch/err"; }
check "bridge_tests_pass" bridge

printf '\nload test\n'
stress() {
  (cd "$root" && env -u AGENT_URL -u AGENT_TOKEN cargo run --quiet --locked --example stress -- --server "$server" --bridge "$cache/bin/bridge" \
    --connections 20 --turns 2 --deltas 30 --delta-ms 20) >"$scratch/out" 2>"$scratch/err"
}
check "load_through_bridge_succeeds" stress
cat "$scratch/out"

# ---- summary ----
if (( failed > 0 )); then
  printf '\nLast lines of the server log:\n'
  tail -n 40 "$scratch/stderr"
fi
printf '\n%d passed, %d failed\n' "$passed" "$failed"
(( passed > 0 && failed == 0 ))
