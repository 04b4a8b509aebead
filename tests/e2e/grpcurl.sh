#!/usr/bin/env bash
# Calls the server through reflection only, without proto files. Stores memories for SEEDED_USER, which other checks read.
#
#   tests/e2e/grpcurl.sh ADDRESS SEEDED_USER
set -euo pipefail

address=$1
user=$2
failed=0

# Checks that a grpcurl call succeeds and that its output, without blanks, matches every pattern. Field names appear as
# total_found or totalFound, depending on the server's descriptors.
check() { # NAME PATTERNS… -- ARGUMENTS…
  local name=$1 patterns=() output pattern missing=
  shift
  while [[ $1 != -- ]]; do patterns+=("$1"); shift; done
  shift
  if output=$(grpcurl -plaintext -max-time 60 "$@" 2>&1); then
    for pattern in "${patterns[@]}"; do
      tr -d ' \n' <<<"$output" | grep -qE -- "$pattern" || missing=$pattern
    done
    [[ $missing ]] || { echo "ok  $name"; return; }
  fi
  failed=1
  printf 'FAIL  %s\n' "$name"
  [[ -z $missing ]] || echo "no match for $missing; end of the output:"
  tail -n 20 <<<"$output"
}

check "reflection_lists_services" \
  'agent\.v1\.AgentService' 'agent\.v1\.MemoryService' 'grpc\.health\.v1\.Health' -- \
  "$address" list

check "reflection_describes_agent_service" \
  'rpcStreamChat\(\.agent\.v1\.ChatRequest\)returns\(stream\.agent\.v1\.ChatResponse\)' \
  'rpcRetrieveMemory\(\.agent\.v1\.MemoryQuery\)returns\(\.agent\.v1\.MemoryResult\)' -- \
  "$address" describe agent.v1.AgentService

check "add_memories_through_reflection" '"ids":\["plan","exam"\]' -- \
  -d '{"user_id": "'"$user"'", "memories": [
        {"id": "plan", "content": "高数复习计划:先极限,再导数,最后积分"},
        {"id": "exam", "content": "The calculus exam is on the ninth of June", "source_type": "fact"}]}' \
  "$address" agent.v1.MemoryService/AddMemories

check "retrieve_memory_through_reflection" '"id":"plan"' '"total_?[fF]ound":' -- \
  -H "user-id: $user" -d '{"query_text": "高数复习计划", "limit": 3}' \
  "$address" agent.v1.AgentService/RetrieveMemory

check "stream_chat_through_reflection" '"state":"THINKING"' '"citations":' '"full_?[tT]ext":' '"finish_?[rR]eason":"STOP"' -- \
  -H "user-id: $user" -d '{"message": "帮我制定高数复习计划"}' \
  "$address" agent.v1.AgentService/StreamChat

exit $failed
