"""Simulated honest clients: one function for each kind, listed in `BENIGN`.

Honest traffic is what makes detection hard, so the kinds are the awkward ones: narrow class mixes, repeats, entity streams, what-if
sweeps, explainers, testers, edge cases, rows of other people. None of them copies a model. Several are odd in every single query, but not
for long.

Rules: a kind draws everything from the honest pool of its `HonestPools` (and `misrouted` a few foreign rows), and never looks at answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.simulation.domain import Generate, HonestPools, Rows, first_of_each

ALIKE = 0.05
"""Share of a table's rows that may be alike."""


@dataclass(frozen=True, slots=True)
class BenignKind:
    """A kind of honest client.

    share     expected part of the population (the table's shares add up to 1)
    median    queries a client over its life; log-normal with `sigma`, cut to [least, most]
    generate  (pools, n, rng) → (n, d) accepted rows
    text      what such a client does, for people
    """

    share: float
    median: float
    sigma: float
    least: int
    most: int
    generate: Generate
    text: str

    def queries(self, rng: np.random.Generator) -> int:
        """How many queries one such client sends."""
        return int(np.clip(round(self.median * np.exp(self.sigma * rng.normal())), self.least, self.most))


def class_mix(pools: HonestPools, rng: np.random.Generator, narrow: float = 0.5) -> Rows:
    """(c,) class mix of one client: Dirichlet, most weight on few classes when `narrow` is small."""
    return rng.dirichlet(np.full(int(pools.labels.max()) + 1, narrow))


