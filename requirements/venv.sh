#!/bin/sh
# Makes the virtual environment named by the first argument, unless a usable one stands there.
# PYTHON names the interpreter to use; otherwise the first of the usual names with Python 3.11 or newer.
set -eu
venv=$1
new_enough='import sys; raise SystemExit(sys.version_info < (3, 11))'

usable() { # has a running Python that is new enough, and pip
    [ -f "$venv/pyvenv.cfg" ] && "$venv/bin/python" -c "$new_enough" 2>/dev/null &&
        "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

find_python() {
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if command -v "$name" >/dev/null 2>&1 && "$name" -c "$new_enough" 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "hexhail needs Python 3.11 or newer, and found none as ${PYTHON:-python3}." >&2
    echo "Install one (Debian: apt install python3 python3-venv; macOS: brew install python@3.13)," >&2
    echo "or name it: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
}

install_venv_module() { # Debian and its kin ship venv's half apart from Python
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    command -v apt-get >/dev/null 2>&1 || return 1
    . "$(dirname "$0")/apt.sh"
    apt_install "python$version-venv"
}

usable && exit 0
python=$(find_python)
[ ! -e "$venv" ] || [ -f "$venv/pyvenv.cfg" ] || [ -z "$(ls -A "$venv")" ] || {
    echo "$venv is in the way: it is no virtual environment" >&2
    exit 1
}
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    install_venv_module "$python" || {
        echo "This Python cannot make virtual environments: install its venv module (Debian: python3-venv)." >&2
        exit 1
    }
fi
exec "$python" -m venv --clear "$venv"
