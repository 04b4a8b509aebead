#!/usr/bin/env bash
# Checks the AWS deployment without an account and without calling AWS:
#
#     infra/check-sam.sh                        # lint the template and compare it with the code
#     infra/check-sam.sh --build                # also build all functions for arm64, as `sam deploy` uploads them
#     infra/check-sam.sh --build stream-chat    # also build one function
#
# The tools are Python packages, cached in target/tools.
set -euo pipefail
cd "$(dirname "$0")/.."

sam_version=1.170.0
lint_version=1.58.0
cargo_lambda_version=1.9.2
zig_version=0.17.1
target=aarch64-unknown-linux-gnu

build='' only=()
case ${1-},${2-} in
,) ;;
--build,) build=yes ;;
# The logical id of stream-chat is StreamChatFunction.
--build,stream-chat | --build,retrieve-memory | --build,manage-memory | --build,remember)
    build=yes only=("$(sed -E 's/(^|-)([a-z])/\u\2/g' <<<"$2")Function")
    ;;
*)
    echo "usage: infra/check-sam.sh [--build [FUNCTION]]" >&2
    exit 2
    ;;
esac

# Creates a virtual environment; recreates it if the requested versions change.
tools() { # NAME PACKAGES…
    local venv=$PWD/target/tools/$1
    shift
    if [ "$(cat "$venv/installed" 2>/dev/null)" != "$*" ]; then
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
        echo "$*" >"$venv/installed"
    fi
}

tools sam "aws-sam-cli==$sam_version" "cfn-lint==$lint_version"
sam=$PWD/target/tools/sam/bin

# No telemetry, and a fixed region: some lint rules depend on it.
export SAM_CLI_TELEMETRY=0 AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true

"$sam/cfn-lint" template.yaml
"$sam/sam" validate --lint --template-file template.yaml
"$sam/python" infra/check-template.py

[ -n "$build" ] || exit 0

tools lambda "cargo-lambda==$cargo_lambda_version" "ziglang==$zig_version"
export PATH=$PWD/target/tools/lambda/bin:$PATH
if ! rustup target list --installed | grep -qx "$target"; then
    rustup target add "$target"
fi

"$sam/sam" build ${only[@]+"${only[@]}"} --template-file template.yaml --build-dir target/sam

# The uploaded artifact must be a single program for arm64.
for built in target/sam/*/bootstrap; do
    name=$(basename "$(dirname "$built")")
    # e_machine, at byte 18 of an ELF file; 183 = AArch64.
    machine=$(od -An -t u1 -j 18 -N 1 "$built" | tr -d ' ')
    if [ "$machine" != 183 ]; then
        echo "error: target/sam/$name/bootstrap is not built for arm64 (e_machine $machine, expected 183)" >&2
        exit 1
    fi
    # Compressed as SAM does.
    "$sam/python" -m zipfile -c "target/sam/$name.zip" "$built"
    echo "$name: $(stat -c %s "$built") bytes, $(stat -c %s "target/sam/$name.zip") as a zip"
done
