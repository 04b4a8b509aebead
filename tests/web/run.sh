#!/usr/bin/env bash
# Tests browser clients (gRPC-Web libraries and the web page in Chromium) against the functions under `cargo lambda watch` and
# against agent-local.
#
#   tests/web/run.sh PATH_TO_AGENT_LOCAL
#
# ONLY=TEXT runs only the page checks whose name contains TEXT. Screenshots are written to WEB_CACHE/images; those in docs/images
# are copied from there. Needs cargo, python3, Node 20 or later with npm, and Chromium (CHROMIUM, default /usr/bin/chromium).
# Everything installed is pinned and cached in WEB_CACHE (default target/web); the checks run there, too, so that the source tree
# stays clean. Uses free ports and reads no .env file.
set -euo pipefail

if (( $# != 1 )) || [[ ! -x $1 ]]; then
  echo "usage: tests/web/run.sh PATH_TO_AGENT_LOCAL" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
server=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cache=${WEB_CACHE:-$root/target/web}

scratch=$(mktemp -d)
server_pid='' guarded_pid='' watch_pid=''
# The functions run in process groups of their own, so children are listed recursively.
with_descendants() {
  local child
  for child in $(pgrep -P "$1" || true); do with_descendants "$child"; done
  echo "$1"
}
stop_process() { # PID
  local pids tenths
  [[ -n $1 ]] || return 0
  pids=$(with_descendants "$1")
  kill -TERM "$1" 2>/dev/null || true
  for (( tenths = 0; tenths < 50; tenths++ )); do
    kill -0 "$1" 2>/dev/null || break
    sleep 0.1
  done
  # shellcheck disable=SC2086 # one word per process
  kill -KILL $pids 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}
cleanup() {
  stop_process "$watch_pid"
  stop_process "$guarded_pid"
  stop_process "$server_pid"
  rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Prints the output only if the command fails.
quietly() {
  "$@" >"$scratch/output" 2>&1 || { cat "$scratch/output" >&2; exit 1; }
}

# Waits for a line in a file while the process runs.
await_line() { # PID FILE PATTERN SECONDS
  local tenths
  for (( tenths = 0; tenths < $4 * 10; tenths++ )); do
    if grep -q "$3" "$2"; then return; fi
    kill -0 "$1" 2>/dev/null || break
    sleep 0.1
  done
  cat "$scratch"/*.log >&2
  echo "error: a process exited, or did not print \"$3\" within $4 seconds" >&2
  exit 1
}

# ---- client dependencies ----
mkdir -p "$cache/gen"
cache=$(cd "$cache" && pwd)
rm -rf "$cache/page" "$cache/images"
cp -r "$here"/*.js "$here"/page "$here"/package*.json "$here/.npmrc" "$cache"
if ! cmp -s "$cache/package-lock.json" "$cache/node_modules/.installed"; then
  (cd "$cache" && quietly npm ci --ignore-scripts --no-audit --no-fund)
  cp "$cache/package-lock.json" "$cache/node_modules/.installed"
fi
# The same protoc as infra/generate-stubs.sh.
grpcio_tools=$(sed -n 's/^grpcio_tools=//p' "$root/infra/generate-stubs.sh")
[[ -x $cache/venv/bin/python ]] || quietly python3 -m venv "$cache/venv"
quietly "$cache/venv/bin/python" -m pip install --quiet --disable-pip-version-check "grpcio-tools==$grpcio_tools"
quietly "$cache/venv/bin/python" -m grpc_tools.protoc -I "$root/proto" \
  --plugin=protoc-gen-es="$cache/node_modules/.bin/protoc-gen-es" \
  --es_out="$cache/gen" --es_opt=target=js,import_extension=js "$root"/proto/*.proto

# ---- the server and the functions ----
# Below the ephemeral range, so that no outgoing connection takes the port before it is bound.
free_port() {
  local port
  while port=$(( 20000 + RANDOM % 12000 )); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}
provider_port=$(free_port)
settings=(
  LLM_PROVIDER=compatible
  LLM_API_BASE_URL="http://127.0.0.1:$provider_port/v1"
  LLM_API_KEY=test-key
  LLM_MODEL_NAME=test-model
  EMBEDDING_PROVIDER=hashed
  LLM_MAX_ATTEMPTS=1
)

jwt_secret=test-secret-of-at-least-32-characters
cat >"$scratch/tools.json" <<'TOOLS'
[{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city",
  "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
TOOLS

cd "$scratch"
# LEARNING=off, so that facts from one check cannot appear in another.
serve() { # NAME VARIABLE…
  env -i PATH="$PATH" HOME="$scratch" LEARNING=off GRPC_PORT=0 "${@:2}" "$server" >"$scratch/$1.out.log" 2>"$scratch/$1.log" &
}
url_of() { # NAME
  sed -n 's|.*address *\(http://127\.0\.0\.1:[0-9]\{1,\}\).*|\1|p' "$scratch/$1.out.log" | head -n 1
}
# Long timeouts: an answer ends only because it is complete or cancelled.
serve server "${settings[@]}" RESUME_GRACE_SECONDS=3600 LLM_IDLE_TIMEOUT_SECONDS=300 TOOLS_FILE="$scratch/tools.json" AGENT_DATA_DIR="$scratch/data"
server_pid=$!
await_line "$server_pid" "$scratch/server.out.log" '^Ready\.' 120
server_url=$(url_of server)

database_url="postgres://postgres@localhost/postgres?host=$scratch/data/socket"
serve guarded DEMO_MODE=true DEMO_THINKING_DELAY_MS=0 DEMO_CHUNK_DELAY_MS=0 AUTH=jwt JWT_SECRET="$jwt_secret" DATABASE_URL="$database_url"
guarded_pid=$!
await_line "$guarded_pid" "$scratch/guarded.out.log" '^Ready\.' 60
guarded_url=$(url_of guarded)
printf '%s\n' "${settings[@]}" AUTH=none DATABASE_URL="$database_url" >"$scratch/env"
functions_port=$(free_port)
"$root/infra/watch.sh" -P "$functions_port" --ignore-changes --env-file "$scratch/env" >"$scratch/watch.log" 2>&1 &
watch_pid=$!
# A cold cache builds the functions first.
await_line "$watch_pid" "$scratch/watch.log" 'starting Runtime server' 900

# ---- the clients ----
functions_url=http://127.0.0.1:$functions_port/lambda-url
# Runs both, even if the first one fails.
checks() {
  local exit_code=0
  [[ -n ${ONLY-} ]] || node "$cache/checks.js" "$provider_port" "$functions_url" "$server_url" || exit_code=$?
  node "$cache/page.js" "$provider_port" "$functions_url" "$server_url" "$guarded_url" "$jwt_secret" "$cache/images" || exit_code=$?
  return "$exit_code"
}
status=0
checks | tee "$scratch/results" || status=$?
passed=$(grep -c '^ok  ' "$scratch/results" || true)
failed=$(grep -c '^FAIL  ' "$scratch/results" || true)
if (( status != 0 || failed > 0 )); then
  printf '\nLast lines of the logs:\n'
  tail -n 40 "$scratch"/*.log
fi
printf '\n%d passed, %d failed\n' "$passed" "$failed"
(( status == 0 && passed > 0 && failed == 0 ))
