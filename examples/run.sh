#!/usr/bin/env bash
# Runs every example against a real server and checks what it prints.
#
#   examples/run.sh PATH_TO_AGENT_LOCAL
#
# Needs cargo, Go, python3 and Node 20 or later with npm. What it installs is pinned by lock files and kept in target/examples and
# beside the examples of Node, where git ignores it. The server gets a free port, a data folder of its own and no .env file.
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

# Says nothing unless the command fails.
quietly() {
  "$@" >"$scratch/said" 2>&1 || { cat "$scratch/said" >&2; exit 1; }
}

# ---- what the examples need ----
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
  # The compiler of protocols is that of the stubs.
  for script in "${@:2}"; do PROTOC="$python -m grpc_tools.protoc" quietly npm --prefix "$folder" run --silent "$script"; done
}
node_example connect-web generate build
node_example grpc-web generate
export PATH=$cache/bin:$PATH PYTHONPATH=$root/gen/python PYTHONDONTWRITEBYTECODE=1

# ---- the server ----
# Callers show a key, so that each example has to authenticate. Pieces 5 ms apart leave time to cut and stop between them.
export AGENT_TOKEN=the-key-of-services
cd "$scratch"
env -i PATH="$PATH" HOME="$scratch" LEARNING=off \
  DEMO_MODE=true DEMO_THINKING_DELAY_MS=0 DEMO_CHUNK_DELAY_MS=5 EMBEDDING_PROVIDER=hashed RATE_LIMITS=off \
  AUTH=jwt JWT_SECRET="a secret that nobody else knows" INTERNAL_API_KEY="$AGENT_TOKEN" \
  GRPC_PORT=0 AGENT_DATA_DIR="$scratch/data" "$server" >"$scratch/stdout" 2>"$scratch/stderr" &
server_pid=$!
for (( tenths = 0; tenths < 1200; tenths++ )); do
  if grep -q '^Ready\.' "$scratch/stdout" || ! kill -0 "$server_pid" 2>/dev/null; then break; fi
  sleep 0.1
done
if ! grep -q '^Ready\.' "$scratch/stdout"; then
  cat "$scratch/stdout" "$scratch/stderr" >&2
  echo "the server ended, or was not ready within two minutes" >&2
  exit 1
fi
AGENT_URL=$(sed -n 's|.*\(http://127\.0\.0\.1:[0-9]\{1,\}\).*|\1|p' "$scratch/stdout" | head -n 1)
export AGENT_URL

# ---- the checks ----
passed=0 failed=0
check() { # SENTENCE COMMAND…
  if "${@:2}"; then
    passed=$(( passed + 1 ))
    echo "ok  $1"
  else
    failed=$(( failed + 1 ))
    echo "FAIL  $1"
    tail -n 20 "$scratch/err" "$scratch/out"
  fi
}
# Runs an example, whose name is that of its user as well, to a file for each of its outputs.
run() { # ARGUMENTS…
  AGENT_USER=$example "${command[@]}" "$@" >"$scratch/out" 2>"$scratch/err"
}
says() { grep -qi -- "$1" "$scratch/err"; }
whole() { cmp -s "$scratch/out" "$scratch/whole"; }

answers() { run "$question" && whole && says '^\[THINKING\]' && says '^\[GENERATING\]'; }
finds_what_it_added() { says '  0\.[0-9]*  The calculus exam is on the ninth of June'; }
resumes() { run --cut-after 20 "$question" && whole && [[ $(grep -c '^\[connection lost; resuming\]$' "$scratch/err") == 1 ]]; }
is_stopped() { ! run --stop-after 20 "$question" && says '^failed: CANCELLED: ' && ! whole && [[ -s $scratch/out ]]; }
is_refused() { ! run ' ' && says '^refused: invalid_\?argument: message ' && [[ ! -s $scratch/out ]]; }
is_not_let_in() { ! AGENT_TOKEN='' run "$question" && says '^refused: unauthenticated: '; }

# What the server answers in demo mode.
"$python" - "$root/shared/llm/demo_responses.json" "$question" >"$scratch/whole" <<'PYTHON'
import json, sys
file, question = sys.argv[1:]
print(next(one["answer"] for one in json.load(open(file))["responses"] if question in one["questions"]))
PYTHON

while read -r -a command; do
  example=${command[0]} command=("${command[@]:1}")
  printf '\n%s\n' "$example"
  check "types the whole answer, behind statuses" answers
  check "finds the memory that it added" finds_what_it_added
  check "goes on where it was cut, and shows nothing twice" resumes
  check "stops an answer, which ends with an error frame" is_stopped
  check "tells a refusal from a failure" is_refused
  check "is not let in without its token" is_not_let_in
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
check "makes every call" run "$question"
check "finds, streams and lists" shows '^agent\.v1\.AgentService$' '"content": "The calculus exam' '"delta": ' '"finishReason": "STOP"' '"sessions": ' '"turns": 1' '"memories": '
resumes_behind() { # Frame 20 is the last that was seen.
  local first
  first=$(sed -n 's/.*"responseId": ".*-\(.*\)".*/\1/p' "$scratch/out" | sed -n '1p')
  (( 16#$first == 16#$(sed -n 's/.*"responseId": ".*-\(.*\)".*/\1/p' "$scratch/err" | sed -n '20p') + 1 ))
}
check "resumes behind the frame that it names" resumes_behind

printf '\nbridge\n'
bridge() { go test -C "$here/go" -count=1 ./bridge >"$scratch/out" 2>"$scratch/err"; }
check "resumes, stops, refuses, and bounds what it reads" bridge

printf '\nthe whole chain\n'
stress() {
  (cd "$root" && env -u AGENT_URL -u AGENT_TOKEN cargo run --quiet --locked --example stress -- --server "$server" --bridge "$cache/bin/bridge" \
    --connections 20 --turns 2 --deltas 30 --delta-ms 20) >"$scratch/out" 2>"$scratch/err"
}
check "many people chat through the bridge" stress
cat "$scratch/out"

# ---- the end ----
if (( failed > 0 )); then
  printf '\nThe last that the server said:\n'
  tail -n 40 "$scratch/stderr"
fi
printf '\n%d passed, %d failed\n' "$passed" "$failed"
(( passed > 0 && failed == 0 ))
