"""The audit of pinned packages knows a bad version, passes a clean one, and takes no silence for a clean bill."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCK = (
    "widget-kit==1.4.2 \\\n    --hash=sha256:00\nOther_Tool==3.0 ; sys_platform == 'win32' \\\n    --hash=sha256:11\n"
)


def advisory(name: str = "Widget.Kit", **affected: Any) -> dict[str, Any]:
    return {
        "id": "QW-TEST-1",
        "summary": "made for this test",
        "affected": [{"package": {"ecosystem": "PyPI", "name": name}, **affected}],
    }


def ranged(*events: dict[str, str], kind: str = "ECOSYSTEM") -> dict[str, Any]:
    return {"ranges": [{"type": kind, "events": list(events)}]}


def audited(place: Path, lock: str = LOCK) -> subprocess.CompletedProcess[str]:
    (place.parent / "lock.txt").write_text(lock)
    command = [sys.executable, str(ROOT / "requirements" / "audit.py"), str(place), str(place.parent / "lock.txt")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def folder(tmp_path: Path, *documents: Any) -> Path:
    made = tmp_path / "osv"
    made.mkdir(exist_ok=True)
    for i, one in enumerate(documents):
        (made / f"{i}.json").write_text(one if isinstance(one, str) else json.dumps(one))
    return made


@pytest.mark.parametrize(
    ("affected", "known"),
    [
        ({"versions": ["1.4.1", "1.4.2"]}, True),
        ({"versions": ["1.4.1"]}, False),
        (ranged({"introduced": "0"}, {"fixed": "1.4.3"}), True),
        (ranged({"introduced": "0"}, {"fixed": "1.4.2"}), False),
        (ranged({"introduced": "1.4.10"}, {"fixed": "2"}), False),
        (ranged({"introduced": "0"}, {"last_affected": "1.4.2"}), True),
        (ranged({"introduced": "0"}, {"last_affected": "1.4.1"}), False),
        (ranged({"introduced": "0"}, {"fixed": "1.0"}, {"introduced": "1.4"}, {"fixed": "1.5"}), True),
        (ranged({"introduced": "0"}, kind="GIT"), False),
    ],
)
def test_a_bad_version_is_named_and_a_clean_one_passes(tmp_path: Path, affected: dict[str, Any], known: bool) -> None:
    found = audited(folder(tmp_path, advisory(**affected)))
    assert found.returncode == int(known), found
    assert ("widget-kit 1.4.2: QW-TEST-1 made for this test" in found.stdout) == known


def test_another_package_another_ecosystem_and_what_was_withdrawn_say_nothing(tmp_path: Path) -> None:
    foreign = advisory(versions=["1.4.2"])
    foreign["affected"][0]["package"]["ecosystem"] = "npm"
    withdrawn = advisory(versions=["1.4.2"]) | {"withdrawn": "2026-01-01T00:00:00Z"}
    found = audited(folder(tmp_path, foreign, withdrawn, advisory("other-widget", versions=["1.4.2"])))
    assert (found.returncode, found.stdout) == (0, "0 known, by 1 advisories\n")


def test_an_archive_is_read_as_it_comes(tmp_path: Path) -> None:
    made = folder(tmp_path)
    with zipfile.ZipFile(made / "all.zip", "w") as archive:
        archive.writestr("a.json", json.dumps(advisory("other_tool", versions=["3.0"])))
    for place in (made, made / "all.zip"):
        found = audited(place)
        assert (found.returncode, found.stdout.splitlines()[0]) == (1, "other-tool 3.0: QW-TEST-1 made for this test")


def test_nothing_to_look_into_is_no_clean_bill(tmp_path: Path) -> None:
    for place in (folder(tmp_path), tmp_path / "nowhere"):
        found = audited(place)
        assert found.returncode == 2
        assert "nothing was looked up" in found.stderr


@pytest.mark.parametrize("document", ["{", "[]", '{"id": "x"}', '{"affected": [{"package": 7}]}'])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, document: str) -> None:
    found = audited(folder(tmp_path, advisory("unrelated", versions=["1"]), document))
    assert found.returncode == 2
    assert "not read: 1.json" in found.stderr


def test_the_pins_of_the_service_are_understood(tmp_path: Path) -> None:
    lock = (ROOT / "requirements" / "run.txt").read_text()
    one = next(line.partition("==") for line in lock.splitlines() if "==" in line)
    version = one[2].split()[0]
    found = audited(folder(tmp_path, advisory(one[0], versions=[version])), lock)
    assert (
        found.returncode,
        f"{one[0].lower()} {version}: QW-TEST-1" in found.stdout.lower().replace("qw-test", "QW-TEST"),
    ) == (1, True)
