"""A second generator of honest clients, so that figures need not rest on one person's idea of honest use.

It shares nothing with `detector.simulation.honest` but the pools of items and what the service accepts. Its mechanics are others:

* a client owns a *catalogue* of items, and asks for them by popularity, in passes, or as they come; it never asks for blends of items;
* some clients look at answers: a labelling loop asks for what its own learner is unsure of, and people look for a better answer;
* some mirror other clients, and some send what a broken pipeline makes of good items;
* volumes and lifetimes have heavy tails, and there are days, nights and weekends.

Rules of the file:

* A kind is a function (scene, n, rng) → (n, d) rows in sending order, listed in `KINDS`. It draws on the scene's pool only.
* Nothing was tuned so that a detector likes it. Kinds were written before the first run and not changed after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.simulation.domain import HonestPools, Predict, Rows
from detector.simulation.population import DAY_S, HORIZON_S, Stream, account_name, population

Picks = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a client has: its pool, the model that it asks, and what other clients sent (for those that mirror traffic)."""

    pools: HonestPools
    predict: Predict
    others: Sequence[Rows] = ()

    @property
    def movable(self) -> Picks:
        """Columns of numbers; all where there are categories only."""
        numbers = np.flatnonzero(~self.pools.domain.coded)
        return numbers if len(numbers) else np.arange(self.pools.domain.width)

    def rows(self, items: Picks) -> Rows:
        """These items of the pool, to be changed at will."""
        found: Rows = self.pools.pool[items]
        return found

    def catalogue(self, rng: np.random.Generator, least: int = 8, tail: float = 0.9) -> Picks:
        """Some items of the pool, often few, sometimes all: those near an item that the client's business is about."""
        size = int(np.clip(least + rng.pareto(tail) * 30, least, len(self.pools.pool)))
        rows = self.pools.domain.standardise(self.pools.pool)
        apart = np.square(rows - rows[rng.integers(len(rows))]).sum(axis=1)
        odds = -apart / max(float(np.median(apart)), 1e-9) * rng.uniform(0.0, 3.0) + rng.gumbel(size=len(rows))
        return np.argsort(-odds)[:size]

    def others_in(self, columns: Picks, rows: Rows, rng: np.random.Generator) -> Rows:
        """The rows with these columns from other items of the pool, each from its own."""
        out = rows.copy()
        for j in columns:
            out[:, j] = self.pools.pool[rng.integers(0, len(self.pools.pool), size=len(rows)), j]
        return out


Play = Callable[[Scene, int, np.random.Generator], Rows]


