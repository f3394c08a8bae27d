"""Does a suspected model show the marks of answers that were given to a client?

Method: the suspect is asked the client's marked inputs and controls. For every kind of mark the number of marked inputs at which it
shows the mark is compared with that of the controls (`exact.hypergeometric_tail`). A suspect that answers probabilities is tested a second
way, which sees a mark that was learned but is not repeated: the inputs are ranked by how far the suspect leans to the mark (`marks.lean`).
Of the first m, where m is the number of marked inputs, the marked ones are counted. Both counts are hypergeometric. The smallest p-value
counts, times the number of tests. Over the clients the p-values are corrected by Holm's method.

Rules:

* An input that several clients were given speaks for none of them.
* Of a client at most `most` marked inputs are asked, and `CONTROLS` times as many controls; which ones is chosen by their digest.
* A p-value is the chance that a model which never saw marked answers shows as many marks or more. It is not the chance of innocence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from consumers.watermark.answers import Answer, Label
from consumers.watermark.exact import holm, hypergeometric_tail
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.marks import Mark, kind_of, lean, shows
from consumers.watermark.registry import Line, unsealed
from consumers.watermark.selection import CONTROLS

MOST_ASKED = 1000


class Question(NamedTuple):
    """An input to ask. treated: the client was given a marked answer; digest: keyed name of the input."""

    client: str
    model: str
    digest: str
    treated: bool
    input: Any
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one kind of mark: marked inputs and controls that were answered, and how many of them show the mark."""

    marked: int = 0
    marked_shown: int = 0
    controls: int = 0
    controls_shown: int = 0

    @property
    def p_value(self) -> float:
        shown = self.marked_shown + self.controls_shown
        return hypergeometric_tail(self.marked_shown, self.marked, shown, self.marked + self.controls)


@dataclass(frozen=True, slots=True)
class ClientResult:
    """What the suspect says of one client.

    Attributes
    ----------
    p_value
        Corrected over clients and tests; `alone`: over tests only.
    canaries
        Marked inputs that the suspect answered; `shown`: at which it shows a mark.
    shared
        Inputs left out because other clients asked them too.
    """

    client: str
    p_value: float
    alone: float
    canaries: int
    shown: int
    controls: int
    controls_shown: int
    shared: int
    kinds: Mapping[str, Counts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked, in the order of digests, and how many inputs of each client were left out as shared."""

    asked: tuple[Question, ...]
    shared: Mapping[str, int]


def questions_of(lines: Iterable[Line], key: WatermarkKey, model: str = "", most: int = MOST_ASKED) -> Questions:
    """The questions that a registry holds for a key. model: only of this one; most: marked inputs of a client."""
    found, holders = dict[tuple[str, str], Question](), dict[str, set[str]]()
    for line in lines:
        sealed = unsealed(line, key)
        if sealed is not None and (not model or line.model == model):
            treated = line.kind == "canary"
            question = Question(line.client, line.model, line.digest, treated, sealed.input, tuple(sealed.marks))
            found[line.client, line.digest] = question
            holders.setdefault(line.digest, set()).add(line.client)
    shared = Counter(q.client for q in found.values() if len(holders[q.digest]) > 1)
    own = sorted((q for q in found.values() if len(holders[q.digest]) == 1), key=lambda q: q.digest)
    taken: Counter[tuple[str, bool]] = Counter()
    asked = []
    for question in own:
        taken[question.client, question.treated] += 1
        if taken[question.client, question.treated] <= most * (1 if question.treated else CONTROLS):
            asked.append(question)
    return Questions(tuple(asked), dict(shared))


def judged(questions: Questions, answers: Sequence[Answer | None], labels: Sequence[Label] = ()) -> list[ClientResult]:
    """The results by client, the least probable first. answers: the suspect's, in the order of the questions."""
    tables: dict[str, dict[str, Counter[tuple[bool, bool]]]] = {}
    leans: dict[tuple[str, str], list[tuple[float, str, bool]]] = {}
    asked: Counter[tuple[str, bool]] = Counter()
    shown: Counter[tuple[str, bool]] = Counter()
    for question, answer in zip(questions.asked, answers, strict=True):
        mine = tables.setdefault(question.client, {})
        seen = [
            (kind_of(m), s)
            for m in question.marks
            if answer is not None and (s := shows(m, answer, labels)) is not None
        ]
        for kind, shows_it in seen:
            mine.setdefault(kind, Counter())[question.treated, shows_it] += 1
        for mark in question.marks:
            if answer is not None and (leaning := lean(mark, answer)) is not None:
                key = question.client, kind_of(mark)
                leans.setdefault(key, []).append((-leaning, question.digest, question.treated))
        asked[question.client, question.treated] += bool(seen)
        shown[question.client, question.treated] += any(shows_it for _, shows_it in seen)
    kinds: dict[str, dict[str, Counts]] = {
        client: {kind: Counts(t[True, True] + t[True, False], t[True, True], t[False, True] + t[False, False], t[False, True])
                 for kind, t in table.items()}
        for client, table in tables.items()
    }  # fmt: skip
    for (client, name), ranked in leans.items():
        kinds[client][f"{name}, ranked"] = _ranked(ranked)
    clients = list(kinds)
    alone = [combined(list(kinds[client].values())) for client in clients]
    results = [
        ClientResult(
            client, p_value, p_alone, asked[client, True], shown[client, True], asked[client, False], shown[client, False],
            questions.shared.get(client, 0), kinds[client],
        )
        for client, p_value, p_alone in zip(clients, holm(alone), alone, strict=True)
    ]  # fmt: skip
    return sorted(results, key=lambda result: (result.p_value, result.alone, result.client))


def _ranked(leans: list[tuple[float, str, bool]]) -> Counts:
    """Among the inputs that lean most, as many as there are marked ones: how many are marked. Ties go by digest, which knows no marks."""
    count = sum(treated for *_, treated in leans)
    hits = sum(treated for *_, treated in sorted(leans)[:count])
    return Counts(count, hits, len(leans) - count, count - hits)


def combined(counts: Sequence[Counts]) -> float:
    """One p-value of several tests: the smallest, times their number (Bonferroni); 1 without any."""
    able = [c for c in counts if c.marked and c.controls]
    return min(1.0, len(able) * min(c.p_value for c in able)) if able else 1.0
