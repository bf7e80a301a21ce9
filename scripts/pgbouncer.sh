#!/bin/sh
# See that PgBouncer is there; install Debian's package where we may.
set -eu

say() { echo "pgbouncer: $*" >&2; }

# Debian keeps it in a folder that is not on every account's PATH.
find_pgbouncer() { PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v pgbouncer >/dev/null; }

find_pgbouncer && exit
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing Debian's package"
    # RUNLEVEL: the package would otherwise start a service of its own.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get install --yes --quiet --no-install-recommends pgbouncer >&2 ||
        { apt-get update --quiet >&2 &&
            apt-get install --yes --quiet --no-install-recommends pgbouncer >&2; } || true
fi
find_pgbouncer && exit
say "not installed, and it could not be installed from here"
say "as an administrator: apt-get install pgbouncer; then run the same command again"
exit 1
