#!/usr/bin/env bash
# Sets up .venv-bench/: what `make bench` measures ours beside, as locked in requirements/bench.txt, apart from the project's own .venv/.
#
# Packages come from pip's index. Where they cannot be had, the benchmark runs all the same and its table says that they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv-bench/bin/python ] || .venv/bin/python -m venv .venv-bench
.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/bench.txt ||
    echo "bench: the peers of requirements/bench.txt could not be installed; the table says so" >&2
