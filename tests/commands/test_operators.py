"""Decisions from the terminal: how long they may hold, and that a misspelt client is noticed."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.seeded_api import MODEL, decided

from consumers import cli, config
from consumers.records.decision import packed_decision
from consumers.store import DECISION_CELLS, Outcome, decision_cell
from consumers.wiring import adapters
from detector.query import ClientKey

DAY_S = 86_400
Call = Callable[..., tuple[int, str, str]]


class Terminal(io.StringIO):
    """Standard input of somebody who types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command on a store that knows the client `thief`: status, output, errors."""
    monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(tmp_path))
    settings = config.load(None)
    with adapters.open_store(settings) as store:
        secrets = adapters.secrets_of(settings, store)
        key = ClientKey("default", MODEL, secrets.client_hash("default", "thief"))
        outcome = Outcome(decision_cell(key, DECISION_CELLS))
        outcome.rows[key] = packed_decision(decided("thief", 0.001, "throttle", campaign_id="c-1"), secrets, "default")
        claim = store.claim_decisions(outcome.cell, "seed", "0" * 32, 60_000)
        store.record("0" * 32, claim.revision, outcome, "seed", 60_000)

    def called(*words: str, typed: str | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO() if typed is None else Terminal(typed))
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return called


@pytest.mark.parametrize(
    ("length", "seconds"), [("90s", 90), ("15m", 900), ("4h", 14_400), ("7d", 7 * DAY_S), ("2w", 14 * DAY_S)]
)
@pytest.mark.parametrize(
    "words",
    [
        ("decisions", "block"),
        ("decisions", "throttle"),
        ("decisions", "degrade"),
        ("decisions", "release"),
        ("allowlist", "add"),
    ],
)
def test_a_decision_holds_for_as_long_as_was_asked(
    length: str, seconds: int, words: tuple[str, ...], call: Call
) -> None:
    status, out, _ = call(*words, "thief", "--for", length, "--json")
    assert status == 0
    assert abs(json.loads(out)["until_s"] - time.time() - seconds) < 60


@pytest.mark.parametrize(
    ("length", "words"),
    [("31d", "1s to 30d"), ("5w", "1s to 30d"), ("0", "1s to 30d"), ("2 weeks", "is not a duration"), ("7D", "is not a duration"),
     ("999999999w", "at most ten years")],
)  # fmt: skip
def test_a_length_that_is_none_is_refused_in_one_line(length: str, words: str, call: Call) -> None:
    status, out, err = call("decisions", "block", "thief", "--for", length)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert length in err
    assert words in err


@pytest.mark.parametrize(
    "words",
    [
        ("decisions", "block"),
        ("decisions", "throttle"),
        ("decisions", "degrade"),
        ("decisions", "release"),
        ("allowlist", "add"),
    ],
)
def test_a_client_that_nobody_has_seen_is_asked_about(words: tuple[str, ...], call: Call) -> None:
    status, out, err = call(*words, "theif", "--model", MODEL)
    assert (status, out) == (2, "")
    verb = "allowlist" if words[1] == "add" else words[1]
    question = f"no client 'theif' was seen on model {MODEL}"
    assert err.splitlines() == [f"querywarden: {question}; give --yes to {verb} it anyway"]
    status, out, err = call(*words, "theif", typed="n\n")
    assert (status, out) == (1, "")
    assert "no client 'theif' was seen on any model" in err
    assert call("decisions", "list", "--json")[1] + call("allowlist", "list", "--json")[1] == ""
    assert call(*words, "theif", typed="y\n")[0] == 0
    assert call(*words, "theif", "--yes")[0] == 0


def test_a_client_that_was_seen_is_not_asked_about(call: Call) -> None:
    assert call("decisions", "block", "thief")[0] == 0
    assert call("decisions", "release", "thief", "--model", MODEL)[0] == 0
    assert call("decisions", "release", "thief", "--model", MODEL, "--withdraw")[0] == 0
    assert call("decisions", "block", "thief", "--model", "another")[0] == 2


def test_a_campaign_is_decided_about_as_one(call: Call) -> None:
    status, out, _ = call("decisions", "degrade", "--campaign", "c-1", "--for", "2h", "--reason", "theft", "--json")
    made = json.loads(out)
    assert (status, made["state"], len(made["confirmed"]), made["reason"]) == (0, "degrade", 1, "theft")
    status, out, _ = call("decisions", "list")
    assert (status, "c-1" in out, "degrade" in out) == (0, True, True)
    status, out, _ = call("decisions", "release", "--campaign", "c-1", "--withdraw")
    assert (status, out.startswith("withdrawn: campaign c-1, 1 account: degrade")) == (0, True)
    assert call("decisions", "list", "--json")[1] == ""


def test_many_accounts_wait_for_another_person(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config_file = tmp_path / "settings.toml"
    config_file.write_text("[http]\nconfirm_campaigns_above = 1\n")
    assert config.load(config_file).http.confirm_campaigns_above == 1
    status, _, err = call("decisions", "confirm", "--campaign", "c-1", "--config", str(config_file))
    assert (status, "no decision of an operator about campaign" in err) == (1, True)


@pytest.mark.parametrize("words", [(), ("thief", "--campaign", "c-1")])
def test_a_decision_is_about_a_client_or_a_campaign(words: tuple[str, ...], call: Call) -> None:
    status, _, err = call("decisions", "block", *words)
    assert (status, "either a client or --campaign" in err) == (2, True)
