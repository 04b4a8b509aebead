#!/usr/bin/env bash
# Runs independent clients (Python, Go, grpcurl, hand-written gRPC-Web) against a real server.
#
#   tests/e2e/run.sh PATH_TO_AGENT_LOCAL
#
# Needs python3 and Go. Everything installed is pinned and cached in E2E_CACHE (default target/e2e). The server gets a free port,
# its own data directory and only the configuration below.
set -euo pipefail

if (( $# != 1 )) || [[ ! -x $1 ]]; then
  echo "usage: tests/e2e/run.sh PATH_TO_AGENT_LOCAL" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
server=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cache=${E2E_CACHE:-$root/target/e2e}
grpcurl_version=v1.9.4

scratch=$(mktemp -d)
results=$scratch/results
server_pid=
cleanup() {
  [[ -z $server_pid ]] || kill -KILL "$server_pid" 2>/dev/null || true
  rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() { echo "FAIL  $*" | tee -a "$results"; }

# Runs a client that prints one line per check. A client that exits with an error but no FAIL line is a failure, too.
client() { # NAME COMMAND…
  local name=$1 output=$scratch/output
  shift
  printf '\n%s\n' "$name"
  if ! "$@" 2>&1 | tee "$output" && ! grep -q '^FAIL' "$output"; then
    fail "$name exited early"
  fi
  cat "$output" >>"$results"
}

# Prints the output only if the command fails.
quietly() {
  "$@" >"$scratch/command_output" 2>&1 || { cat "$scratch/command_output" >&2; exit 1; }
}

running() { kill -0 "$server_pid" 2>/dev/null; }

# ---- dependencies ----
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
STUB_TOOLS=$cache "$root/infra/generate-stubs.sh"
python=$cache/venv/bin/python
"$python" -m pip install --quiet --requirement "$here/python/requirements.txt"
mkdir -p "$cache/old_generation"
"$python" -m grpc_tools.protoc -I "$here/old_generation" --python_out="$cache/old_generation" \
  --grpc_python_out="$cache/old_generation" "$here/old_generation/agent_service.proto"
GOBIN=$cache/bin quietly go install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version"
quietly go build -C "$here/go" -o "$cache/bin/gateway" .
quietly go build -C "$here/go" -o "$cache/bin/tokens" ./tokens
quietly go build -C "$here/go" -o "$cache/bin/tools" ./tools
quietly go build -C "$here/go" -o "$cache/bin/messages" ./messages
export PATH=$cache/bin:$PATH PYTHONDONTWRITEBYTECODE=1

# ---- the server ----
# Runs in an empty directory, so that no .env file is read. LEARNING=off, so that facts from one check cannot appear in another.
# RATE_LIMITS=off, because the clients exceed the default quotas. Deltas every 5 ms leave time to cancel.
cd "$scratch"
address=
serve() { # VARIABLE=VALUE…
  local tenths
  address=
  # Truncated here, because the first poll may run before the server's redirection.
  : >"$scratch/stdout"
  env -i PATH="$PATH" HOME="$scratch" LEARNING=off \
    DEMO_MODE=true DEMO_THINKING_DELAY_MS=0 DEMO_CHUNK_DELAY_MS=5 EMBEDDING_PROVIDER=hashed RATE_LIMITS=off \
    GRPC_PORT=0 AGENT_DATA_DIR="$scratch/data" "$@" \
    "$server" >"$scratch/stdout" 2>"$scratch/stderr" &
  server_pid=$!
  for (( tenths = 0; tenths < 600; tenths++ )); do
    # A server on 0.0.0.0 is called through loopback.
    address=$(sed -n 's#.*http://\(127\.0\.0\.1\|0\.0\.0\.0\):\([0-9]\{1,\}\).*#127.0.0.1:\2#p' "$scratch/stdout" | head -n 1)
    if [[ -n $address ]] || ! running; then break; fi
    sleep 0.1
  done
  if [[ -z $address ]]; then
    cat "$scratch/stdout" "$scratch/stderr" >&2
    echo "error: the server exited, or did not print its address within a minute" >&2
    exit 1
  fi
}
stop_server() {
  local tenths status=0
  printf '\nserver\n'
  kill -TERM "$server_pid" 2>/dev/null || true
  for (( tenths = 0; tenths < 300; tenths++ )); do
    running || break
    sleep 0.1
  done
  running && kill -KILL "$server_pid"
  wait "$server_pid" || status=$?
  server_pid=
  if (( status == 0 )); then
    echo "ok  sigterm_exits_with_code_0" | tee -a "$results"
  else
    fail "sigterm_exits_with_code_0: exit code $status"
  fi
}
# Waits until the database is ready.
wait_until_ready() {
  local tenths
  for (( tenths = 0; tenths < 600; tenths++ )); do
    if grep -q '^Ready\.$' "$scratch/stdout" || ! running; then return; fi
    sleep 0.1
  done
}
serve

# ---- the clients ----
user=seeded-$$
current() { PYTHONPATH=$root/gen/python "$python" "$here/python/$1.py" "$address" "${@:2}"; }
old() { PYTHONPATH=$cache/old_generation "$python" "$here/python/$1.py" "$address" "${@:2}"; }

client "health" current health
client "grpcurl" "$here/grpcurl.sh" "$address" "$user"
client "python, chat" current chat
client "python, refusals" current refusals
client "python, memory" current memory
client "python, old generation" old old_client "$user"
client "gRPC-Web" current web "$user"
client "go gateway" gateway "$address"
client "go tokens" tokens "$server"
client "go tools" tools "$server"
client "go messages" messages "$server"

stop_server

# The gateway as deployed: in a trusted network (AUTH=gateway), and with an internal API key.
serve AUTH=gateway GRPC_HOST=0.0.0.0
wait_until_ready
client "go gateway, trusted network" gateway "$address"
stop_server
serve AUTH=jwt JWT_SECRET="test secret of at least 32 characters" INTERNAL_API_KEY=test-internal-api-key
wait_until_ready
client "go gateway, internal API key" gateway "$address" test-internal-api-key
stop_server

# ---- summary ----
passed=$(grep -c '^ok  ' "$results" || true)
failed=$(grep -c '^FAIL  ' "$results" || true)
if (( failed > 0 )); then
  printf '\nLast lines of the server log:\n'
  tail -n 40 "$scratch/stderr"
fi
printf '\n%d passed, %d failed\n' "$passed" "$failed"
(( passed > 0 && failed == 0 ))
