#!/bin/sh
# See that a program is there; install Debian's package of the same name where we may.
#   program.sh pgbouncer
set -eu
program=$1

say() { echo "$program: $*" >&2; }

# Debian keeps some in a folder that is not on every account's PATH.
find_program() { PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "$program" >/dev/null; }

find_program && exit
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing Debian's package"
    # RUNLEVEL: a package with a service would otherwise start one of its own.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get install --yes --quiet --no-install-recommends "$program" >&2 ||
        { apt-get update --quiet >&2 &&
            apt-get install --yes --quiet --no-install-recommends "$program" >&2; } || true
fi
find_program && exit
say "not installed, and it could not be installed from here"
say "as an administrator: apt-get install $program; then run the same command again"
exit 1
