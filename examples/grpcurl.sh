#!/usr/bin/env bash
# Calls the service with grpcurl through server reflection, without proto files.
#
#   examples/grpcurl.sh [QUESTION]
#
# Environment: AGENT_URL (service address), AGENT_USER (user id), AGENT_TOKEN (bearer token).
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
# Encodes a text as a JSON string.
json_string() { sed 's/[\\"]/\\&/g; 1s/^/"/; $s/$/"/' <<<"$1"; }

grpcurl "${options[@]}" "$address" list

call MemoryService/AddMemories '{"memories": [{"id": "exam", "content": "The calculus exam is on the ninth of June"}]}'
call AgentService/RetrieveMemory '{"query_text": "when is the exam?", "limit": 3}'

request='{"request_id": "'"$(date +%s)-$$"'", "message": '$(json_string "$question")'}'
frames=$(call AgentService/StreamChat "$request" | tee /dev/stderr)

# Resumes behind frame 20, as after a lost connection.
last_response_id=$(sed -n 's/.*"responseId": "\(.*\)".*/\1/p' <<<"$frames" | sed -n 20p)
call AgentService/StreamChat "$request" -H "x-last-response-id: $last_response_id"

call ConversationService/ListSessions '{"page_size": 1}'
session=$(sed -n 's/.*"sessionId": "\(.*\)".*/\1/p' <<<"$frames" | tail -n 1)
call ConversationService/GetSession '{"session_id": "'"$session"'"}'
# Cancels the running turn of the session; here it has already ended.
call ConversationService/CancelTurn '{"session_id": "'"$session"'"}'
call MemoryService/ListMemories '{"page_size": 3}'
