#!/bin/sh
# Installs the servers that tests and measurements start for themselves (Redis and MariaDB), where they are missing.
# Nothing is needed for a server that HEXHAIL_TEST_REDIS_URL or HEXHAIL_TEST_DATABASE_URL names.
set -eu
here=$(dirname "$0")
PATH=$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/bin

have() {
    command -v "$1" >/dev/null 2>&1
}

missing=
[ -n "${HEXHAIL_TEST_REDIS_URL:-}" ] || have redis-server || have valkey-server || missing="redis-server"
[ -n "${HEXHAIL_TEST_DATABASE_URL:-}" ] || { have mariadbd && have mariadb-install-db; } ||
    missing="$missing mariadb-server"
[ -n "$missing" ] || exit 0

if have apt-get; then
    . "$here/apt.sh"
    # shellcheck disable=SC2086 # a list of packages
    apt_install $missing
    exit
fi

cat >&2 <<END
Tests and measurements start a Redis and a MariaDB of their own, and these are missing: ${missing# }
Install them and run make again:
  macOS     brew install redis mariadb
  Fedora    dnf install redis mariadb-server
  Arch      pacman -S redis mariadb
or name running servers: HEXHAIL_TEST_REDIS_URL=redis://... HEXHAIL_TEST_DATABASE_URL=mysql+aiomysql://...
END
exit 1
