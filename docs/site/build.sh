#!/usr/bin/env bash
# Builds the docs of this version into OUT/VERSION/, and OUT/index.html, which lists the versions that lie in OUT.
#
#   docs/site/build.sh OUT
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")/../.."
[ -x .venv-docs/bin/python ] || .venv/bin/python -m venv .venv-docs
.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/docs.txt
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -1)
.venv-docs/bin/python -m sphinx -q -W --keep-going -b html -c docs/site -d "$(mktemp -d)" . "$out/$version"
printf '<!doctype html><meta http-equiv="refresh" content="0; url=docs/site/index.html">\n' >"$out/$version/index.html"
{
    printf '<!doctype html><html lang="en"><meta charset="utf-8"><title>QueryWarden: docs by version</title><h1>QueryWarden</h1><ul>\n'
    find "$out" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | sort -rV | sed 's#.*#<li><a href="&/">&</a></li>#'
    printf '</ul></html>\n'
} >"$out/index.html"
echo "docs-site: $out/$version/index.html"
