"""What tables in a terminal say: nothing cut in the middle of a time, no two clients that look the same, no table without rows."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from consumers import terminal
from consumers.commands import explain


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """100 columns."""
    shown = io.StringIO()
    monkeypatch.setattr(terminal, "out", Console(file=shown, width=100, highlight=False))
    return shown


def alert(client: str = "acct-1", suspicion: float = 0.9999949) -> dict[str, Any]:
    text = "27 of 323 queries are an earlier query with every feature moved by one and the same step"
    return {
        "time": "2026-11-12T19:54:23.663Z", "client_id": client, "model_id": "digits", "state": "throttle", "calibrated": True,
        "suspicion": suspicion, "queries_seen": 165, "queries": 165, "family": "perturbed seeds",
        "evidence": [{"signal": "s", "statistic": 21.0, "p_value": 0.001, "text": f"{text}; the excess of 21 compares with 2"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5000"), (0.99954, "0.9995"), (0.9999949, "0.999995"), (0.9999915, "0.999992"), (1.0, "1.0000")],
)
def test_two_very_suspicious_clients_do_not_look_alike(value: float, text: str) -> None:
    assert terminal.suspicion(value) == text


def test_an_alert_keeps_its_time_in_one_piece_and_says_one_sentence(screen: io.StringIO) -> None:
    terminal.print_alerts([alert()])
    said = screen.getvalue()
    assert "2026-11-12 19:54 " in said
    assert "0.999995" in said
    assert "compares" not in said


def test_no_rows_are_said_in_words(screen: io.StringIO) -> None:
    terminal.print_alerts([])
    terminal.print_table(("client", "state"), [], "no operator's decision holds")
    assert screen.getvalue().splitlines() == ["no alerts", "no operator's decision holds"]


def test_an_account_says_what_is_above_honest_clients_and_counts_the_rest(screen: io.StringIO) -> None:
    excess = [{"statistic": 5.0 - i, "text": f"reason {i}"} for i in range(12)]
    told = {
        "client_id": "c", "model_id": "m", "state": "watch", "summary": "", "extraction": None, "queries": 1, "distinct": 1.0,
        "p_value": 1.0, "rarity": "usual", "calibrated": True, "in_force": "clear", "signals": [], "timeline": [],
        "what_would_change_it": [], "what_did_not_fit": [], "evidence": excess,
    }  # fmt: skip
    explain._print_account(told)
    said = screen.getvalue()
    assert "reason 4" in said
    assert "reason 5" not in said, "no excess"
    assert "7 weaker signals" in said
