"""P-values of accounts among honest clients of their size."""

from __future__ import annotations

import numpy as np

from detector.calibration import NO_CLIENTS, FinalExcess
from detector.signals import FREE, GROUPED, SIGNAL_NAMES, SIGNALS, Statistics
from detector.size_null import NEAREST, SizeNull

S = len(SIGNALS)
FIRST = int(np.flatnonzero(GROUPED & ~FREE)[0])


def fleet(clients: int, seed: int) -> FinalExcess:
    """Honest clients of many sizes, whose share of odd queries falls with their size."""
    rng = np.random.default_rng(seed)
    distinct = np.asarray(np.round(np.exp(rng.uniform(2.5, 7.0, clients))), np.float64)
    odd = rng.binomial(distinct.astype(int)[:, None], rng.beta(0.3, 6.0, (clients, S)))
    return FinalExcess(distinct, np.maximum(0.0, odd - 0.02 * distinct[:, None]).astype(np.float32))


def account(distinct: float, excess: float) -> Statistics:
    values = np.zeros(S)
    values[FIRST] = excess
    return Statistics(values, values, np.full(S, distinct), values, values, distinct)


def test_p_values_of_honest_clients_are_uniform_in_their_lower_part() -> None:
    null, others = SizeNull(fleet(600, 1)), fleet(1500, 2)
    p = []
    for distinct, excess in zip(others.distinct, others.excess, strict=True):
        values = excess.astype(np.float64)
        p.append(null.p_value(Statistics(values, values, np.full(S, distinct), values, values, float(distinct)))[0])
    for level in (0.05, 0.1, 0.3):
        assert abs(float((np.array(p) <= level).mean()) - level) <= 0.5 * level
    own, _ = null.honest_p_values()
    assert abs(float((own <= 0.1).mean()) - 0.1) <= 0.03


def test_an_account_that_is_odd_for_its_size_stands_out_and_says_in_what() -> None:
    null = SizeNull(fleet(600, 1))
    p, oddest = null.p_value(account(15.0, 14.0))
    assert p <= 0.05
    assert oddest == SIGNAL_NAMES[FIRST]
    assert null.p_value(account(1000.0, 14.0))[0] > 0.2, "the same fourteen among a thousand are nothing"
    assert p >= 1 / (1 + NEAREST)


def test_without_anything_odd_or_without_honest_clients_there_is_no_suspicion() -> None:
    assert SizeNull(fleet(50, 1)).p_value(account(15.0, 0.0)) == (1.0, "")
    assert SizeNull(NO_CLIENTS).p_value(account(15.0, 15.0)) == (1.0, "")
    assert SizeNull(fleet(50, 1)).p_value(account(15.0, 14.0), in_order=False) == (1.0, "")
