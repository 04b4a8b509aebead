#!/usr/bin/env bash
# Builds the web page from its sources into web/dist, which is committed so that the server needs no Node:
#
#   web/build.sh            builds it
#   web/build.sh --check    fails where what is committed is not what the sources build
#
# Needs Node 20.19 or later with npm, and python3. What it installs is pinned; node_modules and the generated types are ignored by git.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
cd "$here"

if ! cmp -s package-lock.json node_modules/.installed; then
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
  cp package-lock.json node_modules/.installed
fi

# The compiler of protocols is that of the stubs.
venv=${STUB_TOOLS:-$root/target/stubs}/venv
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
grpcio_tools=$(sed -n 's/^grpcio_tools=//p' "$root/infra/generate-stubs.sh")
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "grpcio-tools==$grpcio_tools"
rm -rf src/gen
mkdir -p src/gen
"$venv/bin/python" -m grpc_tools.protoc -I "$root/proto" --plugin=protoc-gen-es=node_modules/.bin/protoc-gen-es \
  --es_out=src/gen --es_opt=target=ts,import_extension=ts "$root"/proto/*.proto

npm run --silent check
if [[ ${1-} != --check ]]; then
  npm run --silent build
  exit
fi
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
npm run --silent build -- --outDir "$built" --emptyOutDir
if ! diff -r dist "$built" >/dev/null; then
  echo "web/dist is not what the sources build: run web/build.sh and commit what it writes" >&2
  diff -rq dist "$built" >&2 || true
  exit 1
fi
echo "web/dist is what the sources build"
