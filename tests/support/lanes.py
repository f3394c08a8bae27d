"""Lanes: processes of pytest that share the files of tests out among themselves (`make test`).

Every lane is called with the same arguments and ``--lanes FOLDER``, an empty folder. A lane that is through with a file takes the next one
that nobody took, so all of them end at about the same time, whatever the machine; nobody keeps a table of durations. Rules:

* A file belongs to one lane: its fixtures are made once. Whoever creates the file's mark in the folder has it.
* Long files come first, or a lane would sit alone with the last one: the whole system, then what needs a server, then the rest.
* The next file is taken before the last test of the one before it ends, because pytest tears fixtures down by what comes next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest


def taken(items: list[pytest.Item], folder: Path) -> Iterator[pytest.Item]:
    """Yield the tests of the files that this lane gets."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def weight(path: Path) -> tuple[bool, bool]:
        return path.parent.name != "tests", not any(item.get_closest_marker("server") for item in files[path])

    for path in sorted(files, key=weight):
        mark = folder / "-".join(path.parts[1:])
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            continue
        yield from files[path]


def run(session: pytest.Session, folder: Path) -> None:
    """Run this lane's share of the session's tests, in place of pytest's own loop over all of them."""
    from support.preparation import prepare  # loads the numeric libraries, which a plain run of pytest may not need

    if session.testsfailed and not session.config.option.continue_on_collection_errors:
        raise session.Interrupted(f"{session.testsfailed} errors during collection")
    if not session.config.option.no_servers:
        prepare(folder)
    for item, following in itertools.pairwise(itertools.chain(taken(session.items, folder), [None])):
        assert item is not None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
