#!/usr/bin/env bash
# Checks what is deployed to AWS, without an account and without calling AWS:
#
#     infra/check-sam.sh                        # the template and the settings in it
#     infra/check-sam.sh --build                # also builds the functions for arm64, as `sam deploy` uploads them
#     infra/check-sam.sh --build stream-chat    # one of them alone
#
# The tools are Python packages. They are installed into target/tools and stay there.
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
# In the template, stream-chat is StreamChatFunction.
--build,stream-chat | --build,retrieve-memory | --build,manage-memory | --build,remember)
    build=yes only=("$(sed -E 's/(^|-)([a-z])/\u\2/g' <<<"$2")Function")
    ;;
*)
    echo "usage: infra/check-sam.sh [--build [FUNCTION]]" >&2
    exit 2
    ;;
esac

# A virtual environment NAME with PACKAGES, made again where another version is asked for.
tools() {
    local place=$PWD/target/tools/$1
    shift
    if [ "$(cat "$place/installed" 2>/dev/null)" != "$*" ]; then
        rm -rf "$place"
        python3 -m venv "$place"
        "$place/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
        echo "$*" >"$place/installed"
    fi
}

tools sam "aws-sam-cli==$sam_version" "cfn-lint==$lint_version"
sam=$PWD/target/tools/sam/bin

# Nothing is sent; and rules depend on a region, which no file of this machine shall choose.
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

# What is uploaded is a program for arm64 and nothing else.
for built in target/sam/*/bootstrap; do
    name=$(basename "$(dirname "$built")")
    # Byte 18 of an ELF file: the machine; 183 = AArch64.
    machine=$(od -An -t u1 -j 18 -N 1 "$built" | tr -d ' ')
    if [ "$machine" != 183 ]; then
        echo "error: $name is not built for arm64" >&2
        exit 1
    fi
    # As SAM packs it.
    "$sam/python" -m zipfile -c "target/sam/$name.zip" "$built"
    echo "$name: $(stat -c %s "$built") bytes, $(stat -c %s "target/sam/$name.zip") as a zip"
done
