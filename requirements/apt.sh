# shellcheck shell=sh
# Sourced by the scripts beside it: apt_install PACKAGE... installs Debian packages without starting their services.

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        echo "This needs root, and there is no sudo: run as root: $*" >&2
        return 1
    fi
}

apt_install() {
    echo "installing $* with apt ..."
    policy=/usr/sbin/policy-rc.d # Debian's own switch: 101 means "start no service"
    ours=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null || return 1
        as_root chmod 755 "$policy"
        ours=yes
        trap 'as_root rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM
    fi
    status=0
    apt_quietly update && apt_quietly install --yes --no-install-recommends "$@" || status=$?
    if [ -n "$ours" ]; then
        as_root rm -f "$policy"
        trap - EXIT INT TERM
    fi
    return "$status"
}

apt_quietly() { # what apt says is shown only when it fails
    log=$(mktemp)
    if as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1; then
        rm -f "$log"
    else
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
}
