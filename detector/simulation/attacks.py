"""Simulated thieves: one generator for each family of model extraction, listed in `ATTACKS`.

Rules:

* A theft is a generator: it yields the rows that it wants to ask, and is sent ``(rows as accepted, answers)``. It may adapt to every
  answer, never reads a clock, and never ends by itself: `steal` stops it at its budget.
* A thief has the attacker's knowledge only: what the service accepts, rows of its own, foreign rows. It never sees the victim's training
  set or parameters.
* Each family names its source. The families are written anew for measuring detectors. Where the original moves an input along the
  gradient of a neural network, this one uses the gradient of the thief's own small surrogate.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from detector.simulation.copies import Surrogate
from detector.simulation.domain import Domain, Predict, Rows

Theft = Generator[Rows, tuple[Rows, Rows], None]
SEEDS = 100
"""In-domain rows that perturbation attacks start from."""
BLOCK = 32


@dataclass(frozen=True, slots=True)
class AttackerKnowledge:
    """What a thief has: the accepted domain, its own in-domain rows (a, d), foreign rows (f, d)."""

    domain: Domain
    own: Rows
    foreign: Rows


@dataclass(frozen=True, slots=True)
class Attack:
    """start: (knowledge, rng) → a theft.

    visible is False where content can't tell the theft from honest use.
    """

    start: Callable[[AttackerKnowledge, np.random.Generator], Theft]
    visible: bool
    text: str


def steal(family: str, knowledge: AttackerKnowledge, predict: Predict, n: int, rng: np.random.Generator) -> Rows:
    """(n, d) rows in the order in which a thief of this family sends them to the victim `predict`.

    Raises KeyError for an unknown family.
    """
    theft = ATTACKS[family].start(knowledge, rng)
    sent: list[Rows] = []
    wished, count = next(theft), 0
    while True:
        rows = knowledge.domain.emit(wished)[: n - count]
        sent.append(rows)
        count += len(rows)
        if count >= n:
            return np.vstack(sent)
        wished = theft.send((rows, np.asarray(predict(rows), dtype=np.float64)))


class Stock:
    """Foreign rows: each once, in random order, then blends of two."""

    def __init__(self, knowledge: AttackerKnowledge, rng: np.random.Generator) -> None:
        self.rows, self.rng, self.next = knowledge.foreign[rng.permutation(len(knowledge.foreign))], rng, 0

    def take(self, n: int) -> Rows:
        fresh = self.rows[self.next : self.next + n]
        self.next += len(fresh)
        first, second = (self.rows[self.rng.integers(0, len(self.rows), size=n - len(fresh))] for _ in range(2))
        share = self.rng.uniform(0.3, 0.7, size=(n - len(fresh), 1))
        return np.vstack([fresh, share * first + (1 - share) * second])


def noise_uniform(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    while True:
        yield knowledge.domain.uniform(BLOCK, rng)


def noise_gauss(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    domain = knowledge.domain
    while True:
        yield domain.centre + rng.normal(size=(BLOCK, domain.width)) * domain.spread


def permuted(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    while True:
        yield knowledge.domain.marginal(BLOCK, rng)


def knockoff_random(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    stock = Stock(knowledge, rng)
    while True:
        yield stock.take(BLOCK)


def knockoff_adaptive(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    """Gradient bandit over groups of foreign rows; reward: certainty, rare labels, disagreement with the copy."""
    domain, pool = knowledge.domain, knowledge.foreign
    centres = pool[rng.choice(len(pool), size=min(12, len(pool)), replace=False)]
    group = np.square(domain.standardise(pool)[:, None] - domain.standardise(centres)[None]).sum(axis=2).argmin(axis=1)
    taste, average, copy = np.zeros(len(centres)), 0.0, Surrogate(domain, rng)
    rows, answers = yield pool[rng.integers(0, len(pool), size=BLOCK)]
    copy.fit(rows, answers)
    while True:
        if len(rows) % 64 < 8:
            copy.fit(rows[-1500:], answers[-1500:])
        odds = np.exp(taste - taste.max())
        arm = int(rng.choice(len(centres), p=odds / odds.sum()))
        members = np.flatnonzero(group == arm)
        first, second = (pool[rng.choice(members, size=8)] for _ in range(2))
        share = rng.uniform(0.0, 0.3, size=(8, 1))  # augmentation: an image is seldom asked twice alike
        sent, answer = yield (1 - share) * first + share * second
        seen = np.bincount(answers.argmax(axis=1), minlength=answers.shape[1]) / len(answers)
        reward = float(
            (
                answer.max(axis=1) + 1 - seen[answer.argmax(axis=1)] + np.abs(answer - copy.predict(sent)).sum(axis=1)
            ).mean()
        )
        chosen = np.arange(len(centres)) == arm
        taste += 0.5 * (reward - average) * (chosen - odds / odds.sum())
        average += 0.1 * (reward - average)
        rows, answers = np.vstack([rows, sent]), np.vstack([answers, answer])


def copycat(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    """Foreign rows with a few own ones; then also blends inside the rarer stolen labels, so that classes balance."""
    stock = Stock(knowledge, rng)
    rows, answers = np.empty((0, knowledge.domain.width)), np.empty((0, 0))
    while True:
        wish = stock.take(BLOCK)
        if len(rows) > 10 * BLOCK:
            stolen = answers.argmax(axis=1)
            count = np.bincount(stolen, minlength=answers.shape[1])
            odds = 1.0 / count[stolen]
            half = BLOCK // 2
            first = rng.choice(len(rows), size=half, p=odds / odds.sum())
            mates = np.array([rng.choice(np.flatnonzero(stolen == stolen[i])) for i in first])
            share = rng.uniform(0.2, 0.5, size=(half, 1))
            wish[:half] = (1 - share) * rows[first] + share * rows[mates]
        else:
            wish[:3] = knowledge.own[rng.integers(0, len(knowledge.own), size=3)]
        sent, answer = yield wish
        rows, answers = np.vstack([rows, sent]), np.vstack([answers, answer]) if len(answers) else answer


def _seeds(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Rows:
    return knowledge.own[rng.permutation(len(knowledge.own))[:SEEDS]]


def _perturb(
    knowledge: AttackerKnowledge, rng: np.random.Generator, step: float, targeted: bool, random_step: bool
) -> Theft:
    """Jacobian-based augmentation: each round trains a copy and moves rows one step along the sign of its gradient."""
    domain = knowledge.domain
    rows, answers = yield _seeds(knowledge, rng)
    parents, labels = rows, answers.argmax(axis=1)
    coded = domain.coded
    while True:
        copy = Surrogate(domain, rng).fit(rows[-2000:], answers[-2000:])
        towards = (
            rng.integers(0, answers.shape[1], size=len(parents)) if targeted else np.asarray(labels, dtype=np.int64)
        )
        sign = np.sign(copy.slope(parents, towards)) * (1.0 if targeted else -1.0)
        size = rng.uniform(0.3, 1.7, size=(len(parents), 1)) if random_step else 1.0
        move = np.maximum(step * domain.unit_step * size, domain.grain) * sign
        children = np.where(coded, parents, parents + move)
        if coded.all():  # nothing to step along: take another code
            children = np.where(rng.random(children.shape) < step, domain.marginal(len(parents), rng), parents)
        sent, answer = yield children
        rows, answers = np.vstack([rows, sent]), np.vstack([answers, answer])
        keep = rng.permutation(len(rows))[: 4 * SEEDS] if len(rows) > 4 * SEEDS else np.arange(len(rows))
        parents, labels = rows[keep], answers[keep].argmax(axis=1)


def jbda(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    return _perturb(knowledge, rng, 0.1 if knowledge.domain.homogeneous else 0.25, targeted=False, random_step=False)


def trnd(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    return _perturb(knowledge, rng, 0.1 if knowledge.domain.homogeneous else 0.25, targeted=True, random_step=True)


def line_search(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    """Bisects between two own rows of different labels, down to the grain, then hops along the boundary."""
    known, answers = yield _seeds(knowledge, rng)
    labels = answers.argmax(axis=1)
    while True:
        i = int(rng.integers(len(known)))
        others = np.flatnonzero(labels != labels[i])
        if not len(others):
            known, answers = yield np.vstack([known[-SEEDS // 2 :], knowledge.domain.uniform(8, rng)])
            labels = answers.argmax(axis=1)
            continue
        near, far = known[i], known[rng.choice(others)]
        for _ in range(12):
            sent, answer = yield ((near + far) / 2)[None]
            if np.array_equal(sent[0], near) or np.array_equal(sent[0], far):
                break
            if int(answer[0].argmax()) == labels[i]:
                near = sent[0]
            else:
                far = sent[0]


def equation_solving(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    """Finite differences: a base, then the base moved in one column at a time; the next base where answers are soft."""
    domain = knowledge.domain
    step = np.maximum(0.2 * domain.unit_step, domain.grain)
    base = domain.emit(domain.centre[None])
    while True:
        sweep = np.vstack([base, base + np.diag(np.where(base[0] + step > domain.high, -step, step))])
        for j, known_codes in enumerate(domain.codes):
            if known_codes is not None:
                sweep[j + 1, j] = rng.choice(known_codes)
        sent, answer = yield sweep
        soft = sent[int(np.sort(answer, axis=1)[:, -1].argmin())]
        base = domain.emit((soft + 0.5 * rng.normal(size=domain.width) * domain.spread)[None])


def tree_path(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    """Path finding: equal answers mean one leaf; bisects each column for the value where it ends, goes on there."""
    domain, seen = knowledge.domain, set[bytes]()
    todo = list(domain.emit(_seeds(knowledge, rng)[:20]))
    while True:
        row = todo.pop(int(rng.integers(len(todo)))) if todo else domain.emit(domain.marginal(1, rng))[0]
        _, answer = yield row[None]
        leaf = answer[0].round(6).tobytes()
        if leaf in seen and todo:
            continue
        seen.add(leaf)
        for j in rng.permutation(domain.width):
            known_codes = domain.codes[j]
            ends = known_codes if known_codes is not None else np.array([domain.low[j], domain.high[j]])
            probes = np.repeat(row[None], len(ends), axis=0)
            probes[:, j] = ends
            sent, answer = yield probes
            for k in range(len(sent)):
                if answer[k].round(6).tobytes() == leaf or len(todo) > 400:
                    continue
                todo.append(sent[k])
                near, far = row.copy(), sent[k].copy()
                for _ in range(0 if known_codes is not None else 14):
                    middle = near.copy()
                    middle[j] = (near[j] + far[j]) / 2
                    if abs(far[j] - near[j]) <= 1.01 * domain.grain[j]:
                        break
                    got, reply = yield middle[None]
                    near, far = (got[0], far) if reply[0].round(6).tobytes() == leaf else (near, got[0])


def _candidates(knowledge: AttackerKnowledge, rng: np.random.Generator, n: int) -> Rows:
    """A pool to choose from: foreign rows, their blends, and column-shuffled rows."""
    first, second = (knowledge.foreign[rng.integers(0, len(knowledge.foreign), size=n)] for _ in range(2))
    share = rng.uniform(0, 0.5, size=(n, 1)) * (rng.random((n, 1)) < 0.5)
    rows = (1 - share) * first + share * second
    shuffled = rng.random(n) < 0.25
    rows[shuffled] = knowledge.domain.marginal(int(shuffled.sum()), rng)
    return knowledge.domain.emit(rows)


def active_uncertainty(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    rows, answers = yield _candidates(knowledge, rng, SEEDS)
    while True:
        copy = Surrogate(knowledge.domain, rng).fit(rows[-2000:], answers[-2000:])
        pool = _candidates(knowledge, rng, 600)
        sent, answer = yield pool[np.argsort(copy.margin(pool))[:BLOCK]]
        rows, answers = np.vstack([rows, sent]), np.vstack([answers, answer])


def active_kcenter(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    """Farthest first: the candidate whose surrogate scores are farthest from all that was asked."""
    rows, answers = yield _candidates(knowledge, rng, SEEDS)
    while True:
        copy = Surrogate(knowledge.domain, rng).fit(rows[-2000:], answers[-2000:])
        pool = _candidates(knowledge, rng, 400)
        spots, asked = copy.scores(pool), copy.scores(rows[-1000:])
        gap = np.square(spots[:, None] - asked[None]).sum(axis=2).min(axis=1)
        chosen = []
        for _ in range(BLOCK):
            chosen.append(int(gap.argmax()))
            gap = np.minimum(gap, np.square(spots - spots[chosen[-1]]).sum(axis=1))
        sent, answer = yield pool[chosen]
        rows, answers = np.vstack([rows, sent]), np.vstack([answers, answer])


def mixup(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    seeds, _ = yield _seeds(knowledge, rng)
    while True:
        first, second = (seeds[rng.integers(0, len(seeds), size=BLOCK)] for _ in range(2))
        share = rng.uniform(0.2, 0.8, size=(BLOCK, 1))
        yield np.where(
            knowledge.domain.coded,
            np.where(rng.random(first.shape) < share, first, second),
            share * first + (1 - share) * second,
        )


def data_free(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    """A generator of smooth rows, moved to where copy and victim disagree; forward differences cost a second query."""
    domain = knowledge.domain
    weights, bias = rng.normal(size=(8, domain.width)), rng.normal(size=domain.width) * 0.3
    rows, answers = np.empty((0, domain.width)), np.empty((0, 0))
    while True:
        latent = rng.normal(size=(BLOCK // 2, 8))
        made = domain.low + (domain.high - domain.low) / (1 + np.exp(-(latent @ weights + bias)))
        probe = rng.normal(size=domain.width)
        near = made + np.maximum(0.02 * domain.unit_step, domain.grain) * np.sign(probe)
        sent, answer = yield np.stack([made, near], axis=1).reshape(-1, domain.width)
        rows, answers = np.vstack([rows, sent]), np.vstack([answers, answer]) if len(answers) else answer
        copy = Surrogate(domain, rng).fit(rows[-2000:], answers[-2000:])
        apart = np.abs(answer - copy.predict(sent)).sum(axis=1).reshape(-1, 2)
        bias = bias + 0.3 * np.sign(probe) * np.sign(float((apart[:, 1] - apart[:, 0]).mean()))
        weights = weights + 0.15 * rng.normal(size=weights.shape)


def mimic(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    """Knows the detector: own rows with one column in six taken from a near own row: every query looks usual."""
    own = knowledge.domain.standardise(knowledge.own)
    while True:
        picks = rng.integers(0, len(own), size=BLOCK)
        near = np.square(own[picks][:, None] - own[None]).sum(axis=2).argsort(axis=1)[:, 1:6]
        mates = near[np.arange(BLOCK), rng.integers(0, near.shape[1], size=BLOCK)] if near.shape[1] else picks
        yield np.where(rng.random((BLOCK, own.shape[1])) < 1 / 6, knowledge.own[mates], knowledge.own[picks])


def in_domain(knowledge: AttackerKnowledge, rng: np.random.Generator) -> Theft:
    while True:
        order = rng.permutation(len(knowledge.own))
        for i in range(0, len(order), BLOCK):
            yield knowledge.own[order[i : i + BLOCK]]


ATTACKS: dict[str, Attack] = {
    "noise_uniform": Attack(noise_uniform, True, "uniform noise over the accepted range (Tramèr et al., USENIX 2016)"),
    "noise_gauss": Attack(noise_gauss, True, "Gaussian noise with the columns' means and deviations"),
    "permuted": Attack(permuted, True, "columns drawn independently of each other (Knockoff on tables)"),
    "knockoff_random": Attack(knockoff_random, True, "foreign rows in random order (Orekondy et al., CVPR 2019)"),
    "knockoff_adaptive": Attack(knockoff_adaptive, True, "foreign rows, by a bandit (Orekondy et al., CVPR 2019)"),
    "copycat": Attack(copycat, True, "foreign rows, stolen labels balanced (Correia-Silva et al., IJCNN 2018)"),
    "jbda": Attack(jbda, True, "fixed steps along a copy's gradient signs (Papernot et al., AsiaCCS 2017)"),
    "trnd": Attack(trnd, True, "random steps to random classes (Juuti et al., EuroS&P 2019)"),
    "line_search": Attack(line_search, True, "bisection between rows of two labels (Lowd and Meek, KDD 2005)"),
    "equation_solving": Attack(equation_solving, True, "finite differences by column (Tramèr et al., USENIX 2016)"),
    "tree_path": Attack(tree_path, True, "decision-tree path finding (Tramèr et al., USENIX 2016)"),
    "active_uncertainty": Attack(active_uncertainty, True, "least margin in foreign rows (Pal et al., AAAI 2020)"),
    "active_kcenter": Attack(active_kcenter, True, "farthest first in foreign rows (Pal et al., AAAI 2020)"),
    "mixup": Attack(mixup, True, "convex combinations of a few in-domain seeds"),
    "data_free": Attack(data_free, True, "a generator driven by disagreement (Truong et al., CVPR 2021)"),
    "mimic": Attack(mimic, False, "own rows with a few columns of near ones: built against such detectors"),
    "in_domain": Attack(in_domain, False, "the thief's own rows, nothing else"),
}  # fmt: skip
