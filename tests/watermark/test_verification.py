"""Verification: the p-value of an innocent model is a p-value, and a copy is named with the client that it came from.

A real victim (scikit-learn, handwritten digits), thieves that query it through the middleware, and copies that are really trained.
"""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy.stats import hypergeom
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeClassifier
from support.marked_model import MODEL, ModelServer, ask, degrade
from threadpoolctl import threadpool_limits

from consumers.watermark.answers import Answer
from consumers.watermark.exact import holm, hypergeometric_tail
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.marks import Flip, marked, marks_for
from consumers.watermark.middleware import DegradationMiddleware
from consumers.watermark.registry import Line, Registry, Sealed, lines_of
from consumers.watermark.selection import MOST_FLIPPED, MarkPolicy, quantised, select
from consumers.watermark.verification import Question, Questions, judged, questions_of

THIEF, HONEST = "a" * 32, "b" * 32
QUERIES = 6000


# --- the tests themselves


def test_the_tail_is_that_of_the_hypergeometric_distribution() -> None:
    rng = random.Random(3)
    for _ in range(300):
        total = rng.randint(1, 300)
        count, shown = rng.randint(0, total), rng.randint(0, total)
        hits = rng.randint(0, min(count, shown))
        assert hypergeometric_tail(hits, count, shown, total) == pytest.approx(
            hypergeom.sf(hits - 1, total, count, shown), rel=1e-9, abs=1e-12
        )
    with pytest.raises(ValueError, match="fit"):
        hypergeometric_tail(4, 3, 5, 9)


def test_holm_is_monotone_and_never_below_the_raw_value() -> None:
    rng = random.Random(4)
    for _ in range(100):
        raw = [rng.random() ** 4 for _ in range(rng.randint(1, 9))]
        corrected = holm(raw)
        assert all(r <= c <= 1 for r, c in zip(raw, corrected, strict=True))
        order = sorted(range(len(raw)), key=raw.__getitem__)
        assert [corrected[i] for i in order] == sorted(corrected)
    assert holm([0.01] * 4) == [0.04] * 4
    assert holm([]) == []


