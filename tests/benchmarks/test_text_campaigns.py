"""The benchmark of templates as links: groups as the product forms them, and committed figures that hold every kind and the control."""

from __future__ import annotations

import numpy as np
from support import text_models

from benchmarks import text_campaign_tables as tables
from benchmarks.text_campaigns import ACCOUNTS, APPLICATIONS, THEFTS, account, accounts, dealt, groups
from detector.baseline import Baseline
from detector.templates import LEAST


def test_accounts_of_a_theft_share_their_template_and_have_their_cover(text_baseline: Baseline) -> None:
    rng = np.random.default_rng(2)
    pools = text_models.pools(1)
    streams = accounts(THEFTS["front"], pools, rng, 20, cover=True)
    assert len(streams) == ACCOUNTS
    framed = [sum(text.startswith("Write an exam question") for text in s.texts) for s in streams]
    assert all(2 * n == len(s.texts) for n, s in zip(framed, streams, strict=True))
    some = [account(text_baseline, s) for s in streams[:12] if len(s.texts) >= 4 * LEAST]
    assert len({one.templates for one in dealt(some, some, rng)}) <= len({one.templates for one in some})
    assert set(groups(text_baseline, some)) == {"content", "odd_patch", "template"}


def test_honest_kinds_fill_the_template_of_their_organisation() -> None:
    rng = np.random.default_rng(3)
    streams = accounts(APPLICATIONS["persona"], text_models.pools(1), rng, 20, kind="tester")
    assert all("grumpy wizard" in text for s in streams for text in s.texts)


def test_the_committed_figures_hold_every_kind_and_a_control_that_ties_nobody() -> None:
    results = tables.read()
    assert sorted(results["victims"]) == ["chat", "manuals", "reviews"]
    every = [(name, case) for found in results["victims"].values() for name, case in found["cases"].items()]
    for belongs in tables.ROWS.values():
        assert any(belongs(name, case) for name, case in every)
    assert all(sum(belongs(name, case) for belongs in tables.ROWS.values()) == 1 for name, case in every)
    assert sum(case["control"] for _, case in every) == 0
    honest = [case for _, case in every if case["kind"] in ("honest application", "organisation")]
    assert not any(tables.is_found(case, tables.WITH) for case in honest)
