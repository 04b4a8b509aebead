#!/usr/bin/env bash
# Builds the web page into web/dist. The result is committed, so that building the server needs no Node.
#
#   web/build.sh            build
#   web/build.sh --check    fail if the committed files differ from a fresh build
#
# Needs Node 20.19 or later with npm, and python3. All versions are pinned; git ignores node_modules and the generated types.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
cd "$here"

if ! cmp -s package-lock.json node_modules/.installed; then
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
  cp package-lock.json node_modules/.installed
fi

# The same protoc as infra/generate-stubs.sh.
venv=${STUB_TOOLS:-$root/target/stubs}/venv
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
grpcio_tools=$(sed -n 's/^grpcio_tools=//p' "$root/infra/generate-stubs.sh")
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "grpcio-tools==$grpcio_tools"
rm -rf src/gen
mkdir -p src/gen
"$venv/bin/python" -m grpc_tools.protoc -I "$root/proto" --plugin=protoc-gen-es=node_modules/.bin/protoc-gen-es \
  --es_out=src/gen --es_opt=target=ts,import_extension=ts "$root"/proto/*.proto

npm run --silent check
npm run --silent test
if [[ ${1-} != --check ]]; then
  npm run --silent build
  exit
fi
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
npm run --silent build -- --outDir "$built" --emptyOutDir
if ! diff -r dist "$built" >/dev/null; then
  echo "web/dist is out of date: run web/build.sh and commit the result" >&2
  diff -rq dist "$built" >&2 || true
  exit 1
fi
echo "web/dist is up to date"
