#!/usr/bin/env bash
# Runs a command against Postgres behind PgBouncer in transaction mode, without prepared statements:
#
#     infra/test-pgbouncer.sh cargo test --test api
#
# PgBouncer and its libraries are Debian or Ubuntu packages, unpacked but not installed. It listens on a socket in a temporary
# directory, passed in TEST_POOLER_URL, and exits with the command. Through TEST_DATABASE_URL the tests bypass PgBouncer, to
# create databases and inspect them.
set -euo pipefail

cache=${TEST_PGBOUNCER_CACHE:-$(cd "$(dirname "$0")/.." && pwd)/target/tools/pgbouncer}

if [ $# -eq 0 ]; then
    echo "usage: infra/test-pgbouncer.sh COMMAND [ARGUMENT ...]" >&2
    exit 2
fi

if [ ! -d "$cache" ]; then
    partial=$(mktemp -d)
    # As root, apt warns that its sandbox user cannot write here, and continues.
    fetch() {
        (cd "$partial" && apt-get download -qq "$1" 2>log) || { cat "$partial/log" >&2; exit 1; }
        dpkg-deb -x "$partial/$1"_*.deb "$partial/unpacked"
    }
    # The package lists may be missing.
    [[ $(apt-cache policy pgbouncer) == *"Candidate: "[0-9]* ]] || apt-get update -qq
    fetch pgbouncer
    # Libraries that a machine may lack; their package names differ between releases.
    libraries=$(dpkg-deb -f "$partial"/pgbouncer_*.deb Depends | grep -oE 'lib(c-ares|cares|event)[^ ,]*')
    for library in $libraries; do
        fetch "$library"
    done
    mkdir -p "$(dirname "$cache")"
    mv "$partial/unpacked" "$cache"
    rm -rf "$partial"
fi

# Without a Postgres on a socket, start one and run this script again.
if [[ ${TEST_DATABASE_URL:-} != *host=/* ]]; then
    exec "$(dirname "$0")/test-postgres.sh" "$0" "$@"
fi
postgres=${TEST_DATABASE_URL##*host=}

# PgBouncer refuses to run as root as well.
run=$(mktemp -d)
cp -r "$cache/." "$run"
as=()
if [ "$(id -u)" -eq 0 ]; then
    chown -R nobody "$run"
    chmod 755 "$run"
    as=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
fi
pgbouncer() { LD_LIBRARY_PATH=$(echo "$run"/usr/lib/*/) "${as[@]}" "$run/usr/sbin/pgbouncer" "$@"; }

# A small round-robin pool, so that connections really are shared. auth_user looks up the users that tests create.
cat >"$run/pgbouncer.ini" <<SETTINGS
[databases]
* = host=$postgres port=5432
[pgbouncer]
unix_socket_dir = $run
listen_port = 6432
auth_type = trust
auth_file = $run/users
auth_user = postgres
pool_mode = transaction
default_pool_size = 3
server_round_robin = 1
max_client_conn = 1000
logfile = $run/log
pidfile = $run/pid
SETTINGS
echo '"postgres" ""' >"$run/users"
# PgBouncer 1.21 and later support prepared statements.
version=$(pgbouncer --version | sed -n 's/^PgBouncer //p')
if [ "$(printf '%s\n' 1.21 "$version" | sort -V | head -n 1)" = 1.21 ]; then
    echo "max_prepared_statements = 0" >>"$run/pgbouncer.ini"
fi

cleanup() {
    local tenths
    kill "$(cat "$run/pid" 2>/dev/null)" 2>/dev/null || true
    # PgBouncer removes its files while it exits.
    for (( tenths = 0; tenths < 50; tenths++ )); do
        [ -e "$run/pid" ] || break
        sleep 0.1
    done
    rm -rf "$run"
}
trap cleanup EXIT
pgbouncer -q -d "$run/pgbouncer.ini" || { cat "$run/log" >&2; exit 1; }

TEST_POOLER_URL="postgres://postgres@localhost:6432/postgres?host=$run" "$@"
