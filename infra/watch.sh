#!/usr/bin/env bash
# Runs the functions on this machine by `cargo lambda watch`, with the settings of .env, and builds them again when they change:
#
#     infra/watch.sh                      on 127.0.0.1:9000
#     infra/watch.sh -P 9001 --ignore-changes
#
# Other options are those of `cargo lambda watch`. With --env-file FILE, that file is read instead of .env.
#
# Cargo Lambda is a package of Python, which is kept in LAMBDA_TOOLS (target/tools/lambda if not set), unless the same version is
# installed already. Nothing has to be configured: without a key the answers are canned, and without DATABASE_URL there is no memory.
# With the memory of a running `agent-local`, whose folder is by default ~/.local/share/agent-service:
#
#     DATABASE_URL="postgres://postgres@localhost/postgres?host=$HOME/.local/share/agent-service/socket" infra/watch.sh
set -euo pipefail

version=1.9.2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=${LAMBDA_TOOLS:-$root/target/tools/lambda}

address=127.0.0.1 port=9000 env_file= options=()
while (( $# > 0 )); do
  case $1 in
    -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; exit ;;
    -A | --invoke-address) address=${2:?"$1 needs an address"}; shift ;;
    -P | --invoke-port) port=${2:?"$1 needs a port"}; shift ;;
    --env-file) env_file=${2:?"$1 needs a file"}; shift ;;
    *) options+=("$1") ;;
  esac
  shift
done
# Cargo Lambda's own reader of such files stumbles over a second = in a line, as in the addresses of databases, and lets the file
# overrule the environment. agent-local does neither.
read_env_file() {
  local line name value number=0
  while IFS= read -r line || [[ -n $line ]]; do
    number=$(( number + 1 ))
    line=${line%$'\r'}
    if [[ $line =~ ^[[:space:]]*(#.*)?$ ]]; then continue; fi
    if ! [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)[[:space:]]*=[[:space:]]*(.*)$ ]]; then
      # Not the line itself, which may be a secret.
      echo "watch: line $number of $1 is not NAME=value" >&2
      exit 1
    fi
    name=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
    if [[ $value =~ ^\"([^\"]*)\"[[:space:]]*(#.*)?$ || $value =~ ^\'([^\']*)\'[[:space:]]*(#.*)?$ ]]; then
      value=${BASH_REMATCH[1]}
    else
      value=${value%%[[:space:]]#*}
      value=${value%"${value##*[![:space:]]}"}
    fi
    if [[ -z ${!name+set} ]]; then export "$name=$value"; fi
  done <"$1"
}
if [[ -z $env_file && -e $root/.env ]]; then env_file=$root/.env; fi
if [[ -n $env_file ]]; then
  [[ -r $env_file ]] || { echo "watch: $env_file can not be read" >&2; exit 1; }
  read_env_file "$env_file"
fi

# A function with something to guard wants to be told who may call. Nobody else can call here, as with agent-local; keys of tokens
# without a word on AUTH are left for the functions to complain of.
if [[ -z ${AUTH-} && -z ${JWT_SECRET-}${JWT_JWKS_URL-} && ( $address == 127.* || $address == ::1 || $address == localhost ) ]]; then
  echo "watch: AUTH is not set, and only this machine can reach $address: AUTH=none"
  export AUTH=none
fi

if [[ $(cargo lambda --version 2>/dev/null) != *" $version "* ]]; then
  if ! "$tools/bin/cargo-lambda" lambda --version 2>/dev/null | grep -q " $version "; then
    python3 -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "cargo-lambda==$version"
  fi
  PATH=$tools/bin:$PATH
fi

cd "$root"
# Whoever calls first would otherwise wait for the compiler, and a client that gives up ends the function.
cargo build --locked --bin stream-chat --bin retrieve-memory --bin manage-memory

url=http://$address:$port/lambda-url
cat <<TOLD
Functions for clients of gRPC-Web:
  $url/stream-chat        AgentService/StreamChat
  $url/retrieve-memory    AgentService/RetrieveMemory
  $url/manage-memory      MemoryService
Try, in a second terminal ("ann" says "hello"; the last two need a database):
  call() { curl -sN -H 'content-type: application/grpc-web+proto' --data-binary @- $url/\$1 | tr -c '[:print:]' '\n'; }
  printf '\0\0\0\0\014\012\003ann\032\005hello' | call stream-chat/agent.v1.AgentService/StreamChat
  printf '\0\0\0\0\016\012\003ann\022\007\022\005hello' | call manage-memory/agent.v1.MemoryService/AddMemories
  printf '\0\0\0\0\014\012\003ann\022\005hello' | call retrieve-memory/agent.v1.AgentService/RetrieveMemory
TOLD
exec cargo lambda watch --locked --invoke-address "$address" --invoke-port "$port" ${options[@]+"${options[@]}"}
