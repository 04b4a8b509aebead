#!/usr/bin/env bash
# Generates Python and Go stubs from proto/.
#
#   infra/generate-stubs.sh [OUTDIR]    default OUTDIR: gen/ (ignored by git)
#
#   OUTDIR/python    import agent_service_pb2, agent_service_pb2_grpc, memory_service_pb2, …
#   OUTDIR/go        module github.com/sparkle/gateway/gen, for a replace directive
#
# Needs python3 and Go, but no protoc. The generators are pinned and cached in STUB_TOOLS (default OUTDIR/.tools).
set -euo pipefail

grpcio_tools=1.85.1
protobuf_go=v1.36.12
protoc_gen_go_grpc=v1.6.2
grpc_go=v1.85.0
module=github.com/sparkle/gateway/gen

fail() { echo "generate-stubs: $*" >&2; exit 1; }

# Prints the output only if the command fails.
quietly() {
  local output
  output=$("$@" 2>&1) || fail "${*:1:4} … failed:"$'\n'"$output"
}

(( $# <= 1 )) || fail "usage: infra/generate-stubs.sh [OUTDIR]"
for tool in python3 go; do
  command -v "$tool" >/dev/null || fail "$tool is required, but not on the PATH"
done

protos=$(cd "$(dirname "${BASH_SOURCE[0]}")/../proto" && pwd)
out=${1:-$protos/../gen}
mkdir -p "$out"
out=$(cd "$out" && pwd)
tools=${STUB_TOOLS:-$out/.tools}
mkdir -p "$tools"
tools=$(cd "$tools" && pwd)
[[ -e $out/.gitignore ]] || echo '*' >"$out/.gitignore"

[[ -x $tools/venv/bin/python ]] || quietly python3 -m venv "$tools/venv"
quietly "$tools/venv/bin/python" -m pip install --quiet "grpcio-tools==$grpcio_tools"
GOBIN=$tools/bin quietly go install "google.golang.org/protobuf/cmd/protoc-gen-go@$protobuf_go"
GOBIN=$tools/bin quietly go install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$protoc_gen_go_grpc"

# Remove stubs of deleted protos, but no other files.
mkdir -p "$out/python" "$out/go"
rm -f "$out"/python/*_pb2.py* "$out"/python/*_pb2_grpc.py "$out"/go/agent/v1/*.pb.go
PATH=$tools/bin:$PATH quietly "$tools/venv/bin/python" -m grpc_tools.protoc -I "$protos" \
  --python_out="$out/python" --pyi_out="$out/python" --grpc_python_out="$out/python" \
  --go_out="$out/go" --go_opt="module=$module" \
  --go-grpc_out="$out/go" --go-grpc_opt="module=$module" \
  "$protos"/*.proto

cat >"$out/go/go.mod" <<MOD
module $module

go 1.26.0

require (
	google.golang.org/grpc $grpc_go
	google.golang.org/protobuf $protobuf_go
)
MOD
