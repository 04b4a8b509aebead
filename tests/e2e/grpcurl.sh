#!/usr/bin/env bash
# Asks the server what it offers and calls it with that alone: no proto file is read here.
# It leaves memories behind for SEEDED_USER, for clients that can only read them.
#
#   tests/e2e/grpcurl.sh ADDRESS SEEDED_USER
set -euo pipefail

address=$1
user=$2
failed=0

# Checks that a grpcurl call succeeds and that what it prints, blanks aside, matches every pattern.
# Whether a field is printed as total_found or totalFound is up to the server's descriptors.
check() { # SENTENCE PATTERNS… -- ARGUMENTS…
  local sentence=$1 patterns=() output pattern missing=
  shift
  while [[ $1 != -- ]]; do patterns+=("$1"); shift; done
  shift
  if output=$(grpcurl -plaintext -max-time 60 "$@" 2>&1); then
    for pattern in "${patterns[@]}"; do
      tr -d ' \n' <<<"$output" | grep -qE -- "$pattern" || missing=$pattern
    done
    [[ $missing ]] || { echo "ok  $sentence"; return; }
  fi
  failed=1
  printf 'FAIL  %s\n' "$sentence"
  [[ -z $missing ]] || echo "nothing matches $missing in what ends with:"
  tail -n 20 <<<"$output"
}

check "reflection lists the services" \
  'agent\.v1\.AgentService' 'agent\.v1\.MemoryService' 'grpc\.health\.v1\.Health' -- \
  "$address" list

check "reflection describes AgentService" \
  'rpcStreamChat\(\.agent\.v1\.ChatRequest\)returns\(stream\.agent\.v1\.ChatResponse\)' \
  'rpcRetrieveMemory\(\.agent\.v1\.MemoryQuery\)returns\(\.agent\.v1\.MemoryResult\)' -- \
  "$address" describe agent.v1.AgentService

check "AddMemories through reflection" '"ids":\["plan","exam"\]' -- \
  -d '{"user_id": "'"$user"'", "memories": [
        {"id": "plan", "content": "高数复习计划:先极限,再导数,最后积分"},
        {"id": "exam", "content": "The calculus exam is on the ninth of June", "source_type": "fact"}]}' \
  "$address" agent.v1.MemoryService/AddMemories

check "RetrieveMemory through reflection" '"id":"plan"' '"total_?[fF]ound":' -- \
  -H "user-id: $user" -d '{"query_text": "高数复习计划", "limit": 3}' \
  "$address" agent.v1.AgentService/RetrieveMemory

check "StreamChat through reflection" '"state":"THINKING"' '"citations":' '"full_?[tT]ext":' '"finish_?[rR]eason":"STOP"' -- \
  -H "user-id: $user" -d '{"message": "帮我制定高数复习计划"}' \
  "$address" agent.v1.AgentService/StreamChat

exit $failed
