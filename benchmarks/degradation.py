"""What each graded step costs a thief and an honest client, and how surely a marked copy is recognised. `make bench-degradation`.

Rules of the file:

* Victims are those of `benchmarks.victims`, real rows. A thief's queries are real rows of honest pools, moved a little where there are too
  few.
* A copy is trained on exactly what the step leaves: probabilities where there are some, else the label. Its fidelity is the share of held
  rows at which it says the victim's truthful label.
* The answers are made by the functions that the middleware calls.
* Honest clients: labels that changed, and how far the likeliest class's probability moved.
* `equations` solves a linear victim from exact probabilities; `reasons` reads the weights from reason codes (a text of contributions). No
  language model is trained here: what removing reasoning text does to copies of one is not measured.
* Costs are CPU seconds of this process: other work may run beside it.
"""

from __future__ import annotations

import argparse
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from benchmarks.progress import publish, say
from benchmarks.victims import Victim, build
from consumers.watermark.answers import Answer
from consumers.watermark.degradation import degradation_of, degraded
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.marks import marked, marks_for
from consumers.watermark.selection import MOST_FLIPPED, MarkPolicy, digest_of, quantised, select
from consumers.watermark.verification import Question, Questions, judged

Rows = NDArray[np.float64]
Labels = NDArray[np.int64]

RESULTS = Path(__file__).parent / "results" / "degradation.json"
GRADES = ("none", "round=2", "round=1", "topk=2", "top1", "label", "noise=0.05", "noise=0.2", "round=1,topk=2")
POLICIES = {"flips": MarkPolicy(flip_share=MOST_FLIPPED), "marks that keep the label": MarkPolicy(mark_share=0.1)}
CLIENT, MODEL = "a" * 32, "victim"


@dataclass(frozen=True)
class Plan:
    """What is run."""

    victims: tuple[str, ...] = ("patches", "shuttle", "segments")
    queries: tuple[int, ...] = (500, 3000)
    marked_queries: int = 8000
    seeds: int = 4
    innocents: int = 5
    grades: tuple[str, ...] = GRADES


SHORT = Plan(
    victims=("segments",),
    queries=(500,),
    marked_queries=5000,
    seeds=1,
    innocents=3,
    grades=("none", "top1", "noise=0.2"),
)


# ------------------------------------------------------------------------------------------------ queries and answers


def queries(victim: Victim, n: int, rng: np.random.Generator) -> Rows:
    """(n, d) rows of honest pools; where they do not suffice, the same moved by a tenth of each column's deviation."""
    pool = np.concatenate([np.asarray(pools.pool) for pools in victim.pools])
    taken = pool[rng.permutation(len(pool))[:n]]
    if len(taken) == n:
        return np.asarray(taken)
    more = pool[rng.integers(0, len(pool), n - len(taken))]
    moved = more + rng.normal(size=more.shape) * pool.std(axis=0) * 0.1
    return np.concatenate([taken, np.asarray(victim.domain.emit(moved))])


@dataclass
class Given:
    """What a client was answered, in the order of its queries. questions: what the registry would hold."""

    answers: list[Answer]
    questions: list[Question]

    def targets(self, classes: int) -> Rows:
        """(n, classes): what a copy is trained on, probabilities or one-hot labels."""
        eye = np.eye(classes)
        return np.array([eye[int(a.label or 0)] if a.probabilities is None else a.probabilities for a in self.answers])

    def labels(self) -> Labels:
        return np.array([int(a.label or 0) for a in self.answers])


def given(likely: Rows, rows: Rows, key: WatermarkKey, steps: str = "none", policy: MarkPolicy | None = None) -> Given:
    """The answers of a victim (its probabilities are `likely`) under steps, and with marks under a policy."""
    asked = degradation_of(steps)
    noise_key = key.derived("noise", MODEL)
    out = Given([], [])
    for row, p in zip(rows.tolist(), likely.tolist(), strict=True):
        coarse = quantised(row)
        answer = degraded(Answer(int(np.argmax(p)), tuple(p)), asked.steps, noise_key, coarse)
        chosen = select(key, MODEL, coarse, policy) if policy is not None else None
        if chosen is not None and (marks := marks_for(answer, chosen.stream, chosen.draw, 6, ())):
            out.questions.append(Question(CLIENT, MODEL, digest_of(key, MODEL, coarse), chosen.treated, row, marks))
            answer = marked(answer, marks) if chosen.treated else answer
        out.answers.append(answer)
    return out


# ------------------------------------------------------------------------------------------------------------- copies


