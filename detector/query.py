"""Queries as columns: the vocabulary that everything else speaks.

Past the decoder there is no Python object per query. A `QueryBatch` holds n queries of ONE model, in log order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNKNOWN_LABEL = -1


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
    inputs         (n, d) float64, raw inputs as logged; categories are codes of the schema
    labels         (n,) int32 predicted class, `UNKNOWN_LABEL` where there is none (regression, foreign label)
    probabilities  (n, c) float32, NaN rows where the answer was a label only; c = 0 for regressors
    values         (n,) float64 regression answer, NaN for classifiers
    time_ms        (n,) int64 event time, milliseconds since the epoch, UTC
    weight         (n,) float32, 1 / sampled_fraction: how many queries this row stands for
    offsets        (n,) int64 position in the log cell
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

    def __len__(self) -> int:
        return len(self.who)

    def take(self, rows: NDArray[np.intp]) -> QueryBatch:
        """The given rows, same client table."""
        return QueryBatch(
            self.clients, self.who[rows], self.inputs[rows], self.labels[rows], self.probabilities[rows],
            self.values[rows], self.time_ms[rows], self.weight[rows], self.offsets[rows],
        )  # fmt: skip
