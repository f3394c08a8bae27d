"""The commands `secrets` on a store that a replay left: what is sealed, a key that is replaced, a tenant that is erased."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import victims

from consumers import cli
from detector.baseline_file import pack_baseline


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Installation:
    """State folder, baseline, and a store that has read a log; commands run in this process."""

    def __init__(self, folder: Path, environment: pytest.MonkeyPatch) -> None:
        self.folder, self.store = folder, folder / "store.sqlite"
        self.secrets = folder / "state" / "secrets.json"
        environment.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
        environment.setenv("QUERYWARDEN_STATE_DIR", str(folder / "state"))
        environment.setenv("QUERYWARDEN_STORE__URL", f"sqlite:///{self.store}")
        environment.setenv("QUERYWARDEN_LOG__URL", f"file://{folder}/log.jsonl")
        environment.setenv("QUERYWARDEN_BASELINES", str(folder / "loans.baseline"))

    def run(self, *arguments: str | Path) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main([str(one) for one in arguments])
        return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        done = self.run(*arguments, "--json")
        assert done.code == 0, done.err
        return [json.loads(line) for line in done.out.splitlines()]

    def checked(self) -> dict[str, Any]:
        """What doctor says of the encryption of records."""
        rows = map(json.loads, self.run("doctor", "--json").out.splitlines())
        found: dict[str, Any] = next(row for row in rows if row["check"] == "record encryption")
        return found


@pytest.fixture
def lived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    one = Installation(tmp_path, monkeypatch)
    (tmp_path / "loans.baseline").write_bytes(pack_baseline(victims.baseline()))
    (tmp_path / "state").mkdir()
    victims.log_of(tmp_path / "log.jsonl", victims.streams(4, [], seed=5, kinds=["light"], queries=(50, 80)))
    done = one.run("replay", tmp_path / "log.jsonl", "--store", one.store)
    assert done.code == 0, done.err
    return one


def test_a_new_installation_is_sealed_a_key_is_replaced_and_a_tenant_erased(
    lived: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = lived.rows("clients")
    assert len(clients) == 4
    (before,) = lived.rows("secrets", "status")
    assert (before["tenant"], before["state"], before["records"] >= 12) == ("default", "in use", True)

    (new,) = lived.rows("secrets", "rotate")
    unused = {"tenant": "default", "key": new["key"], "records": 0, "state": "in use"}
    assert sorted(lived.rows("secrets", "status"), key=str) == sorted([before | {"state": "older"}, unused], key=str)
    assert lived.rows("clients") == clients
    assert new["key"] in lived.checked()["finding"]
    assert "under an older key" in lived.checked()["finding"]

    refused = lived.run("secrets", "drop", before["key"], "--yes")
    assert (refused.code, f"{before['records']} records" in refused.err) == (1, True)
    (sealed,) = lived.rows("secrets", "reseal")
    assert sealed == {"replaced": before["records"], "changed": 0, "unreadable": 0}
    assert [row["records"] for row in lived.rows("secrets", "status")].count(0) == 1
    assert "wait" in lived.run("secrets", "drop", before["key"], "--yes").err  # it was in use a moment ago
    monkeypatch.setattr("consumers.keyring.SETTLED_S", 0)
    assert lived.rows("secrets", "drop", before["key"], "--yes") == [{"tenant": "default", "key": before["key"]}]
    assert lived.rows("clients") == clients
    assert [row["key"] for row in lived.rows("secrets", "status")] == [new["key"]]

    snapshot = lived.folder / "a.snapshot"
    assert lived.run("snapshot", snapshot).code == 0
    assert lived.run("secrets", "erase-tenant", "default").code != 0  # nobody confirmed it
    assert lived.rows("clients") == clients
    (gone,) = lived.rows("secrets", "erase-tenant", "default", "--yes")
    assert (gone["unreadable"], gone["not_sealed"]) == (before["records"], 0)
    assert gone["keys"] == [new["key"]]
    assert lived.run("clients", "--json").out == ""
    assert {row["state"] for row in lived.rows("secrets", "status")} == {"destroyed"}
    assert lived.run("audit", "verify").code == 0

    for file in lived.folder.glob("store.sqlite*"):
        file.unlink()
    assert lived.run("restore", snapshot).code == 0
    assert lived.run("clients", "--json").out == ""


def test_an_installation_from_before_is_read_and_told(lived: Installation) -> None:
    document = json.loads(lived.secrets.read_text())
    held = document.pop("tenants")
    lived.secrets.write_text(json.dumps(document | {"format": 1}))
    told = lived.checked()
    assert (told["state"], "rotate" in told["finding"]) == ("look", True)
    failed = lived.run("clients", "--json")
    assert failed.code == 1
    assert held["default"]["keys"][0]["id"] in failed.err
    assert "older than the store" in failed.err