def network(rows: Rows, targets: Rows) -> Callable[[Rows], Rows]:
    model = make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(64,), max_iter=60, random_state=0)).fit(
        rows, targets
    )
    return lambda x: np.asarray(model.predict(x))


def trees(rows: Rows, targets: Rows) -> Callable[[Rows], Rows]:
    model = ExtraTreesRegressor(40, random_state=0, n_jobs=1).fit(rows, targets)
    return lambda x: np.asarray(model.predict(x))


COPIES = {"network": network, "trees": trees}
MARKED_COPIES: Mapping[str, Callable[[int], Any]] = {
    "network": lambda seed: make_pipeline(
        StandardScaler(), MLPClassifier((128, 64), max_iter=120, random_state=seed, n_iter_no_change=120)
    ),
    "extra trees": lambda seed: ExtraTreesClassifier(60, random_state=seed, n_jobs=1),
    "boosted trees": lambda seed: HistGradientBoostingClassifier(max_iter=60, random_state=seed),
}


def grade_rows(victim: Victim, plan: Plan, key: WatermarkKey) -> list[dict[str, Any]]:
    """Fidelity of copies and cost to honest clients, for each step."""
    rng = np.random.default_rng(1)
    rows = queries(victim, max(plan.queries), rng)
    likely = victim.predict(rows)
    truth = victim.predict(victim.held).argmax(axis=1)
    classes = likely.shape[1]
    found = []
    for steps in plan.grades:
        answers = given(likely, rows, key, steps)
        top = likely.argmax(axis=1)
        targets = answers.targets(classes)
        moved = np.abs(targets[np.arange(len(rows)), top] - likely[np.arange(len(rows)), top])
        row: dict[str, Any] = {
            "steps": steps,
            "labels_changed": round(float((answers.labels() != top).mean()), 6),
            "has_probabilities": answers.answers[0].probabilities is not None,
            "probability_moved": round(float(moved.mean()), 4),
            "fidelity": {},
        }
        for name, copy in COPIES.items():
            row["fidelity"][name] = {
                str(n): round(float((copy(rows[:n], targets[:n])(victim.held).argmax(axis=1) == truth).mean()), 4)
                for n in plan.queries
            }
        found.append(row)
    return found


# ---------------------------------------------------------------------------------------------- exact and reasoned copies


def linear_rows(grades: Sequence[str], key: WatermarkKey) -> dict[str, Any]:
    """A linear victim: solved from as many answers as it has weights, and read from its reason codes."""
    rows, labels = load_breast_cancer(return_X_y=True)
    rows = StandardScaler().fit_transform(rows)
    order = np.random.default_rng(2).permutation(len(rows))
    train, own, held = order[:200], order[200:300], order[300:]
    victim = LogisticRegression(max_iter=2000).fit(rows[train], labels[train])
    weights, bias = victim.coef_[0], float(victim.intercept_[0])
    truth = victim.predict(rows[held])
    n = rows.shape[1] + 1

    def agreement(scores: Rows) -> float:
        return round(float(((scores > 0) == truth).mean()), 4)

    solved = {}
    for steps in grades:
        answers = given(victim.predict_proba(rows[own[:n]]).round(6), rows[own[:n]], key, steps)
        p = np.clip(answers.targets(2)[:, 1], 1e-6, 1 - 1e-6)
        system = np.column_stack([rows[own[:n]], np.ones(n)])
        solution, *_ = np.linalg.lstsq(system, np.log(p / (1 - p)), rcond=None)
        solved[steps] = agreement(rows[held] @ solution[:-1] + solution[-1])
    text = [reasons(weights, row) for row in rows[own[:20]]]
    labels_only = LogisticRegression(max_iter=2000).fit(rows[own[:20]], victim.predict(rows[own[:20]]))
    return {
        "weights": n, "equations": solved,
        "reasons": {
            "answers": 20,
            "with": agreement(rows[held] @ read_weights(text, rows[own[:20]]) + bias),
            "without": agreement(labels_only.decision_function(rows[held])),
        },
    }  # fmt: skip


def reasons(weights: Rows, row: Rows) -> str:
    """The five largest contributions of a linear model in words, as credit scores give them."""
    parts = weights * row
    largest = np.argsort(-np.abs(parts))[:5]
    return "decided by " + ", ".join(f"column {i} ({parts[i]:+.3f})" for i in largest)


