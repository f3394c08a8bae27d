"""Other people's victims and the second generator, tiny; and that the committed figures are a full run whose controls hold.

The packages with the data are not needed: networks and tables are made here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from benchmarks import carry_tables, other_victims, second_generator
from benchmarks.carry_over import Plan, described
from benchmarks.carry_tables import GENERATORS, Results
from benchmarks.evaluation import clopper_pearson
from benchmarks.other_victims import Network, Regression, Regressor
from benchmarks.second_generator import KINDS, Scene, day_and_night, second_population
from benchmarks.second_texts import EditingClients
from benchmarks.texts import Corpus
from benchmarks.victims import Recipe, Victim, dealt
from consumers.log import Records
from consumers.log.formats import InputReader, NativeFormat
from detector.simulation.domain import Domain, HonestPools, Rows

BIF = """network unknown {
}
variable RAIN {
  type discrete [ 2 ] { YES, NO };
}
variable SPRINKLER {
  type discrete [ 3 ] { OFF, LOW, HIGH };
}
variable GRASS {
  type discrete [ 2 ] { WET, DRY };
}
probability ( GRASS | RAIN, SPRINKLER ) {
  (YES, OFF) 0.8, 0.2;
  (NO, OFF) 0.1, 0.9;
  (YES, LOW) 0.9, 0.1;
  (NO, LOW) 0.6, 0.4;
  (YES, HIGH) 0.99, 0.01;
  (NO, HIGH) 0.7, 0.3;
}
probability ( RAIN ) {
  table 0.2, 0.8;
}
probability ( SPRINKLER | RAIN ) {
  (YES) 0.9, 0.06, 0.04;
  (NO) 0.3, 0.3, 0.4;
}
"""


def numbers(n: int = 600) -> tuple[Rows, Any, Any]:
    """Three numbers and two codes; the label is which half."""
    rng = np.random.default_rng(3)
    rows = np.column_stack([rng.normal(size=(n, 3)).round(2), rng.integers(0, 4, size=(n, 2))])
    return rows, (rows[:, 0] + rows[:, 3] > 1).astype(np.int64), np.array([0, 0, 0, 1, 1], bool)


def prices() -> tuple[Rows, Any, Any]:
    rows, _, codes = numbers()
    return rows, 100 * rows[:, 0] + 10 * rows[:, 3], codes


def foreign() -> Rows:
    found: Rows = np.random.default_rng(4).normal(size=(300, 7)).round(3)
    return found


@pytest.fixture(scope="module")
def regression() -> Victim:
    return dealt("prices", Recipe("a regression", prices, Regressor, foreign, victim=Regression))


def joint(network: Network) -> dict[tuple[int, ...], float]:
    """P of every joint state, multiplied out."""
    names = list(network.nodes)
    found = {}
    for state in itertools.product(*(range(len(network.nodes[v].values)) for v in names)):
        at = dict(zip(names, state, strict=True))
        found[state] = float(
            np.prod([node.table[tuple(at[v] for v in (*node.parents, name))] for name, node in network.nodes.items()])
        )
    return found


@pytest.mark.parametrize("target", ["RAIN", "SPRINKLER", "GRASS"])
def test_a_network_answers_as_its_joint_distribution_says(target: str) -> None:
    network = Network(BIF)
    names, known = list(network.nodes), joint(network)
    assert sum(known.values()) == pytest.approx(1.0)
    place = names.index(target)
    for state in known:
        own = [known[(*state[:place], c, *state[place + 1 :])] for c in range(len(network.nodes[target].values))]
        seen = {v: np.array([state[i]]) for i, v in enumerate(names) if v != target}
        np.testing.assert_allclose(network.posterior(target, seen)[0], np.array(own) / sum(own), atol=1e-9)


def test_what_a_network_generates_has_its_joint_distribution() -> None:
    network, n = Network(BIF), 40_000
    drawn = network.sample(n, np.random.default_rng(0))
    rows, counts = np.unique(np.column_stack([drawn[v] for v in network.nodes]), axis=0, return_counts=True)
    known = joint(network)
    for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
        p = known[tuple(row)]
        assert abs(count - n * p) < 5 * np.sqrt(n * p * (1 - p)) + 1


def test_a_regression_victim_logs_what_the_service_decodes(regression: Victim) -> None:
    """Its batch is that of events with ``prediction.value``, which have neither a label nor probabilities."""
    rows = regression.held[:20]
    categories = [c.categories for c in regression.schema.columns]
    batch = regression.batch(["a"], np.zeros(20, np.int32), rows, np.arange(20.0), regression.predict(rows))
    events = [
        msgspec.json.encode(
            {
                "client_id": "a", "timestamp": "2026-03-02T09:00:00Z", "model_id": "m",
                "features": [names[int(v)] if names else v for names, v in zip(categories, row, strict=True)],
                "prediction": {"value": value},
            }
        )
        for i, (row, value) in enumerate(zip(rows.tolist(), batch.values.tolist(), strict=True))
    ]  # fmt: skip
    records = Records("t", events, np.arange(20), 20, [str(i) for i in range(20)])
    decoded = NativeFormat({"m": InputReader(regression.schema)}).decode(records)
    assert not decoded.dead
    [found] = decoded.batches.values()
    for part in ("inputs", "labels", "probabilities", "values"):
        np.testing.assert_array_equal(getattr(found, part), getattr(batch, part))
    assert len(np.unique(batch.values)) > 10


def test_thieves_of_a_regression_see_quarters(regression: Victim) -> None:
    seen = regression.predict(regression.reference)
    assert set(seen.argmax(axis=1)) == set(range(other_victims.QUARTERS))
    assert regression.schema.task == "regression"
    assert [c.kind for c in regression.schema.columns] == ["numeric"] * 3 + ["categorical"] * 2


@pytest.fixture(scope="module")
def scene() -> Scene:
    victim = dealt("halves", Recipe("codes", numbers, LogisticRegression, foreign))
    return Scene(victim.pools[0], victim.predict, [victim.pools[0].pool[:40]] * 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_sends_what_is_accepted_and_asked_of_it(scene: Scene, kind: str) -> None:
    for n in (1, 17, 400):
        rows = KINDS[kind].play(scene, n, np.random.default_rng(n))
        emitted = scene.pools.domain.emit(rows)
        assert 0 < len(emitted) <= n
        assert kind == "shadow" or len(emitted) == n
        np.testing.assert_array_equal(scene.pools.domain.emit(emitted), emitted)
        again = KINDS[kind].play(scene, n, np.random.default_rng(n))
        np.testing.assert_array_equal(rows, again)


@pytest.mark.parametrize("kind", ["application", "retrying", "benchmark", "labelling", "shadow"])
def test_those_that_change_nothing_send_items_of_their_pool(scene: Scene, kind: str) -> None:
    pool = {row.tobytes() for row in scene.pools.pool}
    assert {row.tobytes() for row in KINDS[kind].play(scene, 300, np.random.default_rng(1))} <= pool


def test_nobody_changes_the_pool(scene: Scene) -> None:
    before = scene.pools.pool.copy()
    for kind in KINDS.values():
        kind.play(scene, 200, np.random.default_rng(2))
    np.testing.assert_array_equal(scene.pools.pool, before)


def test_a_crawler_repeats_items_under_changing_ids(scene: Scene) -> None:
    sent = KINDS["crawler"].play(scene, 300, np.random.default_rng(5))
    changing = [j for j in range(sent.shape[1]) if len(np.unique(np.delete(sent, j, axis=1), axis=0)) < 0.7 * 300]
    assert any(len(np.unique(sent[:, j])) > 200 for j in changing)


def test_a_labelling_loop_asks_for_what_the_model_is_less_sure_of() -> None:
    """One number, the boundary at 0: its later questions lie nearer to it than its pool does, as questions without a rule do not."""
    pool = np.linspace(-1, 1, 400)[:, None].round(3)
    domain = Domain.of(pool)

    def predict(rows: Rows) -> Rows:
        found: Rows = np.eye(2)[(rows[:, 0] > 0).astype(int)]
        return found

    scene = Scene(HonestPools(domain, pool, np.zeros(400, np.int64), pool[:0], pool[:0]), predict)

    def near(kind: str) -> float:
        sent = np.vstack([KINDS[kind].play(scene, 60, np.random.default_rng(seed))[20:] for seed in range(8)])
        return float(np.abs(sent).mean())

    assert near("labelling") < 0.75 * near("benchmark")


def test_volumes_have_heavy_tails_and_times_ascend() -> None:
    rng = np.random.default_rng(6)
    asked = np.array([KINDS["application"].queries(rng) for _ in range(4000)])
    assert np.quantile(asked, 0.99) > 10 * np.median(asked)
    lives = [np.ptp(day_and_night(200, rng)) / 86_400 for _ in range(300)]
    assert max(lives) > 13
    assert np.median(lives) < 2
    times = day_and_night(500, rng)
    assert (np.diff(times) >= 0).all()


def test_a_population_has_every_kind_and_no_thief(scene: Scene) -> None:
    streams = second_population(scene.pools, scene.predict, np.random.default_rng(7), 60)
    assert {s.kind for s in streams} == set(KINDS)
    assert {s.role for s in streams} == {"benign"}
    assert sum(kind.share for kind in KINDS.values()) == pytest.approx(1.0)
    few = second_population(scene.pools, scene.predict, np.random.default_rng(7), 2, ("units", "form"))
    assert [s.kind for s in few] == ["units", "units", "form", "form"]


def test_clients_of_texts_change_words_and_the_service_embeds_them() -> None:
    rng = np.random.default_rng(8)
    words = [f"{a}{b}" for a in "bcdfghklm" for b in ("ala", "elo", "imu", "oru", "uta", "ani", "eva", "osi")]
    texts = list(dict.fromkeys(" ".join(rng.choice(words, size=12)) for _ in range(300)))
    known = Corpus(texts, [0] * len(texts), texts[:20])
    clients = EditingClients(known, known.words(known.rows[:100]))
    domain = Domain.of(known.rows)
    pools = HonestPools(domain, domain.emit(known.rows[:100]), np.zeros(100, np.int64), known.rows[:0], known.foreign)
    for kind, play in clients.kinds.items():
        assert kind in second_generator.KINDS
        sent = play(pools, 50, np.random.default_rng(9))
        assert sent.shape == (50, known.rows.shape[1])
        np.testing.assert_allclose(np.linalg.norm(sent, axis=1), 1.0, atol=1e-3)


@pytest.fixture(scope="module")
def stored() -> Results:
    return carry_tables.read()


def test_what_is_committed_is_a_full_run(stored: Results) -> None:
    plan = Plan()
    assert stored["plan"] == described(plan)
    assert set(stored["fleets"]) == {f"{name} {seed}" for name in plan.victims for seed in plan.seeds}
    assert set(plan.victims) == set(other_victims.VICTIMS)


def test_the_controls_of_the_committed_run_hold(stored: Results) -> None:
    """Clients that have a say are flagged within the budget, and honest clients labelled thieves as seldom as honest ones are."""
    for source in (*GENERATORS, carry_tables.BOTH):
        for one in carry_tables.calibrations(stored, source):
            assert one["itself"][0] <= one["excluded"] + stored["plan"]["budget"] * one["clients"]
        honest = [carry_tables.false_alarms(stored, source, tested) for tested in GENERATORS]
        rate = sum(honest, carry_tables.NOTHING).share
        pretended = carry_tables.counted(stored, source, "pretended")
        low, high = clopper_pearson(pretended.hits, pretended.trials, 0.999)
        assert low <= rate <= high
        assert carry_tables.recall(stored, source, "plain").share > 20 * rate


@pytest.mark.parametrize("make", carry_tables.TABLES.values(), ids=carry_tables.TABLES)
def test_a_count_that_is_moved_shows_in_its_table(stored: Results, make: Callable[[Results], str]) -> None:
    """The control of the tables: other counts, another table."""
    other = json.loads(json.dumps(stored))
    for found in other["fleets"].values():
        for one in found["calibrations"].values():
            one["itself"][0] += 5
            one["below"] = {generator: [n + 1 for n in counts] for generator, counts in one["below"].items()}
            for cell in [c for g in one["honest"].values() for c in g.values()] + [
                v for f in one["thefts"].values() for v in f.values()
            ]:
                cell[0] = cell[1]
            for kinds in one.get("kinds", {}).values():
                kinds["few"][0] = kinds["few"][1]
    assert make(other) != make(stored)
