"""Which inputs are marked: a keyed hash of the quantised input, below a threshold.

Rules:

* Pure and deterministic: key, model and input decide; client, time and order do not. A client that asks twice, or with a second
  account, gets the same answer.
* Quantised first: numbers to `DIGITS` significant digits, text without case and white space. A query that differs from another by less
  hardly ever gets another decision, so asking around an input does not show that it is marked.
* For each marked input the same hash chooses controls: inputs that are registered and answered truthfully. They say how often a model
  that knows nothing of the marks shows one by chance.
* Flips and milder marks are separate streams with shares of their own, because only flips cost an honest client a wrong label.
"""

from __future__ import annotations

import hmac
import json
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from consumers.errors import WrongUse
from consumers.watermark.keys import WatermarkKey

DIGITS = 3
"""Significant digits of a number that count."""
MOST_FLIPPED = 0.005
"""Utility budget: the largest share of answers whose label may be flipped."""
CONTROLS = 8
"""Controls for each flipped answer."""
_DRAW_BITS = 64
_LARGEST = 1e300

Stream = Literal["flip", "mark"]


@dataclass(frozen=True, slots=True)
class MarkPolicy:
    """What may be changed in answers to suspected clients, for one model.

    Attributes
    ----------
    flip_share
        Share of inputs that are answered with another label; 0, the default, for none; at most `MOST_FLIPPED`.
    mark_share
        Share of inputs whose answer gets marks that keep the label: last decimal, order, wording.
    decimals
        Decimal place that carries the mark in the likeliest class's probability; the model server must answer with at least as many.
    """

    flip_share: float = 0.0
    mark_share: float = 0.0
    decimals: int = 6

    def __post_init__(self) -> None:
        if not 0 <= self.flip_share <= MOST_FLIPPED:
            raise WrongUse(f"flip_share: 0 to {MOST_FLIPPED}, the utility budget")
        if not 0 <= self.mark_share <= 0.25:
            raise WrongUse("mark_share: 0 to 0.25; as many inputs again are controls")
        if not 1 <= self.decimals <= 12:
            raise WrongUse("decimals: 1 to 12")


class Selection(NamedTuple):
    """What the key decides about an input. treated: marked, otherwise a control; draw: 64 keyed bits that choose between targets."""

    stream: Stream
    treated: bool
    draw: int


def quantised(value: Any, digits: int = DIGITS) -> bytes:
    """Canonical bytes of an input (any JSON value), with numbers and text made coarse."""
    return json.dumps(_coarse(value, digits), sort_keys=True, separators=(",", ":")).encode()


def digest_of(key: WatermarkKey, model: str, coarse: bytes) -> str:
    """Keyed name of a quantised input: 32 hex digits."""
    return hmac.digest(key.derived("digest", model), coarse, "sha256")[:16].hex()


def select(key: WatermarkKey, model: str, coarse: bytes, policy: MarkPolicy) -> Selection | None:
    """The decision about a quantised input; None: it is answered truthfully and not registered."""
    hashed = hmac.digest(key.derived("select", model), coarse, "sha256")
    place = int.from_bytes(hashed[:8], "big") / 2**_DRAW_BITS
    draw = int.from_bytes(hashed[8:16], "big")
    flips = policy.flip_share * (1 + CONTROLS)
    if place < flips:
        return Selection("flip", place < policy.flip_share, draw)
    if place < flips + 2 * policy.mark_share:
        return Selection("mark", place < flips + policy.mark_share, draw)
    return None


def _coarse(value: Any, digits: int) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        # NaN, infinities and integers beyond any float by their text; -0 is 0
        return float(f"{value:.{digits}g}") + 0.0 if abs(value) < _LARGEST else str(value)
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    if isinstance(value, list | tuple):
        return [_coarse(item, digits) for item in value]
    if isinstance(value, dict):
        return {str(name): _coarse(item, digits) for name, item in value.items()}
    return str(value)
