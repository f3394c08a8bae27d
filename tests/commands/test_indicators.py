"""`querywarden indicators`: from the key of one installation to the clients of another that match."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.seeded_api import MODEL, decided

from consumers import cli, config
from consumers.operators import audit
from consumers.records.decision import packed_decision
from consumers.sharing_keys import SharingKey
from consumers.store import DECISION_CELLS, Outcome, decision_cell
from consumers.wiring import adapters
from detector.query import ClientKey

ALERT: dict[str, Any] = {"alert_id": "a-1", "kind": "client", "client_id": "thief"}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def called(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return called


def seed(folder: Path, client: str, state: str, shared: tuple[str, ...], **more: Any) -> None:
    """An installation in a folder of its own that knows one client; its settings are now those of this process."""
    folder.mkdir(exist_ok=True)
    settings = config.load(None)
    with adapters.open_store(settings) as store:
        secrets = adapters.secrets_of(settings, store)
        key = ClientKey("default", MODEL, secrets.client_hash("default", client))
        outcome = Outcome(decision_cell(key, DECISION_CELLS))
        row = decided(client, 0.0001, state, shared=shared, **more)
        outcome.rows[key] = packed_decision(row, secrets, "default")
        claim = store.claim_decisions(outcome.cell, "seed", "0" * 32, 60_000)
        store.record("0" * 32, claim.revision, outcome, "seed", 60_000)


def test_from_one_installation_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    key_file, bundle = tmp_path / "peers.json", tmp_path / "acme bank.json"
    monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(tmp_path / "here"))
    (tmp_path / "here").mkdir()
    assert call("indicators", "export", bundle)[0] == 2, "there is no sharing key yet"
    status, out, _ = call("indicators", "create-key", "--out", key_file, "--json")
    assert status == 0
    key = SharingKey.load(key_file)
    assert json.loads(out)["key_id"] == key.key_id
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert call("indicators", "create-key", "--out", key_file)[0] == 1, "a key is never replaced"
    monkeypatch.setenv("QUERYWARDEN_LINKS__SHARING_KEYS", str(key_file))

    shared = (f"{key.key_id}.payment:{key.hash('payment', 'card-7')}", "0" * 16 + ".ip:" + "1" * 32)
    seed(tmp_path / "here", "thief", "block", shared, alert=ALERT)
    status, out, _ = call("indicators", "export", bundle, "--json")
    assert (status, json.loads(out)["indicators"], json.loads(out)["withheld"]) == (0, 1, 0)
    assert all(secret not in bundle.read_text() for secret in ("thief", "card-7", MODEL, "1" * 32))
    assert call("indicators", "export", bundle, "--for", "91d")[0] == 2

    monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(tmp_path / "there"))
    seed(tmp_path / "there", "mule", "clear", shared[:1])
    status, out, _ = call("indicators", "import", bundle, "--json")
    assert (status, json.loads(out)["source"], json.loads(out)["indicators"]) == (0, "acme_bank", 1)
    (listed,) = call("indicators", "list", "--json")[1].splitlines()
    assert (json.loads(listed)["source"], json.loads(listed)["hashes"]) == ("acme_bank", 1)
    (row,) = call("indicators", "matches", "--json")[1].splitlines()
    found = json.loads(row)
    assert (found["client_id"], found["state"]) == ("mule", "clear"), "it is shown, and nothing else happens to it"
    assert [(i["source"], i["kinds"], i["confidence"]) for i in found["indicators"]] == [("acme_bank", ["payment"], 70)]
    told = json.loads(call("explain", "mule", "--json")[1])
    assert told["reported_by_peers"][0].startswith("acme_bank reported a client with the same payment (")
    assert "no evidence" in call("explain", "mule")[1]
    assert "acme_bank" in call("indicators", "matches")[1]
    assert call("indicators", "drop", "acme_bank")[0] == 0
    assert call("indicators", "matches", "--json")[1] == ""
    assert call("indicators", "drop", "acme_bank")[0] == 1
    settings = config.load(None)
    with adapters.open_store(settings) as store:
        log = b"".join(line for _, line in audit.stored_rows(store))
        assert audit.verify(store, audit.Seal(adapters.secrets_of(settings, store))).findings == []
    assert [log.count(f'"action":"indicators.{act}"'.encode()) for act in ("import", "drop")] == [1, 1]


def test_a_file_of_another_key_or_of_nobody_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(tmp_path))
    for name in ("ours", "theirs"):
        assert call("indicators", "create-key", "--out", tmp_path / name)[0] == 0
    key = SharingKey.load(tmp_path / "theirs")
    monkeypatch.setenv("QUERYWARDEN_LINKS__SHARING_KEYS", str(tmp_path / "theirs"))
    seed(tmp_path, "thief", "throttle", (f"{key.key_id}.ip:{key.hash('ip', '192.0.2.1')}",), alert=ALERT)
    assert call("indicators", "export", tmp_path / "bundle.json")[0] == 0
    monkeypatch.setenv("QUERYWARDEN_LINKS__SHARING_KEYS", str(tmp_path / "ours"))
    status, _, said = call("indicators", "import", tmp_path / "bundle.json")
    assert (status, "nothing to import (left out: 1 another key)" in said) == (1, True)
    (tmp_path / "none.json").write_text("[]")
    assert call("indicators", "import", tmp_path / "none.json")[0] == 1
    assert call("indicators", "list", "--json")[1] == ""
