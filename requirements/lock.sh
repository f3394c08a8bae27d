#!/usr/bin/env bash
# Pins every dependency, with the SHA-256 of each of its files, from the lower bounds in pyproject.toml.
#
#   requirements/lock.sh               what pyproject.toml asks for; pins that still fit are kept
#   requirements/lock.sh --upgrade     everything to its newest version
#
# Writes run.txt (the service), dev.txt (service, tests, linters, build), build.txt (what builds the wheel), bench.txt (what `make bench`
# measures ours beside), docs.txt and mutation.txt (what `make docs-site` and `make mutation` need) and uv.txt (the installer itself), for every supported Python at once. No index is written into them.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=.venv/bin/uv

compile() { # OUT SOURCE... OPTION...
    local out=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links --output-file "requirements/$out" "$@" >/dev/null
    echo "requirements/$out: $(grep -c '==' "requirements/$out") packages"
}

compile run.txt pyproject.toml "$@"
compile dev.txt pyproject.toml --group dev --constraint requirements/run.txt "$@"
compile build.txt --group pyproject.toml:build --constraint requirements/dev.txt "$@"
compile bench.txt requirements/bench.in "$@"
compile docs.txt requirements/docs.in "$@"
compile mutation.txt requirements/mutation.in --constraint requirements/dev.txt "$@"
# The installer is pinned to the version that did the pinning.
"$uv" --version | sed 's/^uv \([0-9.]*\).*/uv==\1/' >.venv/uv.in
compile uv.txt .venv/uv.in