def innocent_p_value(key: WatermarkKey, wrong: Sequence[bool], guesses: Sequence[int], policy: MarkPolicy) -> float:
    """The p-value of a model that errs at some inputs, whatever the key is."""
    questions, answers = [], []
    for i, (errs, guess) in enumerate(zip(wrong, guesses, strict=True)):
        coarse = quantised([i % 100, i // 100])
        chosen = select(key, MODEL, coarse, policy)
        if chosen is None:
            continue
        truth = Answer(i % 4, (0.7, 0.2, 0.06, 0.04) if i % 4 == 0 else None)
        marks = marks_for(truth, chosen.stream, chosen.draw, 6, (0, 1, 2, 3))
        if not marks:
            continue
        questions.append(Question(THIEF, MODEL, f"{i:032x}", chosen.treated, i, marks))
        label = guess if errs else i % 4
        p = [0.1, 0.1, 0.1, 0.1]
        p[label], p[guess] = 0.6, 0.2 + guess * 0.0100007
        answers.append(Answer(label, tuple(p)))
    results = judged(Questions(tuple(questions), {}), answers)
    return results[0].p_value if results else 1.0


@pytest.mark.parametrize(
    "policy", [MarkPolicy(flip_share=MOST_FLIPPED), MarkPolicy(flip_share=MOST_FLIPPED, mark_share=0.1)]
)
def test_p_values_of_an_innocent_model_are_at_least_uniform(policy: MarkPolicy) -> None:
    """The suspect stays the same and errs in 30 % of its answers; only the key is drawn anew."""
    rng = random.Random(5)
    wrong, guesses = [rng.random() < 0.3 for _ in range(1000)], [rng.randrange(4) for _ in range(1000)]
    p_values = [innocent_p_value(WatermarkKey(rng.randbytes(32)), wrong, guesses, policy) for _ in range(150)]
    for level in (0.01, 0.05, 0.1, 0.25, 0.5):
        share = sum(p <= level for p in p_values) / len(p_values)
        assert share <= level + 3 * (level * (1 - level) / len(p_values)) ** 0.5, level
    assert min(p_values) < 0.5, "it is no constant"


# --- what is asked


def line(n: int, client: str, kind: str = "canary", key: WatermarkKey | None = None) -> Line:
    used = key or KEY
    text = base64.b64encode(used.seal(msgspec.json.encode(Sealed(n, [Flip(1, 1, 0)])))).decode()
    return Line(n, 0, client, kind, used.key_id, MODEL, f"{n:032x}", sealed=text)


KEY = WatermarkKey(bytes(range(32)))


def test_what_several_clients_were_given_speaks_for_none() -> None:
    lines = [
        line(1, THIEF),
        line(1, HONEST),
        line(2, THIEF),
        line(3, HONEST, "control"),
        line(4, THIEF, key=WatermarkKey.draw()),
    ]
    found = questions_of(lines, KEY)
    assert [(q.client, q.input, q.treated) for q in found.asked] == [(THIEF, 2, True), (HONEST, 3, False)]
    assert found.shared == {THIEF: 1, HONEST: 1}
    assert questions_of(lines, KEY, model="another").asked == ()
    many = [line(n, THIEF) for n in range(1, 40)] + [line(n, THIEF, "control") for n in range(40, 100)]
    assert Counter(q.treated for q in questions_of(many, KEY, most=5).asked) == {True: 5, False: 40}


def test_a_suspect_that_does_not_answer_is_not_accused() -> None:
    found = questions_of([line(n, THIEF, "canary" if n % 9 == 0 else "control") for n in range(1, 200)], KEY)
    assert judged(found, [None] * len(found.asked))[0].p_value == 1.0
    assert judged(found, [Answer(text="no")] * len(found.asked))[0].canaries == 0
    assert judged(Questions((), {}), []) == []


def test_a_mark_that_was_learned_but_is_not_repeated_is_seen_in_the_probabilities() -> None:
    found = questions_of([line(n, THIEF, "canary" if n % 9 == 0 else "control") for n in range(1, 200)], KEY)
    leaning: list[Answer | None] = [Answer(0, (0.7, 0.3) if q.treated else (0.9, 0.1)) for q in found.asked]
    (result,) = judged(found, leaning)
    assert result.shown == 0
    assert result.p_value < 1e-12
    assert judged(found, [Answer(0, (0.9, 0.1))] * len(found.asked))[0].p_value > 0.1


def test_a_suspect_with_other_names_for_its_labels() -> None:
    found = questions_of([line(n, THIEF, "canary" if n % 9 == 0 else "control") for n in range(1, 200)], KEY)
    answers: list[Answer | None] = [Answer("beta" if q.treated else "alpha") for q in found.asked]
    assert judged(found, answers, ("alpha", "beta"))[0].p_value < 1e-12
    assert judged(found, answers)[0].p_value == 1.0


# --- a real victim, thieves and copies


class Theft:
    """Two clients query a real victim through the middleware; what each was answered."""

    def __init__(self, folder: Path, seed: int, policy: MarkPolicy) -> None:
        rng = np.random.default_rng(seed)
        rows, labels = load_digits(return_X_y=True)
        order = rng.permutation(len(rows))
        self.own, self.own_labels = rows[order[900:]], labels[order[900:]]
        victim = ExtraTreesClassifier(50, random_state=seed, n_jobs=1).fit(rows[order[:900]], labels[order[:900]])
        self.key = WatermarkKey(rng.bytes(32))
        self.path = folder / f"canaries-{seed}.jsonl"
        server = ModelServer(lambda request: predictions(victim, request))
        registry = Registry(self.path, self.key, most_of_client=20_000)
        app = DegradationMiddleware(server, MODEL, key=self.key, registry=registry, policy=policy)
        self.inputs = {THIEF: self._queries(rng, QUERIES), HONEST: self._queries(rng, QUERIES)}
        self.truth = {c: victim.predict(x) for c, x in self.inputs.items()}
        self.given = {c: self._answers(app, c) for c in self.inputs}
        registry.close()

    def _queries(self, rng: np.random.Generator, n: int) -> Any:
        rows = self.own[rng.integers(0, len(self.own), n)]
        return np.clip(np.round(rows + rng.normal(0, 1.5, rows.shape)), 0, 16)

    def _answers(self, app: DegradationMiddleware, client: str) -> Any:
        inputs = self.inputs[client].tolist()
        found: list[int] = []
        for first in range(0, len(inputs), 1000):
            body = ask(
                app, {"instances": inputs[first : first + 1000]}, degrade(f"canary={self.key.key_id}", client)
            ).body
            found += [one["label"] for one in body["predictions"]]
        return np.array(found)

    def p_values(self, model: Any, probabilities: bool = False) -> dict[str, float]:
        questions = questions_of(lines_of(self.path), self.key)
        likely = model.predict_proba(np.array([q.input for q in questions.asked]))
        answers = [Answer(int(p.argmax()), tuple(p.tolist()) if probabilities else None) for p in likely]
        return {r.client: r.p_value for r in judged(questions, answers)}


def predictions(victim: Any, request: Any) -> Any:
    likely = victim.predict_proba(np.array(request["instances"])).round(6)
    return {"predictions": [{"label": int(p.argmax()), "probabilities": p.tolist()} for p in likely]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("theft")


@cache
def theft(folder: Path, seed: int) -> Theft:
    return Theft(folder, seed, MarkPolicy(flip_share=MOST_FLIPPED))


COPIES = {
    "random forest": lambda seed: RandomForestClassifier(60, random_state=seed, n_jobs=1),
    "extra trees": lambda seed: ExtraTreesClassifier(60, random_state=seed, n_jobs=1),
    "network": lambda seed: MLPClassifier((96,), max_iter=70, random_state=seed, n_iter_no_change=70),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("kind", "seed"), [("random forest", 0), ("random forest", 1), ("extra trees", 2), ("network", 0)]
)
def test_a_copy_names_the_client_whose_answers_it_was_trained_on(folder: Path, kind: str, seed: int) -> None:
    stolen = theft(folder, seed)
    with threadpool_limits(1):
        copy = COPIES[kind](seed).fit(stolen.inputs[THIEF], stolen.given[THIEF])
    for probabilities in (False, True):
        p_values = stolen.p_values(copy, probabilities)
        assert p_values[THIEF] < 1e-6
        assert p_values[HONEST] > 1e-3, "the other client was marked too, and is not accused"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_twenty_innocent_models_are_not_accused(folder: Path) -> None:
    """Trained on labels of their own, on other rows, on the truthful answers to the very inputs, and not at all well."""
    stolen = theft(folder, 0)
    rng = np.random.default_rng(9)
    innocents: list[Any] = [
        RandomForestClassifier(15, random_state=s, n_jobs=1).fit(stolen.own, stolen.own_labels) for s in range(8)
    ]
    innocents += [
        DecisionTreeClassifier(max_depth=2 + s, random_state=s).fit(stolen.own, stolen.own_labels) for s in range(6)
    ]
    innocents += [
        ExtraTreesClassifier(15, random_state=s, n_jobs=1).fit(stolen.inputs[THIEF], stolen.truth[THIEF])
        for s in range(4)
    ]
    noisy = [np.where(rng.random(QUERIES) < 0.1, rng.integers(0, 10, QUERIES), stolen.truth[THIEF]) for _ in range(2)]
    innocents += [
        ExtraTreesClassifier(15, n_jobs=1, random_state=1).fit(stolen.inputs[THIEF], labels) for labels in noisy
    ]
    p_values = [p for model in innocents for way in (False, True) for p in stolen.p_values(model, way).values()]
    assert len(innocents) == 20
    assert min(p_values) > 1e-3


def test_a_marked_client_loses_no_more_than_the_budget(folder: Path) -> None:
    stolen = theft(folder, 0)
    for client in (THIEF, HONEST):
        lost = float((stolen.given[client] != stolen.truth[client]).mean())
        assert 0 < lost <= MOST_FLIPPED * 1.6, "half a per cent in expectation"
    assert marked(Answer(1), []) == Answer(1)
