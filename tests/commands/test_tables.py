"""What tables in a terminal say: nothing cut in the middle of a time, no two clients that look the same, no table without rows."""

from __future__ import annotations

import io
from collections.abc import Callable
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
        "suspicion": suspicion, "queries_seen": 165, "queries": 165, "family": "perturbed seeds", "campaign_id": "5eed" * 8,
        "members": ["acct-7f00", "acct-7f01"], "extraction": {"fidelity": 0.62, "low": 0.4, "high": 0.71},
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


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """60 columns."""
    shown = io.StringIO()
    monkeypatch.setattr(terminal, "out", Console(file=shown, width=60, highlight=False))
    return shown


LONG = "spiffe://cluster.local/ns/payments/sa/" + "scorer-" * 7
"""An id that no narrow column holds, and no line of 60 columns."""


@pytest.mark.parametrize(
    "show",
    [
        lambda row: terminal.print_ranked([row]),
        lambda row: terminal.print_alerts([row]),
        lambda row: terminal.print_campaigns([row | {"members": [LONG], "ties": {"registration": 1}}]),
        lambda row: terminal.print_table(
            ("client", "model", "state", "until", "by", "reason"), [[LONG, "digits", *"abcd"]]
        ),
    ],
    ids=["clients", "alerts", "campaigns", "any"],
)
def test_a_narrow_terminal_wraps_and_cuts_nothing(show: Callable[[dict[str, Any]], None], narrow: io.StringIO) -> None:
    show(alert(LONG))
    lines = narrow.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert "…" not in narrow.getvalue()
    assert LONG in "".join(line.strip() for line in lines)
    assert "digits" in "".join(lines).split()


def test_a_wide_terminal_keeps_one_row_a_client(screen: io.StringIO) -> None:
    terminal.print_ranked([alert("acct-1"), alert("acct-2")])
    header, *_ = screen.getvalue().splitlines()
    assert header.split() == ["client", "model", "state", "suspicion", "queries", "exposure", "why"]
    assert " ~62% (40–71) " in screen.getvalue(), "with its interval, and rough"


def test_no_word_of_a_reason_is_cut_at_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in range(30, 140):
        shown = io.StringIO()
        monkeypatch.setattr(terminal, "out", Console(file=shown, width=width, highlight=False))
        terminal.print_ranked([alert("acct-781f91e8fc")])
        words = shown.getvalue().split()
        assert {"acct-781f91e8fc", "throttle", "0.999995", "earlier", "feature", "step"} <= set(words), width


def test_a_list_says_how_many_there_are_and_how_many_it_shows(screen: io.StringIO) -> None:
    many = [alert(f"acct-{i}") for i in range(45)]
    terminal.print_ranked([*many, *(alert(f"calm-{i}") | {"state": "clear"} for i in range(300))])
    assert screen.getvalue().splitlines()[-1] == "20 of 345 clients shown; 45 flagged"
    terminal.print_clients(many[:5], 345, 45, "--limit N shows more")
    assert screen.getvalue().splitlines()[-1] == "5 of 345 clients shown; --limit N shows more; 45 flagged"
    terminal.print_alerts(many[:2], 45)
    assert screen.getvalue().splitlines()[-1] == "2 of 45 alerts shown; --limit N shows more"
    terminal.print_alerts(many[:1])
    assert screen.getvalue().splitlines()[-1] == "1 alert"


def test_a_finding_that_is_over_resembles_nothing(screen: io.StringIO) -> None:
    terminal.print_alerts([alert() | {"state": "clear"}])
    assert "perturbed" not in screen.getvalue()


def test_no_rows_are_said_in_words(screen: io.StringIO) -> None:
    terminal.print_alerts([])
    terminal.print_table(("client", "state"), [], "no operator's decision holds")
    assert screen.getvalue().splitlines() == ["no alerts", "no operator's decision holds"]


def test_an_account_says_what_is_above_honest_clients_and_counts_the_rest(screen: io.StringIO) -> None:
    excess = [{"statistic": 5.0 - i, "text": f"reason {i}"} for i in range(12)]
    told = {
        "client_id": "c", "model_id": "m", "state": "watch", "summary": "", "extraction": None, "queries": 1, "distinct": 1.0,
        "p_value": 1.0, "rarity": "usual", "calibrated": True, "gateways": "Gateways let it through.", "signals": [], "timeline": [],
        "what_would_change_it": [], "what_did_not_fit": [], "observations": [], "reported_by_peers": [], "evidence": excess,
    }  # fmt: skip
    explain._print_account(told)
    said = screen.getvalue()
    assert "reason 4" in said
    assert "reason 5" not in said, "no excess"
    assert "7 weaker signals" in said