def application(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """Requests by popularity: the k-th item of the catalogue is asked for in proportion to 1 / k^s."""
    own = scene.catalogue(rng, 20)
    odds = np.arange(1, len(own) + 1) ** -rng.uniform(0.2, 1.3)
    return scene.rows(rng.choice(own, size=n, p=odds / odds.sum()))


def mobile(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """An app: few items, sensors with fewer digits in half of the telephones, sent again where the network was gone."""
    rows = scene.rows(scene.catalogue(rng, 15, 1.3))
    if rng.random() < 0.5:
        grain = 10.0 * scene.pools.domain.grain
        rows = np.where(scene.pools.domain.coded, rows, np.round(rows / grain) * grain)
    each = 1 + rng.geometric(0.6, size=n) * (rng.random(n) < 0.3)
    sent: Rows = rows[np.repeat(rng.integers(0, len(rows), size=n), each)[:n]]
    return sent


def form(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """A form: some fields are optional and keep their default; now and then a field or two is corrected and sent again."""
    domain = scene.pools.domain
    optional = np.flatnonzero(rng.random(domain.width) < rng.uniform(0.0, 0.25))
    rows = scene.rows(rng.choice(scene.catalogue(rng, 20), size=n))
    blank = rng.random((n, len(optional))) < 0.5
    rows[:, optional] = np.where(blank, domain.mode[optional], rows[:, optional])
    for i in np.flatnonzero(rng.random(n) < 0.25):
        if i:
            rows[i] = scene.others_in(rng.choice(domain.width, size=int(rng.integers(1, 3))), rows[i - 1][None], rng)[0]
    return rows


def retrying(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """At-least-once delivery: each item goes out until it is acknowledged, a few of them hundreds of times."""
    own = scene.catalogue(rng, 30)
    each = np.minimum(rng.zipf(1.8, size=n), 500)
    return scene.rows(np.repeat(rng.choice(own, size=n), each)[:n])


def nightly(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """A table scored every night: some rows are updated by a little, all drift slowly with the season."""
    domain = scene.pools.domain
    table = scene.rows(scene.catalogue(rng, 100, 0.6))
    columns = rng.choice(scene.movable, size=min(2, len(scene.movable)), replace=False)
    drift = rng.normal(size=len(columns)) * 0.02
    nights: list[Rows] = []
    while sum(map(len, nights)) < n:
        nights.append(domain.emit(table))
        changed = np.flatnonzero(rng.random(len(table)) < rng.uniform(0.02, 0.1))
        step = np.zeros_like(table)
        step[:, columns] = drift * domain.spread[columns]
        step[changed] += rng.normal(size=(len(changed), domain.width)) * 0.05 * domain.spread
        table = np.where(domain.coded | (table == domain.mode), table, table + step)
    return np.vstack(nights)[:n]


def benchmark(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """A public test set, in its order, once for every release that is tried."""
    tests = scene.catalogue(rng, 50, 0.8)
    return scene.rows(np.resize(tests, n))


def ab_replay(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """A log replayed for two variants of an application: B sets one column to one value."""
    domain = scene.pools.domain
    log = scene.rows(rng.choice(scene.catalogue(rng, 30), size=-(-n // 2)))
    variant, column = log.copy(), int(rng.integers(domain.width))
    variant[:, column] = rng.choice(domain.quantiles[10:91, column])
    both = np.vstack([log, variant])
    return both[:n] if rng.random() < 0.5 else np.stack([log, variant], axis=1).reshape(-1, domain.width)[:n]


def shadow(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """A proxy mirrors a share of what some other clients send."""
    if not scene.others:
        return application(scene, n, rng)
    chosen = rng.choice(len(scene.others), size=min(len(scene.others), int(rng.integers(3, 16))), replace=False)
    share = 10.0 ** rng.uniform(-1.5, -0.3)
    parts = [scene.others[k][rng.random(len(scene.others[k])) < share] for k in chosen]
    at = np.concatenate([np.sort(rng.random(len(p))) for p in parts])
    mirrored = np.vstack(parts)[np.argsort(at, kind="stable")]
    return mirrored[:n] if len(mirrored) else application(scene, n, rng)


def crawler(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """Comes by again and again: the same items, and one column (an id, a page, a clock) is another in every request."""
    domain = scene.pools.domain
    rows = scene.rows(np.resize(scene.catalogue(rng, 20), n))
    column = int(rng.choice(scene.movable))
    codes = domain.codes[column]
    if codes is not None:
        rows[:, column] = codes[np.arange(n) % len(codes)]
    else:
        span = domain.high[column] - domain.low[column]
        rows[:, column] = (
            domain.low[column] + (rng.random() * span + np.arange(n) * span / rng.uniform(200, 4000)) % span
        )
    return rows


def labelling(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """Rounds of active learning over an own pool: ask for what the own nearest-mean learner is unsure of, and check some old ones."""
    own = scene.rows(scene.catalogue(rng, 100, 0.6))
    flat = scene.pools.domain.standardise(own)
    asked = list(rng.choice(len(own), size=min(20, len(own)), replace=False))
    labels = dict(zip(asked, scene.predict(own[asked]).argmax(axis=1).tolist(), strict=True))
    batch = int(rng.integers(5, 40))
    while len(asked) < n:
        known, said = np.array(list(labels)), np.array(list(labels.values()))
        means = np.stack([flat[known[said == c]].mean(axis=0) for c in np.unique(said)])
        apart = np.sort(np.square(flat[:, None] - means[None]).sum(axis=2), axis=1)
        unsure = apart[:, 1] - apart[:, 0] if len(means) > 1 else rng.random(len(own))
        unsure[known] = np.inf
        picks = np.argsort(unsure)[: min(batch, len(own) - len(known))]
        if not len(picks):  # all are labelled: a new campaign begins
            labels = dict(list(labels.items())[:20])
            continue
        labels |= zip(picks.tolist(), scene.predict(own[picks]).argmax(axis=1).tolist(), strict=True)
        asked += [*picks.tolist(), *rng.choice(known, size=len(picks) // 5).tolist()]
    sent: Rows = own[np.array(asked[:n])]
    return sent


def imputing(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """A pipeline that lost up to a tenth of the columns and fills in the mean, in every request."""
    domain = scene.pools.domain
    rows = scene.rows(rng.choice(scene.catalogue(rng, 20), size=n))
    lost = rng.choice(domain.width, size=int(rng.integers(1, max(2, domain.width // 10 + 1))), replace=False)
    rows[:, lost] = np.where(domain.coded, domain.mode, domain.centre)[lost]
    return rows


def augmenting(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """Test-time augmentation: each item some times in small variants, images moved by a pixel or mirrored, for a mean of the answers."""
    domain, each = scene.pools.domain, int(rng.integers(3, 9))
    rows = np.repeat(scene.rows(rng.choice(scene.catalogue(rng, 15), size=-(-n // each))), each, axis=0)[:n]
    side = round(domain.width**0.5)
    if domain.homogeneous and not domain.coded.any() and side * side == domain.width:
        images = rows.reshape(-1, side, side)
        for i in np.flatnonzero(np.arange(n) % each):
            by = rng.integers(-1, 2, size=2)
            images[i] = np.roll(images[i], by, axis=(0, 1)) if rng.random() < 0.8 else images[i][:, ::-1]
        return images.reshape(n, -1)
    size = rng.uniform(0.01, 0.1)
    noise = rng.normal(size=rows.shape) * size * domain.spread * (np.arange(n) % each > 0)[:, None]
    return np.where(domain.coded, rows, rows + noise)


def contract(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """Tests of the interface in every build: pairs of columns at their least, usual and greatest value, around a few good items."""
    domain, tests = scene.pools.domain, []
    extremes = np.stack([domain.low, np.median(scene.pools.pool, axis=0), domain.high])
    for base in scene.rows(rng.choice(scene.catalogue(rng), size=int(rng.integers(1, 4)))):
        for _ in range(int(rng.integers(5, 40))):
            row, pair = base.copy(), rng.choice(domain.width, size=min(2, domain.width), replace=False)
            row[pair] = extremes[rng.integers(0, 3, size=len(pair)), pair]
            tests.append(row)
    return np.resize(np.array(tests), (n, domain.width))


def recourse(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """People who look for a better answer: a field or two is changed at a time, until the label is another or they give up."""
    out: list[Rows] = []
    own = scene.catalogue(rng)
    while sum(map(len, out)) < n:
        item = scene.rows(rng.choice(own, size=1))
        tries = np.repeat(item, int(rng.integers(4, 40)), axis=0)
        for k in range(1, len(tries)):
            columns = rng.choice(scene.pools.domain.width, size=int(rng.integers(1, 3)))
            tries[k] = scene.others_in(columns, tries[k - 1][None] if rng.random() < 0.5 else item, rng)[0]
        tries = scene.pools.domain.emit(tries)
        labels = scene.predict(tries).argmax(axis=1)
        better = np.flatnonzero(labels != labels[0])
        out.append(tries[: int(better[0]) + 1] if len(better) else tries)
    return np.vstack(out)[:n]


def units(scene: Scene, n: int, rng: np.random.Generator) -> Rows:
    """A wrong unit in one or two columns, until somebody notices."""
    domain = scene.pools.domain
    rows = scene.rows(rng.choice(scene.catalogue(rng, 20), size=n))
    wrong = slice(0, int(n * rng.uniform(0.1, 0.6)))
    for column in rng.choice(scene.movable, size=min(len(scene.movable), int(rng.integers(1, 3))), replace=False):
        rows[wrong, column] = rows[wrong, column] * rng.choice([0.1, 0.4536, 2.54, 10.0])
    return domain.emit(rows)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of honest client: its share, its queries (least + typical × Lomax of shape `tail`, at most `most`), what it does."""

    share: float
    least: int
    typical: float
    tail: float
    most: int
    play: Play
    text: str

    def queries(self, rng: np.random.Generator) -> int:
        return int(min(self.most, self.least + self.typical * rng.pareto(self.tail)))


KINDS: dict[str, Kind] = {
    "application": Kind(0.16, 20, 60, 1.1, 6000, application, "requests by popularity, from a catalogue of its own"),
    "mobile": Kind(0.11, 15, 25, 1.4, 1500, mobile, "an app: few items, coarse sensors, sent again"),
    "form": Kind(0.11, 15, 40, 1.3, 2000, form, "a form with defaults and corrections"),
    "retrying": Kind(0.07, 30, 150, 1.2, 5000, retrying, "at-least-once delivery"),
    "nightly": Kind(0.08, 200, 600, 1.1, 8000, nightly, "a table scored every night, drifting"),
    "benchmark": Kind(0.06, 100, 250, 1.3, 4000, benchmark, "a public test set, again for every release"),
    "ab_replay": Kind(0.06, 60, 150, 1.3, 3000, ab_replay, "a log replayed for two variants"),
    "shadow": Kind(0.06, 50, 200, 1.2, 3000, shadow, "mirrors other clients' traffic"),
    "crawler": Kind(0.06, 60, 150, 1.2, 4000, crawler, "the same items under changing ids"),
    "labelling": Kind(0.06, 60, 120, 1.3, 1500, labelling, "labels its own pool, the unsure ones first"),
    "imputing": Kind(0.05, 30, 80, 1.2, 3000, imputing, "lost columns, filled in"),
    "augmenting": Kind(0.04, 30, 120, 1.4, 1500, augmenting, "small variants of each item, for a mean"),
    "contract": Kind(0.03, 30, 80, 1.5, 1000, contract, "tests of the interface in every build"),
    "recourse": Kind(0.03, 20, 60, 1.4, 800, recourse, "looks for a better answer"),
    "units": Kind(0.02, 30, 80, 1.3, 1500, units, "a wrong unit, until somebody notices"),
}  # fmt: skip
"""None of them copies a model; several are odd in a great part of their queries."""


def day_and_night(n: int, rng: np.random.Generator, start_s: float = 0.0, horizon_s: float = HORIZON_S) -> Rows:
    """(n,) ascending times: a life of heavy-tailed length, more by day than by night and on weekends, in bursts."""
    life = min(horizon_s, (0.05 + rng.pareto(0.7) * 0.5) * DAY_S)
    begin = rng.uniform(0.0, max(horizon_s - life, 1.0))
    bins = max(1, int(life // 900))
    at = begin + np.arange(bins) * life / bins
    phase = rng.uniform(0.0, 1.0)
    awake = 1.05 + np.sin(2 * np.pi * (at / DAY_S + phase))
    weights = awake * np.where(at // DAY_S % 7 < 5, 1.0, 0.3) * np.exp(rng.normal(size=bins))
    which = rng.choice(bins, size=n, p=weights / weights.sum())
    out: Rows = np.sort(np.round(start_s + at[which] + rng.random(n) * life / bins, 3))
    return out


def second_stream(kind: str, scene: Scene, rng: np.random.Generator) -> Stream:
    """One honest client. Raises KeyError for an unknown kind."""
    n = KINDS[kind].queries(rng)
    made = (
        scene.pools.played[kind](scene.pools, n, rng) if kind in scene.pools.played else KINDS[kind].play(scene, n, rng)
    )
    rows = scene.pools.domain.emit(made)
    return Stream(
        account_name(rng), "benign", kind, "", "", rows, np.zeros(len(rows), dtype=bool), day_and_night(len(rows), rng)
    )


def second_population(
    pools: HonestPools, predict: Predict, rng: np.random.Generator, clients: int, kinds: Sequence[str] | None = None
) -> list[Stream]:
    """Honest clients in the shares of `KINDS`, or the same number of each of `kinds`; those that mirror others come last."""
    if kinds is None:
        chosen = population(clients, rng, None, {name: kind.share for name, kind in KINDS.items()})
    else:
        chosen = [kind for kind in kinds for _ in range(clients)]
    streams: list[Stream] = []
    for kind, child in sorted(zip(chosen, rng.spawn(len(chosen)), strict=True), key=lambda one: one[0] == "shadow"):
        streams.append(second_stream(kind, Scene(pools, predict, [s.inputs for s in streams]), child))
    return streams
