#!/usr/bin/env bash
# Builds what a release consists of: wheel, source archive, bill of materials, and their SHA-256. The same commit gives the same bytes:
# times are the commit's, and nothing of the machine goes in.
#
#   requirements/release.sh DIR
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
mkdir -p "$out"
out=$(cd "$out" && pwd)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
export SOURCE_DATE_EPOCH
umask 022
.venv/bin/hatchling build -t wheel -t sdist -d "$out" >/dev/null
.venv/bin/python requirements/sbom.py >"$out/querywarden.cdx.json"
(cd "$out" && sha256sum -- *.whl *.tar.gz *.cdx.json >SHA256SUMS && cat SHA256SUMS)
