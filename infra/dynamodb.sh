#!/usr/bin/env bash
# Runs a command with a local DynamoDB emulator (moto) that has the service's table:
#
#     infra/dynamodb.sh cargo test --test conversations
#     CONVERSATIONS=dynamodb://agent-conversations infra/dynamodb.sh cargo run
#
# moto is a Python package, cached in target/tools; it needs neither an account nor a container. docs/how-to/dynamodb.md lists where
# it is less strict than DynamoDB. It listens on a free loopback port, passed in TEST_DYNAMODB_URL and the AWS variables, holds
# its data in memory, and exits with the command.
set -euo pipefail

moto_version=5.2.5
flask_version=3.1.3
cors_version=6.0.5

infra=$(cd "$(dirname "$0")" && pwd)
tools=${TEST_DYNAMODB_CACHE:-$(dirname "$infra")/target/tools/moto}

if [ $# -eq 0 ]; then
    echo "usage: infra/dynamodb.sh COMMAND [ARGUMENT ...]" >&2
    exit 2
fi

packages=("moto[dynamodb]==$moto_version" "flask==$flask_version" "flask-cors==$cors_version")
if [ "$(cat "$tools/installed" 2>/dev/null)" != "${packages[*]}" ]; then
    rm -rf "$tools"
    python3 -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
    echo "${packages[*]}" >"$tools/installed"
fi

run=$(mktemp -d)
cleanup() {
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    rm -rf "$run"
}
"$tools/bin/python" "$infra/dynamodb.py" "$run/port" >"$run/log" 2>&1 &
server=$!
trap cleanup EXIT
until [ -s "$run/port" ]; do
    kill -0 "$server" 2>/dev/null || { cat "$run/log" >&2; exit 1; }
    sleep 0.1
done

url=http://127.0.0.1:$(cat "$run/port")
# The machine's own AWS credentials must not be used or sent.
unset AWS_SESSION_TOKEN AWS_PROFILE
AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null TEST_DYNAMODB_URL=$url AWS_ENDPOINT_URL_DYNAMODB=$url AWS_REGION=us-east-1 \
    AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local "$@"
