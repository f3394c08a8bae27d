"""The leak check: could a thief be told from timing and volume alone, without looking at one query?

Boosted trees on counts, gaps and hours, cross-validated over clients. If they can, the benchmark's populations give thieves away and
no figure of it means anything; a detector must beat what volume alone catches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from benchmarks.evaluation import lifetime_level
from detector.simulation.domain import Rows

HOUR_S = 3600.0
SESSION_S = 2 * HOUR_S
COUNT = [1]
TIMING = slice(2, None)


def describe(times_s: Rows, thief: bool) -> list[float]:
    """One client: thief, log queries; relative gaps at three quantiles, the largest, sessions, span, begin, share of six times of day."""
    gaps = np.diff(times_s)
    span = max(float(times_s[-1] - times_s[0]), 1.0)
    usual = float(np.median(gaps)) if len(gaps) else 1.0
    relative = np.log((np.quantile(gaps, [0.1, 0.9, 0.99, 1.0]) + 1e-3) / (usual + 1e-3)) if len(gaps) else np.zeros(4)
    hours = np.bincount((times_s / (4 * HOUR_S)).astype(int) % 6, minlength=6) / len(times_s)
    sessions = 1 + int((gaps > SESSION_S).sum())
    return [
        float(thief),
        float(np.log(len(times_s))),
        *map(float, relative),
        float(sessions),
        np.log(span),
        float(times_s[0]),
        *map(float, hours),
    ]


def leak(described: Rows) -> dict[str, Any]:
    """AUROC and detection at 1 % false alarms of boosted trees on volume, on timing, and on both; thieves' runs are the plain ones."""
    thief = described[:, 0] > 0
    out: dict[str, Any] = {"honest": int((~thief).sum()), "thieves": int(thief.sum())}
    for name, columns in (("volume", COUNT), ("timing", TIMING), ("volume and timing", slice(1, None))):
        model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8, random_state=0)
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        scores = cross_val_predict(model, described[:, columns], thief, cv=folds, method="predict_proba")[:, 1]
        level = lifetime_level(scores[~thief], 0.01)
        out[name] = {
            "auroc": round(float(roc_auc_score(thief, scores)), 3),
            "detection": round(float(np.mean(scores[thief] > level)), 3),
        }
    return out