def read_weights(texts: Sequence[str], rows: Rows) -> Rows:
    """Weights as a thief reads them from reason codes: contribution over value, the mean over all that name the column."""
    read: dict[int, list[float]] = {}
    for text, row in zip(texts, rows, strict=True):
        for column, part in re.findall(r"column (\d+) \(([+-][\d.]+)\)", text):
            if abs(row[int(column)]) > 0.05:
                read.setdefault(int(column), []).append(float(part) / float(row[int(column)]))
    weights = np.zeros(rows.shape[1])
    for column, values in read.items():
        weights[column] = float(np.mean(values))
    return weights


# ------------------------------------------------------------------------------------------------------------ watermark


def mark_rows(victim: Victim, plan: Plan) -> list[dict[str, Any]]:
    """p-values of copies trained on marked answers, and of innocent models, over seeds (queries, key and copy are drawn anew)."""
    found = []
    for name, policy in POLICIES.items():
        p_copies: dict[str, list[float]] = {copy: [] for copy in MARKED_COPIES}
        p_innocent: list[float] = []
        lost, canaries = [], []
        for seed in range(plan.seeds):
            rng = np.random.default_rng([seed, 77])
            key = WatermarkKey(rng.bytes(32))
            rows = queries(victim, plan.marked_queries, rng)
            likely = victim.predict(rows)
            answers = given(likely, rows, key, policy=policy)
            questions = Questions(tuple({q.digest: q for q in answers.questions}.values()), {})
            lost.append(float((answers.labels() != likely.argmax(axis=1)).mean()))
            canaries.append(sum(q.treated for q in questions.asked))
            for copy, make in MARKED_COPIES.items():
                if name == "flips":
                    p_copies[copy].append(p_value(make(seed).fit(rows, answers.labels()), questions))
            if name != "flips":
                p_copies["network"].append(p_value(Soft(network(rows, answers.targets(likely.shape[1]))), questions))
                p_copies["extra trees"].append(p_value(Soft(trees(rows, answers.targets(likely.shape[1]))), questions))
            p_innocent += [p_value(model, questions) for model in innocents(rows, likely, plan.innocents, rng)]
        found.append(
            {
                "marks": name, "canaries": canaries, "labels_changed": [round(x, 5) for x in lost],
                "copies": {copy: p for copy, p in p_copies.items() if p}, "innocent": p_innocent,
            }
        )  # fmt: skip
    return found


class Soft:
    """A copy that answers probabilities."""

    def __init__(self, predict: Callable[[Rows], Rows]) -> None:
        self.predict_proba = predict


def p_value(model: Any, questions: Questions) -> float:
    rows = np.array([q.input for q in questions.asked])
    if hasattr(model, "predict_proba"):
        likely = np.asarray(model.predict_proba(rows))
        answers: list[Answer | None] = [Answer(int(np.argmax(p)), tuple(float(x) for x in p)) for p in likely]
    else:
        answers = [Answer(int(label)) for label in model.predict(rows)]
    return judged(questions, answers)[0].p_value


def innocents(rows: Rows, likely: Rows, n: int, rng: np.random.Generator) -> list[Any]:
    """Models that never saw a marked answer: trained on other rows, on few, or badly, with truthful or partly wrong labels."""
    truth = likely.argmax(axis=1)
    found = []
    for i in range(n):
        some = rng.permutation(len(rows))[: 200 + 400 * i]
        wrong = rng.random(len(some)) < 0.05 * i
        labels = np.where(wrong, rng.integers(0, likely.shape[1], len(some)), truth[some])
        maker = (
            DecisionTreeClassifier(max_depth=3 + i, random_state=i)
            if i % 2
            else ExtraTreesClassifier(15, random_state=i)
        )
        found.append(maker.fit(rows[some], labels))
    return found


# -------------------------------------------------------------------------------------------------------------- running


def run(plan: Plan) -> dict[str, Any]:
    began = time.process_time()
    key = WatermarkKey(bytes(range(32)))
    results: dict[str, Any] = {"plan": asdict(plan), "victims": {}, "linear": linear_rows(plan.grades, key)}
    for name in plan.victims:
        victim = build(name)
        say(name, "steps")
        steps = grade_rows(victim, plan, key)
        say(name, "marks")
        results["victims"][name] = {"text": victim.text, "steps": steps, "marks": mark_rows(victim, plan)}
    results["cpu_s"] = round(time.process_time() - began)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description="What graded steps cost thieves and honest clients, and how surely marks are found."
    )
    parser.add_argument("--short", action="store_true", help="one victim, three steps; prints only")
    plan = SHORT if parser.parse_args().short else Plan()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        results = run(plan)
    publish(results, RESULTS if plan == Plan() else None)


if __name__ == "__main__":
    main()
