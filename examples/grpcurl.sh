#!/usr/bin/env bash
# The calls of the service by grpcurl, which needs no proto files: the server describes itself.
#
#   examples/grpcurl.sh [QUESTION]
#
# AGENT_URL, AGENT_USER and AGENT_TOKEN say where, for whom, and by which right.
set -euo pipefail

url=${AGENT_URL:-http://127.0.0.1:50051}
address=${url#*://}
question=${1:-Make me a calculus review plan}

options=(-max-time 300 -H "user-id: ${AGENT_USER:-ann}")
[[ $url == https://* ]] || options+=(-plaintext)
[[ -z ${AGENT_TOKEN:-} ]] || options+=(-H "authorization: Bearer $AGENT_TOKEN")

call() { # METHOD JSON [OPTION…]
  printf '\n== %s\n' "$1"
  grpcurl "${options[@]}" "${@:3}" -d "$2" "$address" "agent.v1.$1"
}
# A text as a string of JSON.
quoted() { sed 's/[\\"]/\\&/g; 1s/^/"/; $s/$/"/' <<<"$1"; }

grpcurl "${options[@]}" "$address" list

call MemoryService/AddMemories '{"memories": [{"id": "exam", "content": "The calculus exam is on the ninth of June"}]}'
call AgentService/RetrieveMemory '{"query_text": "when is the exam?", "limit": 3}'

request='{"request_id": "'"$(date +%s)-$$"'", "message": '$(quoted "$question")'}'
frames=$(call AgentService/StreamChat "$request" | tee /dev/stderr)

# The same request again, as after a lost connection: what comes behind a frame that was seen.
seen=$(sed -n 's/.*"responseId": "\(.*\)".*/\1/p' <<<"$frames" | sed -n 20p)
call AgentService/StreamChat "$request" -H "x-last-response-id: $seen"

call ConversationService/ListSessions '{"page_size": 1}'
session=$(sed -n 's/.*"sessionId": "\(.*\)".*/\1/p' <<<"$frames" | tail -n 1)
call ConversationService/GetSession '{"session_id": "'"$session"'"}'
# Stops the answer that is being given in the conversation; here there is none any more.
call ConversationService/CancelTurn '{"session_id": "'"$session"'"}'
call MemoryService/ListMemories '{"page_size": 3}'
