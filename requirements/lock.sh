#!/bin/sh
# Writes the locks: exact versions with hashes, for every platform and Python >= 3.11, naming no index.
# Each lock is whole in itself; the others follow runtime.txt's versions. `--upgrade` as argument takes newer ones.
set -eu
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}

lock() { # lock OUTPUT [uv arguments]
    output=$1
    shift
    # The build backend is locked too: the project itself is installed without build isolation.
    echo 'setuptools>=77' | "$uv" pip compile pyproject.toml - --output-file "$output" --quiet \
        --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links "$@"
}

lock requirements/runtime.txt "$@"
lock requirements/bench.txt --extra bench --constraints requirements/runtime.txt "$@"
lock requirements/test.txt --extra dev --constraints requirements/runtime.txt "$@"
