#!/usr/bin/env bash
# Runs the functions locally with `cargo lambda watch` and the settings of .env, and rebuilds them when they change:
#
#     infra/watch.sh                      on 127.0.0.1:9000
#     infra/watch.sh -P 9001 --ignore-changes
#
# Other options are passed to `cargo lambda watch`. --env-file FILE reads FILE instead of .env.
#
# Cargo Lambda is a Python package, cached in LAMBDA_TOOLS (default target/tools/lambda) unless the same version is installed. No
# configuration is needed: without a provider key the demo model answers, and without DATABASE_URL there is no memory. To use the
# database of a running `agent-local` (default data directory ~/.local/share/agent-service):
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
# Cargo Lambda's own parser fails on a second `=` in a line, as in database URLs, and lets the file override the environment.
# This one behaves like agent-local's.
read_env_file() {
  local line name value number=0
  while IFS= read -r line || [[ -n $line ]]; do
    number=$(( number + 1 ))
    line=${line%$'\r'}
    if [[ $line =~ ^[[:space:]]*(#.*)?$ ]]; then continue; fi
    if ! [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)[[:space:]]*=[[:space:]]*(.*)$ ]]; then
      # The line itself may contain a secret.
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
  [[ -r $env_file ]] || { echo "watch: cannot read $env_file" >&2; exit 1; }
  read_env_file "$env_file"
fi

# A function with a database or a provider key requires AUTH. On loopback it defaults to none, as in agent-local. Token keys
# without AUTH are a configuration error, which the functions report.
if [[ -z ${AUTH-} && -z ${JWT_SECRET-}${JWT_JWKS_URL-} && ( $address == 127.* || $address == ::1 || $address == localhost ) ]]; then
  echo "watch: AUTH is not set; using AUTH=none, because only this machine can reach $address"
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
# Build first: a client that times out while `cargo lambda watch` compiles ends the function.
cargo build --locked --bin stream-chat --bin retrieve-memory --bin manage-memory

url=http://$address:$port/lambda-url
cat <<USAGE
Functions for gRPC-Web clients:
  $url/stream-chat        AgentService/StreamChat
  $url/retrieve-memory    AgentService/RetrieveMemory
  $url/manage-memory      MemoryService
Try in a second terminal (user "ann" sends "hello"; the last two need a database):
  call() { curl -sN -H 'content-type: application/grpc-web+proto' --data-binary @- $url/\$1 | tr -c '[:print:]' '\n'; }
  printf '\0\0\0\0\014\012\003ann\032\005hello' | call stream-chat/agent.v1.AgentService/StreamChat
  printf '\0\0\0\0\016\012\003ann\022\007\022\005hello' | call manage-memory/agent.v1.MemoryService/AddMemories
  printf '\0\0\0\0\014\012\003ann\022\005hello' | call retrieve-memory/agent.v1.AgentService/RetrieveMemory
USAGE
exec cargo lambda watch --locked --invoke-address "$address" --invoke-port "$port" ${options[@]+"${options[@]}"}
