"""The baseline of one model: what honest use looks like, as a feature map, a calibration and an estimator of exposure.

Rules:

* This file holds the value. `baseline_file.py` writes and reads its bytes, `fitting/baseline.py` fits it.
* ``map_id`` identifies the feature map. Profiles of another map are not mixed with those of this one.
* ``calibration_version`` identifies the calibration. A new one keeps profiles and restarts their running maxima.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from detector.calibration import Calibration, Tail
from detector.exposure import Estimator
from detector.features import FeatureMap
from detector.fold_arrays import LADDER_STEPS
from detector.ladder import rung
from detector.own_change import OwnChange
from detector.profile_shape import Shape
from detector.signal_table import SignalTable
from detector.signals import signal_table
from detector.size_null import SizeNull

PUBLIC_KEY = bytes(16)
"""Sampling key of calibration: a baseline must not depend on an installation's secrets."""
MS_A_DAY = 86_400_000


@dataclass(frozen=True)
class Baseline:
    """What honest use of one model looks like.

    notes      sentences for people (where the calibration came from, its limits)
    estimator  what a copy made of a client's queries would be worth; None: not rehearsed
    """

    model_id: str
    map: FeatureMap
    calibration: Calibration
    notes: tuple[str, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)
    estimator: Estimator | None = None

    @cached_property
    def map_id(self) -> str:
        return self.map.map_id

    @cached_property
    def calibration_version(self) -> str:
        return self.calibration.version

    @cached_property
    def id(self) -> str:
        """Name of this baseline among those of its model: 16 hex digits of its map and its calibration."""
        return self.map_id[:8] + self.calibration_version[:8]

    @cached_property
    def table(self) -> SignalTable:
        """The signals as the fold needs them, in units of this baseline."""
        return signal_table(self.calibration.scale, self.calibration.distinct, self.map.misfit_allowance)

    @cached_property
    def shape(self) -> Shape:
        """Sizes of its clients' profiles."""
        return Shape.of(self.map, len(self.table.need))

    @cached_property
    def ordered(self) -> Tail:
        return Tail.fit(self.calibration.ordered)

    @cached_property
    def free(self) -> Tail:
        return Tail.fit(self.calibration.free)

    @cached_property
    def tails(self) -> tuple[Tail, ...]:
        """Null distribution of each signal by itself."""
        return tuple(Tail.fit(column) for column in self.calibration.lifetime_maxima.T)

    @cached_property
    def size_null(self) -> SizeNull:
        """Null distributions of oddness among honest clients of one size."""
        return SizeNull(self.calibration.final)

    @cached_property
    def own_change(self) -> OwnChange:
        """How much honest clients differ from their own earlier lives."""
        return OwnChange(self.calibration.changes)

    def tail(self, in_order: bool, persona: str = "") -> Tail:
        """Null distribution of the fused score: that of a declared persona, where this baseline knows it, or of all others."""
        return self._personas.get((persona, in_order)) or (self.ordered if in_order else self.free)

    def levels(self, in_order: bool, persona: str = "") -> tuple[float, ...]:
        """The p-value of each step of the ladder, the first at index 0, under the null distribution that `tail` returns."""
        tail = self.tail(in_order, persona)
        if id(tail) not in self._levels:
            self._levels[id(tail)] = tuple(tail.p(rung(steps)) for steps in range(1, LADDER_STEPS + 1))
        return self._levels[id(tail)]

    @cached_property
    def oddest_honest(self) -> tuple[int, ...]:
        """The largest lifetime maximum of an honest client in each signal, rounded up; 0 without honest clients."""
        return tuple(int(np.ceil(float(column.max(initial=0.0)))) for column in self.calibration.lifetime_maxima.T)

    @cached_property
    def _levels(self) -> dict[int, tuple[float, ...]]:
        """By the tail's id: a baseline keeps its tails as long as it lives."""
        return {}

    @cached_property
    def _personas(self) -> dict[tuple[str, bool], Tail]:
        known = self.calibration.personas
        return {(p.name, order): Tail.fit(p.ordered if order else p.free) for p in known for order in (True, False)}
