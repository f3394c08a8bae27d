"""The steps of ``X-QueryWarden-Degrade``: answers with less detail, in grades.

    round=N       probabilities and values with N decimals
    topk=K        only the K largest probabilities; the others are 0
    top1          the likeliest class has probability 1, all others 0
    label         the label alone: no probabilities at all
    noise=S       noise of standard deviation S on probabilities, keyed by the input
    noreasoning   reasoning text is removed: fields that hold it, and what stands between <think> and </think>
    canary=KEYID  marks of the watermark key with this id (`marks`)

Rules: the steps apply in the order in which the header names them; an unknown step is ignored; no step changes the likeliest class.
Noise is the same for the same input, so that asking again averages nothing out.
"""

from __future__ import annotations

import hmac
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from consumers.watermark.answers import Answer

HEADER = "x-querywarden-degrade"
CLIENT_HEADER = "x-querywarden-client"
DECISION_HEADER = "x-querywarden-decision"
NOTHING = "none"
CANARY = "canary"
MARKED_DECISIONS = ("throttle", "degrade")
"""Decisions under which an answer may carry a mark."""
STEPS = ("round", "topk", "top1", "label", "noise", "noreasoning", CANARY)
Decision = TypeVar("Decision", bound=str)
_MOST_DECIMALS = 15
_MOST_STEPS = 16
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)\s*", re.DOTALL | re.IGNORECASE)


class Step(NamedTuple):
    """One step; amount: its number, 0 where it takes none."""

    name: str
    amount: float = 0.0


@dataclass(frozen=True, slots=True)
class Degradation:
    """What a header asks for. canaries: ids of the watermark keys that it names."""

    steps: tuple[Step, ...] = ()
    canaries: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps or self.canaries)

    @property
    def hides_reasoning(self) -> bool:
        return any(step.name == "noreasoning" for step in self.steps)

    @property
    def hides_logits(self) -> bool:
        """Logits would undo every step on probabilities, and show where a mark is; so they go from all answers alike."""
        return bool(self.canaries) or any(step.name != "noreasoning" for step in self.steps)

    def decimals(self, most: int) -> int:
        """Decimal places that are left of probabilities, at most `most`."""
        return min([most, *(int(step.amount) for step in self.steps if step.name == "round")])


def degradation_of(header: str) -> Degradation:
    """The steps that a header's value names; unknown and malformed ones are left out."""
    steps, canaries = [], []
    for part in header.split(",")[:_MOST_STEPS]:
        name, _, text = part.strip().partition("=")
        if name == CANARY and text:
            canaries.append(text)
        elif name in ("top1", "label", "noreasoning"):
            steps.append(Step(name))
        elif name in ("round", "topk", "noise") and (amount := _number(text)) is not None:
            steps.append(Step(name, amount))
    return Degradation(tuple(steps), tuple(canaries))


def without_canaries(header: str) -> str:
    """A header's value without its ``canary`` steps; ``none`` when nothing is left.

    >>> without_canaries("round=2, canary=0123456789abcdef"), without_canaries("canary=0123456789abcdef")
    ('round=2', 'none')
    """
    parts = [part.strip() for part in header.split(",")]
    kept = [part for part in parts if part.partition("=")[0].strip() != CANARY]
    return header if kept == parts else ",".join(kept) or NOTHING


def marks_suspects_only(steps: dict[Decision, str]) -> dict[Decision, str]:
    """The steps by decision as they are. Raises ValueError where clients would be marked that nobody suspects."""
    for decision, header in steps.items():
        if decision not in MARKED_DECISIONS and without_canaries(header) != header:
            raise ValueError(f"canary under {decision}: only throttled and degraded clients are marked")
    return steps


def degraded(answer: Answer, steps: Sequence[Step], noise_key: bytes, coarse: bytes) -> Answer:
    """The answer after the steps. noise_key: 32 bytes; coarse: the quantised input that it answers."""
    top = answer.top or 0
    for step in steps:
        if step.name == "noreasoning":
            if answer.text is not None:
                answer = replace(answer, text=_THINKING.sub("", answer.text))
        elif step.name == "round" and answer.value is not None:
            answer = replace(answer, value=round(answer.value, _decimals(step.amount)))
        if step.name == "label":
            answer = _label_only(answer)
        elif answer.probabilities is not None:
            answer = replace(answer, probabilities=_blurred(answer.probabilities, top, step, noise_key, coarse))
    return answer


def _label_only(answer: Answer) -> Answer:
    if answer.probabilities is None:
        return answer
    return replace(answer, label=answer.top if answer.label is None else answer.label, probabilities=None)


def _blurred(p: tuple[float, ...], top: int, step: Step, noise_key: bytes, coarse: bytes) -> tuple[float, ...]:
    """Probabilities after one step. top: the class that was likeliest before all steps, and stays it."""
    blurred = list(p)
    if step.name == "top1":
        return tuple(float(i == top) for i in range(len(p)))
    if step.name == "round":
        blurred = [round(x, _decimals(step.amount)) for x in p]
    elif step.name == "topk":
        kept = set(sorted(range(len(p)), key=lambda i: (i != top, -p[i]))[: max(1, int(step.amount))])
        blurred = [x if i in kept else 0.0 for i, x in enumerate(p)]
    elif step.name == "noise":
        noise = [step.amount * z for z in keyed_normals(noise_key, coarse, len(p))]
        moved = [max(0.0, x + n) for x, n in zip(p, noise, strict=True)]
        total = sum(moved)
        blurred = [x / total for x in moved] if total else list(p)
    largest = max(blurred)
    others = [x for i, x in enumerate(blurred) if i != top]
    if others and blurred[top] < largest:  # noise put another class first: exchange them
        blurred[blurred.index(largest)], blurred[top] = blurred[top], largest
    return tuple(blurred)


def keyed_normals(key: bytes, coarse: bytes, n: int) -> list[float]:
    """`n` standard normal numbers that key and input determine (Box-Muller on HMAC-SHA256)."""
    numbers = []
    for i in range(n):
        digest = hmac.digest(key, i.to_bytes(4, "big") + coarse, "sha256")
        u, v = ((int.from_bytes(digest[k : k + 8], "big") + 1) / 2**64 for k in (0, 8))
        numbers.append(math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v))
    return numbers


def _decimals(amount: float) -> int:
    return min(_MOST_DECIMALS, max(0, int(amount)))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
