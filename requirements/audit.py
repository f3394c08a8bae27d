"""Look the pinned packages up in advisories that lie in a folder, without a network.

The advisories are files of the OSV format (https://ossf.github.io/osv-schema/), as the archive `PyPI/all.zip` of osv.dev holds them, or
that archive itself.

Rules:

* No advisory about any package of the index is a failure, not a clean bill: an empty folder, or one of another ecosystem, knows nothing.
* A version is affected if an advisory lists it, or if it lies in a range of type ECOSYSTEM. An advisory that was withdrawn is left out.
* A file that cannot be read is named and counts as a failure. Every pin is looked up, those for other platforms too.

    python requirements/audit.py FOLDER-OR-ZIP LOCK...      exit 0: nothing known, 1: something known, 2: not looked up
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def normal(name: str) -> str:
    """A package's name as the index compares it (PEP 503).

    >>> normal("Flask_SQLAlchemy.ext")
    'flask-sqlalchemy-ext'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def advisories(place: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file that may be an advisory."""
    if place.is_dir():
        for file in sorted(place.rglob("*")):
            if file.suffix == ".json":
                yield str(file.relative_to(place)), file.read_bytes()
            elif file.suffix == ".zip":
                yield from advisories(file)
    elif place.exists():
        with zipfile.ZipFile(place) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".json"):
                    yield name, archive.read(name)


def within(version: Version, events: Sequence[dict[str, str]]) -> bool:
    """Whether a version lies in a range: from `introduced` to before `fixed`, or up to `last_affected`.

    >>> (
    ...     within(Version("2.1"), [{"introduced": "0"}, {"fixed": "2.2"}]),
    ...     within(Version("2.2"), [{"introduced": "0"}, {"fixed": "2.2"}]),
    ... )
    (True, False)
    """
    affected = False
    for event in sorted(events, key=lambda one: Version(next(iter(one.values())))):
        ((what, at),) = event.items()
        bound = Version(at)
        if what == "introduced" and version >= bound:
            affected = True
        elif (what == "fixed" and version >= bound) or (what == "last_affected" and version > bound):
            affected = False
    return affected


def affects(advisory: dict[str, Any], name: str, version: str) -> bool:
    """Whether an advisory is about this version of a package."""
    for one in advisory.get("affected", ()):
        package = one.get("package", {})
        if package.get("ecosystem") != "PyPI" or normal(package.get("name", "")) != name:
            continue
        if version in one.get("versions", ()):
            return True
        ranges = [r for r in one.get("ranges", ()) if r.get("type") == "ECOSYSTEM"]
        if any(within(Version(version), r["events"]) for r in ranges):
            return True
    return False


def audit(place: Path, locks: Sequence[str]) -> tuple[list[str], list[str], int]:
    """Look up the pins of some locks.

    Returns
    -------
    (found, unread, known)
        What is known against pins, a line each; files that could not be read; how many advisories of the index there are.
    """
    pins = sorted({(normal(name), version) for lock in locks for name, version in PIN.findall(lock)})
    of: dict[str, list[str]] = {}
    for name, version in pins:
        of.setdefault(name, []).append(version)
    found, unread, known = list[str](), list[str](), 0
    for file, blob in advisories(place):
        try:
            advisory = json.loads(blob)
            names = {
                normal(one["package"]["name"]) for one in advisory["affected"] if one["package"]["ecosystem"] == "PyPI"
            }
            if advisory.get("withdrawn"):
                continue
            known += bool(names)
            hits = [(n, v) for n in sorted(names & of.keys()) for v in of[n] if affects(advisory, n, v)]
        except (ValueError, LookupError, TypeError, AttributeError, InvalidVersion) as error:
            unread.append(f"{file}: {type(error).__name__}")
            continue
        found += [
            f"{name} {version}: {advisory['id']} {advisory.get('summary', '')}".rstrip() for name, version in hits
        ]
    return found, unread, known


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2:
        sys.stderr.write("usage: audit.py FOLDER-OR-ZIP LOCK...\n")
        return 2
    place, locks = Path(arguments[0]), [Path(lock).read_text(encoding="utf-8") for lock in arguments[1:]]
    found, unread, known = audit(place, locks)
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.stderr.write("".join(f"not read: {line}\n" for line in unread))
    if not known:
        sys.stderr.write(f"{place}: no advisory about a package of PyPI; nothing was looked up\n")
        return 2
    sys.stdout.write(f"{len(found)} known, by {known:,} advisories\n")
    return 1 if found else 2 if unread else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