def regular(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
    """An application: its own class mix, some items asked again."""
    return pools.items(n, rng, class_mix(pools, rng), repeats=rng.uniform(0.2, 0.9))


def batch_scorer(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
    """Scores whole tables: the full class mix, hardly a repeat, also where few columns of codes make rows alike."""
    rows = pools.items(n, rng, repeats=0.02)
    if len(first_of_each(rows)) < (1 - ALIKE) * n:
        more = np.vstack([rows, pools.items(3 * n, rng)])
        rows = np.vstack([more[first_of_each(more)], rows])[:n]
    return rows


def entity_stream(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
    """A few entities (customers, machines), scored again and again while their numbers drift."""
    entities = pools.items(int(rng.integers(2, 9)), rng, class_mix(pools, rng))
    home, out = entities.copy(), np.empty((n, pools.domain.width))
    for i in range(n):
        k = int(rng.integers(len(entities)))
        entities[k] = pools.domain.wobble(entities[k][None] * 0.95 + home[k] * 0.05, 0.03, rng)[0]
        out[i] = entities[k]
    return _codes_of(pools, pools.domain.emit(out), home)


def what_if(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
    """A what-if tool: one item, one feature swept over a grid, then the next feature or the next item."""
    blocks: list[Rows] = []
    count = 0
    while count < n:
        item = pools.items(1, rng)
        for column in rng.permutation(pools.domain.width)[: int(rng.integers(1, 5))]:
            grid = np.unique(pools.domain.quantiles[:, column])
            grid = grid[np.unique(np.linspace(0, len(grid) - 1, int(rng.integers(5, 21))).astype(int))]
            sweep = np.repeat(item, len(grid), axis=0)
            sweep[:, column] = grid
            blocks.append(sweep)
            count += len(sweep)
    return pools.domain.emit(np.vstack(blocks)[:n])


def load_tester(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
    """A load test: a handful of rows replayed."""
    rows = pools.items(int(rng.integers(3, 40)), rng)
    return rows[rng.integers(0, len(rows), size=n)]


def monitor(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
    """Canaries in fixed order, with a few live items between them."""
    canaries = pools.items(int(rng.integers(1, 8)), rng)
    rows = canaries[np.arange(n) % len(canaries)]
    live = np.flatnonzero(rng.random(n) < rng.uniform(0, 0.06))
    rows[live] = pools.items(len(live), rng) if len(live) else rows[live]
    return rows


def shifted(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
    """Another population (a new region, a dimmer camera): one end of a random direction, some columns shifted."""
    domain = pools.domain
    rows = pools.items(2 * n, rng, class_mix(pools, rng, 1.0), repeats=0.3)
    direction = rng.normal(size=domain.width)
    keep = np.sort(np.argsort(domain.standardise(rows) @ direction)[:n])
    rows = rows[keep[rng.permutation(n)]]
    if domain.homogeneous and not domain.unit:  # light and contrast
        return domain.emit(domain.low + (rows - domain.low) * rng.uniform(0.65, 1.2))
    columns = (rng.random(domain.width) < 0.3) & ~domain.coded
    shift = np.where(columns, rng.normal(size=domain.width) * 0.4 * domain.spread, 0.0)
    return domain.emit(np.where(rows == domain.mode, rows, rows + shift))


def qa_edge(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
    """Quality assurance: bounds, zeros, defaults and their combinations around good items, some of them twice."""
    domain = pools.domain
    rows = pools.items(n, rng)
    edges = np.stack([domain.low, domain.high, domain.mode, np.clip(np.zeros(domain.width), domain.low, domain.high)])
    for i in range(n):
        many = rng.random() < 0.15
        share = 0.08 + 1.5 / domain.width if not many else 0.5 if rng.random() < 0.7 else 1.0
        columns = rng.random(domain.width) < share
        rows[i, columns] = edges[rng.integers(0, len(edges), size=int(columns.sum())), np.flatnonzero(columns)]
    again = np.flatnonzero(rng.random(n) < 0.15)
    rows[again] = rows[rng.integers(0, n, size=len(again))]
    return domain.emit(rows)


def explainer(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
    """LIME or SHAP around a few items: random features masked by a background, or redrawn near the item."""
    domain, blocks, count = pools.domain, [], 0
    block = max(60, n // int(rng.integers(1, 9)))
    usual = domain.mode if domain.homogeneous else np.median(pools.pool, axis=0)
    background = pools.items(1, rng)[0] if rng.random() < 0.5 else usual
    shap = rng.random() < 0.5
    while count < n:
        item = pools.items(1, rng)
        rows = np.repeat(item, block, axis=0)
        if shap or domain.homogeneous:
            width = 1 if not domain.homogeneous else max(1, domain.width // 16)  # super-pixels
            groups = np.arange(domain.width) // width
            hidden = rng.random((block, int(groups.max()) + 1)) < rng.uniform(0.05, 0.95, size=(block, 1))
            rows = np.where(hidden[:, groups], background, rows)
        else:
            near = rows + rng.normal(size=rows.shape) * domain.spread
            rows = np.where(
                domain.coded, np.where(rng.random(rows.shape) < 0.5, rows, domain.marginal(block, rng)), near
            )
        rows[0] = item
        blocks.append(rows)
        count += block
    return domain.emit(np.vstack(blocks)[:n])


def robustness(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
    """A robustness test: Gaussian, uniform or salt-and-pepper noise, mostly on a whole test set at one strength after the other
    (Hendrycks and Dietterich, ICLR 2019), else item by item. Half of the testers don't know which whole numbers are codes."""
    domain = pools.domain
    if rng.random() < 0.25:
        copies = int(rng.integers(4, 21))
        rows = np.repeat(pools.items(-(-n // copies), rng), copies, axis=0)[:n]
        strength = rng.choice([0.02, 0.05, 0.1, 0.2], size=(n, 1))
    else:
        steps = int(rng.integers(3, 15))
        items = pools.items(-(-n // steps), rng)
        rows = np.tile(items, (steps, 1))[:n]
        most = rng.choice([0.1, 0.2] if domain.homogeneous else [0.2, 0.5])  # of the range, or of a standard deviation
        strength = (np.arange(n) // len(items) / (steps - 1) * most)[:, None]
    style = int(rng.integers(3))
    if style == 2:
        hit = rng.random(rows.shape) < strength
        return domain.emit(np.where(hit, np.where(rng.random(rows.shape) < 0.5, domain.low, domain.high), rows))
    noise = rng.normal(size=rows.shape) if style == 0 else rng.uniform(-1.7, 1.7, size=rows.shape)
    spared = domain.coded & (rng.random() < 0.5)
    return domain.emit(np.where(spared, rows, rows + noise * strength * domain.unit_step))


def misrouted(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
    """A wrong end point: rows meant for another model, few, until somebody notices; right ones among them."""
    rows = pools.items(n, rng)
    wrong = rng.random(n) < rng.uniform(0.4, 1.0)
    rows[wrong] = pools.foreign[rng.integers(0, len(pools.foreign), size=int(wrong.sum()))]
    return pools.domain.emit(rows)


def _codes_of(pools: HonestPools, rows: Rows, homes: Rows) -> Rows:
    """Rows whose codes are those of the nearest home: drift moves numbers, never categories."""
    coded = pools.domain.coded
    if coded.any():
        numbers = pools.domain.standardise(rows)[:, ~coded]
        apart = numbers[:, None] - pools.domain.standardise(homes)[None, :, ~coded]
        nearest = np.square(apart).sum(axis=2).argmin(axis=1)
        rows[:, coded] = homes[nearest][:, coded]
    return rows


#                           share median sigma least most
BENIGN: dict[str, BenignKind] = {
    "regular": BenignKind(0.30, 130, 1.0, 20, 6000, regular, "an application with its own class mix"),
    "light": BenignKind(0.12, 35, 0.4, 20, 60, regular, "a small application: a few dozen queries"),
    "batch_scorer": BenignKind(0.08, 2800, 0.35, 2150, 20000, batch_scorer, "scores whole tables: thousands of items"),
    "entity_stream": BenignKind(0.08, 300, 0.8, 40, 3000, entity_stream, "a few entities, scored while they drift"),
    "what_if": BenignKind(0.07, 130, 0.7, 20, 600, what_if, "sweeps one feature of one item at a time"),
    "load_tester": BenignKind(0.05, 1500, 0.7, 400, 6000, load_tester, "replays a handful of rows"),
    "monitor": BenignKind(0.05, 1000, 0.6, 300, 4000, monitor, "fixed canaries with a few live items"),
    "shifted": BenignKind(0.07, 250, 1.0, 30, 4000, shifted, "another population than the reference"),
    "qa_edge": BenignKind(0.06, 270, 0.5, 60, 600, qa_edge, "bounds, zeros and defaults: quality assurance"),
    "explainer": BenignKind(0.05, 480, 0.6, 100, 1500, explainer, "LIME or SHAP around a few items"),
    "robustness": BenignKind(0.04, 420, 0.6, 100, 1200, robustness, "items under noise of several strengths"),
    "misrouted": BenignKind(0.03, 55, 0.4, 20, 120, misrouted, "rows meant for another model, few"),
}  # fmt: skip
