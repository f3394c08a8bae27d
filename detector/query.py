"""Queries as columns: the input of every computation in the core.

Rules: past the decoder there is no Python object per query. A `QueryBatch` holds n queries of one model, in log order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNKNOWN_LABEL = -1
TIMES_MS = range(253_402_214_400_000)
"""Times that are taken, in ms: from 1970 to the last day but one of 9999. What lies beyond cannot be printed."""
UNKNOWN_MS = -1
"""A time that is not known: of an event whose timestamp could not be read, which counts at the log's own time, or of a broker."""


class Misfit(IntFlag):
    """What about a query does not fit the schema. Such a query counts; it is encoded and marked."""

    MISSING = 1  # a value is null, absent, NaN, infinite or a word in a numeric column
    OTHER = 2  # a category that the reference does not have
    OUT_OF_RANGE = 4  # an absolute value over 1e12
    RETYPED = 8  # a number written as text, or a boolean in a numeric column
    UNREADABLE = 16  # the whole input: wrong length, nested lists, another form, none at all
    ANSWER = 32  # the prediction is missing or has another shape than the model's


class ClientKey(NamedTuple):
    """Who asks what: tenant, model id, client.

    `client` is whatever the caller uses as identity; the service uses a keyed hash of the client id.
    """

    tenant: str
    model: str
    client: str


@dataclass(slots=True)
class QueryBatch:
    """n queries of one model, in log order.

    clients        g distinct clients, in order of first appearance
    who            (n,) int32, index into `clients`
    inputs         (n, d) float64, raw inputs as logged; categories are codes of the schema. What does not fit has codes of its own:
                   NaN is a missing value, ±inf one that is out of range, `len(categories)` a category that the schema does not
                   have; a row of an unreadable input is all NaN
    labels         (n,) int32 predicted class, `UNKNOWN_LABEL` where there is none (regression, foreign label)
    probabilities  (n, c) float32, NaN rows where the answer was a label only; c = 0 for regressors
    values         (n,) float64 regression answer, NaN for classifiers
    time_ms        (n,) int64 event time, milliseconds since the epoch, UTC
    weight         (n,) float32, 1 / sampled_fraction: how often the row's token usage counts
    offsets        (n,) int64 position in the log cell
    misfit         (n,) uint8, flags of `Misfit`; 0: the query fits the schema
    salt           (n,) uint64, digest of what was logged where `inputs` does not say it (an unseen category's name, a number out
                   of range, an unreadable input), so that distinct queries stay distinct; 0: `inputs` says it all
    templates      (n, TEMPLATE_HASHES) uint64, hashes of the template that a text may have (templates.py), 0: none; (n, 0): no texts
    """

    clients: list[str]
    who: NDArray[np.int32]
    inputs: NDArray[np.float64]
    labels: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    values: NDArray[np.float64]
    time_ms: NDArray[np.int64]
    weight: NDArray[np.float32]
    offsets: NDArray[np.int64]
    misfit: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    salt: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    templates: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 0), np.uint64))

    def __post_init__(self) -> None:
        if len(self.misfit) != len(self.who):
            self.misfit = np.zeros(len(self.who), np.uint8)
        if len(self.salt) != len(self.who):
            self.salt = np.zeros(len(self.who), np.uint64)
        if len(self.templates) != len(self.who):
            self.templates = np.zeros((len(self.who), 0), np.uint64)

    def __len__(self) -> int:
        return len(self.who)

    def take(self, rows: NDArray[np.intp]) -> QueryBatch:
        """The given rows, same client table."""
        return QueryBatch(
            self.clients, self.who[rows], self.inputs[rows], self.labels[rows], self.probabilities[rows],
            self.values[rows], self.time_ms[rows], self.weight[rows], self.offsets[rows], self.misfit[rows], self.salt[rows],
            self.templates[rows],
        )  # fmt: skip
