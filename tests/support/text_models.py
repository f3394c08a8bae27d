"""A small text model: questions to a bank, in the native event, with honest clients and thieves of another domain."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from consumers import fit as fitting
from consumers.log.files import FileLog
from consumers.text_fitting import generic_texts
from detector.simulation.text_population import TextStream, in_time_order, text_population
from detector.simulation.texts import TextPools

MODEL = "assistant"
LABELS = ("card", "loan", "account", "transfer")
_START = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
_SUBJECTS = (
    "my credit card", "the loan", "my savings account", "a bank transfer", "the mortgage", "my debit card", "the monthly fee",
    "my overdraft",
    "a standing order", "the exchange rate", "my statement", "the branch in the city", "the mobile app", "my security code",
)  # fmt: skip
_ASKED = (
    "why was {a} declined when I paid at {b}", "how do I close {a} before {b} ends", "what does {a} cost if I keep {b}",
    "please tell me when {a} will be ready for {b}", "can I link {a} with {b} from abroad", "I lost {a} and need {b} replaced",
    "who can change {a} while {b} is blocked", "is there interest on {a} and on {b}", "I would like to raise the limit of {a} for {b}",
)  # fmt: skip
_WHEN = (
    "today",
    "next month",
    "since friday",
    "at the weekend",
    "again",
    "for my son",
    "for our company",
    "in euros",
    "online",
    "by post",
)


def questions() -> list[str]:
    """Questions of the bank's customers, shuffled."""
    rng = np.random.default_rng(1)
    all_of_them = [
        f"{asked.format(a=a, b=b)} {when}?"
        for asked in _ASKED
        for a in _SUBJECTS
        for b in _SUBJECTS
        if a != b
        for when in _WHEN
    ]
    return [all_of_them[i] for i in rng.permutation(len(all_of_them))[:2500].tolist()]


def event(client: str | None, text: Any, at_s: float = 0.0, form: str = "text") -> dict[str, Any]:
    """One native event, answered by what the text mentions."""
    label = next((name for name in LABELS if name in str(text)), LABELS[0])
    found: dict[str, Any] = {"model_id": MODEL, form: text, "prediction": {"label": label}}
    if client is not None:
        found |= {"client_id": client, "timestamp": (_START + dt.timedelta(seconds=at_s)).isoformat()}
    return found


def lines_of(streams: Sequence[TextStream]) -> list[bytes]:
    """A log of the streams in time order; every third query comes as messages."""
    lines = []
    for at, who, place in in_time_order(streams):
        text: Any = streams[who].texts[place]
        form = "messages" if place % 3 == 0 else "text"
        body = [{"role": "user", "content": text}] if form == "messages" else text
        lines.append(json.dumps(event(streams[who].client, body, at, form)).encode())
    return lines


def pools(share: int) -> TextPools:
    """Pools of one of two populations without a common question; foreign texts are generic ones."""
    asked = questions()
    generic = [(g.word, g.text) for g in generic_texts()]
    foreign = [text for _, text in generic[4000 + share :: 2]]
    return TextPools(asked[800 + share : 2200 : 2], asked[2200:], foreign, generic)


def log(share: int, clients: int, attacks: Sequence[tuple[str, str]] = ()) -> tuple[list[TextStream], list[bytes]]:
    """A population and its log."""
    streams = text_population(
        pools(share), np.random.default_rng([7, share]), clients=clients, kinds=("free", "app", "editor", "exam"),
        attacks=attacks, queries=(400, 500),
    )  # fmt: skip
    return streams, lines_of(streams)


def fitted(folder: Path, clients: int = 50) -> fitting.Fitted:
    """A baseline of the bank's assistant, calibrated on honest traffic."""
    traffic = folder / "traffic.jsonl"
    traffic.write_bytes(b"\n".join(log(0, clients)[1]) + b"\n")
    reference = [json.dumps(event(None, text)).encode() for text in questions()[:400]]
    return fitting.fit(MODEL, reference, FileLog([traffic]), exposure=False)
