"""The commands of upkeep as people meet them: on files and on a real Kafka."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import victims
from support.forked_command import COLUMNS, querywarden
from support.kafka_producer import produce

from consumers import config, log_settings
from consumers.commands import upkeep
from consumers.errors import WrongUse
from consumers.log.kafka import connection, offsets_at
from consumers.store.embedded import EmbeddedStore
from detector.baseline_file import pack_baseline


class House:
    """An installation on one machine: state folder, baseline, store, log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "state" / "store.sqlite"

    def run(self, *arguments: str | Path, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        mine = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_")}
        settings = {
            "QUERYWARDEN_STATE_DIR": str(self.folder / "state"),
            "QUERYWARDEN_STORE__URL": f"sqlite:///{self.store}",
            "QUERYWARDEN_BASELINES": str(self.folder / "loans.baseline"),
            "COLUMNS": COLUMNS,
        }
        return subprocess.run(
            [str(querywarden()), *map(str, arguments)], env=mine | settings | more, input=stdin, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip

    def clients(self) -> dict[str, Any]:
        done = self.run("clients", "--json")
        assert done.returncode == 0, done.stderr
        return {row["client_id"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> House:
    """One that has read a log into its store."""
    house = House(tmp_path_factory.mktemp("house"))
    (house.folder / "loans.baseline").write_bytes(pack_baseline(victims.baseline()))
    (house.folder / "state").mkdir()
    streams = victims.streams(6, [("noise_uniform", "plain")], seed=5, kinds=["regular", "light"], queries=(300, 500))
    victims.log_of(house.folder / "log.jsonl", streams)
    done = house.run("replay", house.folder / "log.jsonl", "--store", house.store)
    assert done.returncode == 0, done.stderr
    return house


@pytest.fixture
def house(lived: House, tmp_path: Path) -> House:
    """A copy of it, to be ruined."""
    shutil.copytree(lived.folder, tmp_path / "house")
    return House(tmp_path / "house")


def test_snapshot_and_restore(house: House) -> None:
    before, file = house.clients(), house.folder / "a.snapshot"
    done = house.run("snapshot", file)
    assert (done.returncode, "profile" in done.stdout) == (0, True), done.stderr
    again = house.run("snapshot", file)
    assert (again.returncode, len(again.stderr.splitlines()[-1:])) == (1, 1)
    assert "exists" in again.stderr
    full = house.run("restore", file)
    assert full.returncode == 1
    assert "empty store" in full.stderr

    for old in house.store.parent.glob("store.sqlite*"):
        old.unlink()
    done = house.run("restore", file)
    assert done.returncode == 0, done.stderr
    assert house.clients() == before
    refused = house.run("clients", QUERYWARDEN_STORE__DECISION_CELLS="5")
    assert (refused.returncode, "made with number of decision cells 32, this process has 5" in refused.stderr) == (
        1,
        True,
    )
    verified = house.run("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr

    for old in house.store.parent.glob("store.sqlite*"):
        old.unlink()
    secrets = house.folder / "state" / "secrets.json"
    ours = secrets.read_bytes()
    secrets.unlink()
    lost = house.run("restore", file)
    assert (lost.returncode, "does not exist" in lost.stderr) == (1, True)
    house.run("clients")  # draws new secrets
    for old in house.store.parent.glob("store.sqlite*"):
        old.unlink()
    other = house.run("restore", file)
    assert (other.returncode, "secrets" in other.stderr) == (1, True)
    secrets.write_bytes(ours)
    file.write_bytes(file.read_bytes()[:-1])
    cut = house.run("restore", file)
    assert (cut.returncode, "damaged" in cut.stderr) == (1, True)


def test_erase_and_export(house: House) -> None:
    before = house.clients()
    name = next(n for n, row in before.items() if row["state"] != "clear")
    kept = json.loads(house.run("export", name).stdout)
    assert (kept["client_id"], len(kept["models"]), len(kept["alerts"]) > 0) == (name, 1, True)
    refused = house.run("erase", name, stdin="n\n")
    assert refused.returncode not in (0, 1)
    assert house.clients() == before
    done = house.run("erase", name, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["profiles"], found["decisions"], found["scrubbed"]) == (1, 1, True)
    after = house.clients()
    assert sorted(after) == sorted(set(before) - {name})
    again = json.loads(house.run("export", name).stdout)
    assert (again["models"], again["alerts"]) == ([], [])
    # Its log, read again from the beginning, does not bring it back.
    assert house.run("rebuild", "--from", "earliest", "--yes").returncode == 0
    done = house.run("replay", house.folder / "log.jsonl", "--store", house.store)
    assert done.returncode == 0, done.stderr
    assert sorted(house.clients()) == sorted(after)
    store = EmbeddedStore(house.store)
    rows = [json.loads(row) for _, row in store.audit_rows(0, 100)]
    store.close()
    assert [row["action"] for row in rows] == ["client.export", "client.erase", "client.export", "store.rebuild"]
    assert name not in json.dumps(rows[1])
    assert kept["client_key"] not in json.dumps(rows[1])


def test_erase_by_hash_and_for_one_model(house: House) -> None:
    before = house.clients()
    name = next(iter(before))
    key = json.loads(house.run("export", name).stdout)["client_key"]
    wrong = house.run("erase", "nonsense", "--hashed", "--yes")
    assert (wrong.returncode, "32 hexadecimal" in wrong.stderr) == (2, True)
    other = house.run("erase", key, "--hashed", "--yes", "--model", "another")
    assert other.returncode == 0
    assert house.clients() == before
    done = house.run("erase", key, "--hashed", "--yes")
    assert done.returncode == 0
    assert sorted(house.clients()) == sorted(set(before) - {name})


def test_rebuild_asks_and_checks(house: House) -> None:
    before = house.clients()
    assert house.run("rebuild", "--from", "earliest", stdin="n\n").returncode != 0
    for arguments, words in (
        (["--from", "2026-01-01T00:00:00Z"], "is a file"),
        (["--from", "earliest", "--cell", "nowhere:1"], "no such cell"),
    ):
        done = house.run("rebuild", *arguments, "--yes")
        assert (done.returncode, words in done.stderr) == (2, True)
    done = house.run("rebuild", "--from", "120", "--yes")
    assert (done.returncode, "offset 120" in done.stdout) == (0, True)
    assert house.clients() == before  # decisions stay until detect has looked again
    store = EmbeddedStore(house.store)
    (cell,) = store.cells()
    assert store.claim(cell, "look").next_offset == 120
    store.close()


def test_offsets_on_kafka(topic: Callable[..., str], kafka_bootstrap: str) -> None:
    name = topic(partitions=2)
    produce(kafka_bootstrap, name, [b"{}"] * 5, keys=[b"one"] * 5)
    brokers = connection(kafka_bootstrap)
    cells = [f"{name}:0", f"{name}:1"]
    assert offsets_at(brokers, cells, "earliest") == {cells[0]: 0, cells[1]: 0}
    ends = offsets_at(brokers, cells, "latest")
    assert sorted(ends.values()) == [0, 5]
    assert offsets_at(brokers, cells, "2020-01-01T00:00:00Z") == {cells[0]: 0, cells[1]: 0}
    assert offsets_at(brokers, cells, "2099-01-01T00:00:00Z") == ends
    with pytest.raises(WrongUse):
        offsets_at(brokers, cells, "yesterday")
    settings = config.load(None).model_copy(
        update={"kafka": log_settings.KafkaSettings(bootstrap_servers=kafka_bootstrap)}
    )
    assert upkeep._offsets(settings, [*cells, "files:ab"], "earliest") == {"files:ab": None, cells[0]: 0, cells[1]: 0}
    assert upkeep._offsets(settings, cells, "3") == {cells[0]: 3, cells[1]: 3}
    with pytest.raises(WrongUse, match="is a file"):
        upkeep._offsets(settings, ["files:ab"], "2026-01-01T00:00:00Z")
