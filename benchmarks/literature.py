"""Detectors of the literature, one function each, listed in `METHODS`.

Rules of the file:

* One interface: ``statistic(life, known) → (looks, values)``: how much a client looked like a thief after so many queries, the larger the
  more. The caller takes the running maximum, and either the published threshold or the one that all methods get alike
  (`benchmarks.evaluation.lifetime_level`, same honest clients, same budget).
* Faithful to the paper where its text decides; where a method needs something that a log does not have (a contrastive
  encoder, activations), the docstring says what stands in.
* A threshold that a paper sets on independent benign samples is set so here: on clients that draw at random from the reference.
* A method sees one client's rows and answers and the reference, never the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray
from scipy.stats import shapiro

from benchmarks.victims import EPOCHS, Victim
from detector.simulation.domain import Rows

Ints = NDArray[np.int64]
Course = tuple[Ints, Rows]
"""looks (k,) in queries, values (k,)."""
FIRST_LOOK = 20


@dataclass(frozen=True, slots=True)
class Life:
    """One client: raw rows (n, d) scaled as `Known.scaled`, embeddings (n, m), labels (n,), margins (n,) (NaN: label only),
    distance to the nearest reference row (n,), hardness (n,) or None, a number drawn for this client, distinct rows so far (n,)."""

    rows: Rows
    embedded: Rows
    labels: Ints
    margins: Rows
    distance: Rows
    hardness: Ints | None
    lot: float
    distinct: Ints


class Known:
    """What a method may know: the reference with the victim's answers, in raw and in whitened principal coordinates.

    The embedding is a network's hidden layer where the victim is one, else whitened principal coordinates (at most 24).
    """

    def __init__(self, victim: Victim, rows: Rows, rng: np.random.Generator) -> None:
        self.victim, self.rng = victim, rng
        domain = victim.domain
        self.centre = rows.mean(axis=0)
        self.scale = np.ones(domain.width) if domain.homogeneous else np.maximum(rows.std(axis=0), 1e-6)
        scaled = self.scaled(rows)
        values, axes = np.linalg.eigh(np.cov(scaled, rowvar=False))
        values, axes = np.maximum(values[::-1], 1e-9), axes[:, ::-1]
        m = min(24, int(np.searchsorted(np.cumsum(values) / values.sum(), 0.99)) + 1)
        self.axes = axes[:, :m] / np.sqrt(values[:m])
        self.embedded = self.embed(rows)
        answers = victim.predict(rows)
        self.labels = answers.argmax(axis=1)
        self.classes = answers.shape[1]
        self.margins = np.full(len(rows), np.nan) if victim.label_only else _margins(answers)
        self.low_margin = float(np.quantile(self.margins, 0.1))
        self.distance = self.nearest(self.embedded, itself=True)
        self.hardness = victim.hardness(rows) if victim.stages else None
        self.moments = {
            c: _moments(self.embedded[self.labels == c]) for c in range(self.classes) if (self.labels == c).sum() > 4
        }
        # Mahalanobis: one covariance for all classes, shrunk a little
        means = {c: mean for c, (mean, _, _) in self.moments.items()}
        within = np.vstack([self.embedded[self.labels == c] - mean for c, mean in means.items()])
        self.means = np.array(list(means.values()))
        covariance = np.cov(within, rowvar=False) + 0.01 * np.eye(self.embedded.shape[1])
        self.whiten = np.linalg.cholesky(np.linalg.inv(covariance))
        self.far = float(np.quantile(self.mahalanobis(self.embedded), 0.99))
        self.distant = float(np.quantile(self.distance, 0.99))
        some = rng.permutation(len(rows))[:500]
        self.kernel_rows = self.embedded[some]
        apart = _squared(self.kernel_rows, self.kernel_rows)
        self.gamma = 1.0 / max(float(np.median(apart[np.triu_indices(len(some), 1)])), 1e-9)
        self.kernel_self = _kernel_mean(apart, self.gamma, same=True)
        pairs = np.sqrt(apart[np.triu_indices(len(some), 1)])
        self.close = float(np.quantile(pairs[pairs > 1e-6], 1e-4))
        self.planes = rng.normal(size=(self.embedded.shape[1], 12))
        self.null_signals: Rows | None = None

    def scaled(self, rows: Rows) -> Rows:
        out: Rows = (rows - self.centre) / self.scale
        return out

    def embed(self, rows: Rows) -> Rows:
        if self.victim.stages:
            model = self.victim.model
            out: Rows = np.maximum(rows @ model.coefs_[0] + model.intercepts_[0], 0.0)
            return out
        return np.asarray(np.clip(self.scaled(rows) @ self.axes, -8, 8))

    def nearest(self, embedded: Rows, itself: bool = False) -> Rows:
        out = np.empty(len(embedded))
        for at in range(0, len(embedded), 2048):
            apart = _squared(embedded[at : at + 2048], self.embedded)
            if itself:
                apart[np.arange(len(apart)), np.arange(at, at + len(apart))] = np.inf
            out[at : at + 2048] = np.sqrt(apart.min(axis=1))
        return out

    def mahalanobis(self, embedded: Rows) -> Rows:
        """(n,) distance to the nearest class mean (Lee et al., NeurIPS 2018)."""
        return np.asarray(np.sqrt(_squared(embedded @ self.whiten, self.means @ self.whiten).min(axis=1)))

    def life(self, rows: Rows, answers: Rows) -> Life:
        embedded = self.embed(rows)
        _, first = np.unique(rows, axis=0, return_index=True)
        new = np.zeros(len(rows), np.int64)
        new[first] = 1
        margins = np.full(len(rows), np.nan) if self.victim.label_only else _margins(answers)
        return Life(
            self.scaled(rows), embedded, answers.argmax(axis=1), margins, self.nearest(embedded),
            self.victim.hardness(rows) if self.victim.stages else None, float(self.rng.random()), np.cumsum(new),
        )  # fmt: skip


def looks(n: int, first: int = FIRST_LOOK, growth: float = 1.2) -> Ints:
    """Numbers of queries at which a life of n queries is looked at: geometric, and its end."""
    found, at = [], float(first)
    while at < n:
        found.append(int(at))
        at = max(at * growth, at + 1)
    return np.array([*found, n] if n >= first else [], dtype=np.int64)


def _margins(answers: Rows) -> Rows:
    top = np.sort(answers, axis=1)
    out: Rows = top[:, -1] - top[:, -2]
    return out


def _squared(a: Rows, b: Rows) -> Rows:
    out: Rows = np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T, 0.0)
    return out


def _moments(rows: Rows) -> tuple[Rows, Rows, Rows]:
    """Mean, covariance and the root of the covariance."""
    covariance = np.cov(rows, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    return rows.mean(axis=0), covariance, (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


# ------------------------------------------------------------------------------------------------------- PRADA


@nb.njit(cache=True)
def _prada_distances(rows, labels, classes):  # type: ignore[no-untyped-def]
    """d_min of each query to the growing set of its class, −1 for the first of a class."""
    n, d = rows.shape
    grown = np.empty(n, np.int64)
    count = 0
    threshold = np.zeros(classes)
    admitted = np.zeros(classes)
    total = np.zeros(classes)
    squares = np.zeros(classes)
    out = np.full(n, -1.0)
    for i in range(n):
        c = labels[i]
        best = np.inf
        for a in range(count):
            if labels[grown[a]] == c:
                gap = 0.0
                for j in range(d):
                    gap += (rows[i, j] - rows[grown[a], j]) ** 2
                    if gap >= best:
                        break
                best = min(best, gap)
        if best == np.inf:
            grown[count] = i
            count += 1
            continue
        best = np.sqrt(best)
        out[i] = best
        if best > threshold[c]:
            grown[count] = i
            count += 1
            admitted[c] += 1
            total[c] += best
            squares[c] += best * best
            mean = total[c] / admitted[c]
            deviation = np.sqrt(max(squares[c] / admitted[c] - mean * mean, 0.0))
            threshold[c] = max(threshold[c], mean - deviation)
    return out


def prada(life: Life, known: Known) -> Course:
    """PRADA (Juuti et al., EuroS&P 2019, §5, algorithm 1): 1 − Shapiro–Wilk W of the distances to the growing sets, outliers
    beyond 3 σ left out, once more than 100 remain. Raw inputs; tables are standardised first. Looked at after every tenth query up to
    500 and geometrically from there on (the paper: every query), which can only save it false alarms."""
    distances = _prada_distances(life.rows, life.labels, known.classes)
    at = np.unique(np.concatenate([np.arange(100, min(500, len(distances)) + 1, 10), looks(len(distances), 500, 1.1)]))
    values = np.zeros(len(at))
    for k, n in enumerate(at):
        pooled = distances[:n][distances[:n] >= 0]
        kept = pooled[np.abs(pooled - pooled.mean()) <= 3 * pooled.std()] if len(pooled) else pooled
        if len(kept) > 100:
            values[k] = 1.0 - float(shapiro(kept).statistic) if np.ptp(kept) > 0 else 1.0
    return at, values


# ------------------------------------------------------------------------------------------ distances of windows


def add(life: Life, known: Known, window: int = 256) -> Course:
    """ADD (Mei et al., AAAI 2025): Fréchet distance of the window's features to the training features, by predicted class,
    weighted by the window's class counts. Features: a network's hidden layer, else whitened coordinates; window 256."""
    at = looks(len(life.labels), 32, 1.25)
    values = np.zeros(len(at))
    for k, n in enumerate(at):
        part = slice(max(0, n - window), n)
        labels, features = life.labels[part], life.embedded[part]
        seen = [(c, features[labels == c]) for c in known.moments]
        usable = [(c, rows) for c, rows in seen if len(rows) >= 4]
        distances = [_frechet(known.moments[c], rows) for c, rows in usable]
        if usable:
            values[k] = float(np.average(distances, weights=[len(rows) for _, rows in usable]))
    return at, values


def _frechet(moments: tuple[Rows, Rows, Rows], rows: Rows) -> float:
    """Fréchet distance of two normal distributions (Dowson and Landau 1982)."""
    mean, covariance, root = moments
    other = np.cov(rows, rowvar=False)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0.0)).sum()
    return float(np.square(rows.mean(axis=0) - mean).sum() + np.trace(covariance) + np.trace(other) - 2 * cross)


def _kernel_mean(apart: Rows, gamma: float, same: bool = False) -> float:
    """Mean of four Gaussian kernels, σ ∈ {.5, 1, 2, 4} · median; without the diagonal if `same`."""
    wide = np.exp((apart * (-gamma / 32)).astype(np.float32))
    total = wide.copy()
    for _ in range(3):
        wide *= wide
        wide *= wide
        total += wide
    n = len(apart)
    whole = float(total.sum(dtype=np.float64))
    return ((whole - float(np.trace(total))) / (n * (n - 1)) if same else whole / total.size) / 4


def mmd(life: Life, known: Known, window: int = 1500) -> Course:
    """MMD of random windows (arXiv 2606.05725, 2026): unbiased MMD² with four Gaussian kernels between a random window of the client's
    queries and the reference (at most 500 rows). Published: windows of 1,500; here also of all queries so far, when fewer."""
    n_all, rng = len(life.embedded), np.random.default_rng(0)
    at = looks(n_all, 50, 2.0)
    values = np.full(len(at), -1.0)
    for k, n in enumerate(at):
        rows = life.embedded[rng.permutation(n)[:window]] if n > window else life.embedded[:n]
        inside = _kernel_mean(_squared(rows, rows), known.gamma, same=True)
        values[k] = inside + known.kernel_self - 2 * _kernel_mean(_squared(rows, known.kernel_rows), known.gamma)
    return at, values


def hoda(life: Life, known: Known, window: int = 100) -> Course:
    """HODA (Sadeghzadeh et al. 2021, §4): histogram of the hardness of the last 100 queries, the first of ten training stages from which
    the label stays; 1 − Pearson correlation with the reference's histogram. Networks only."""
    if life.hardness is None or known.hardness is None:
        return np.empty(0, np.int64), np.empty(0)
    usual = np.bincount(known.hardness, minlength=EPOCHS) / len(known.hardness)
    at = np.arange(window, len(life.hardness) + 1, window)
    values = np.zeros(len(at))
    for k, n in enumerate(at):
        counts = np.bincount(life.hardness[n - window : n], minlength=EPOCHS)
        values[k] = 1.0 - float(np.corrcoef(counts, usual)[0, 1]) if np.ptp(counts) else 2.0
    return at, values


def _share_of_last(odd: NDArray[np.bool_], window: int = 100) -> Course:
    at = np.unique(np.concatenate([looks(len(odd)), np.arange(window, len(odd) + 1, window // 4)]))
    total = np.concatenate([[0], np.cumsum(odd)])
    start = np.maximum(at - window, 0)
    return at, (total[at] - total[start]) / np.maximum(at - start, 1)


def mahalanobis(life: Life, known: Known) -> Course:
    """Share of the last 100 queries beyond the reference's 99 % of the Mahalanobis distance to the nearest class (Lee et al. 2018)."""
    return _share_of_last(known.mahalanobis(life.embedded) > known.far)


def neighbours(life: Life, known: Known) -> Course:
    """Share of the last 100 queries farther from the reference than 99 % of its own rows are from each other (Sun et al., ICML 2022)."""
    return _share_of_last(life.distance > known.distant)


# ----------------------------------------------------------------------------------------------- paths and counts


@nb.njit(cache=True)
def _near_pairs(rows, close):  # type: ignore[no-untyped-def]
    """Earlier queries nearer than `close`, for each query."""
    n, d = rows.shape
    out = np.zeros(n)
    limit = close * close
    for i in range(n):
        for a in range(i):
            gap = 0.0
            for j in range(d):
                gap += (rows[i, j] - rows[a, j]) ** 2
                if gap >= limit:
                    break
            if gap < limit:
                out[i] += 1.0
    return out


def seat(life: Life, known: Known) -> Course:
    """SEAT (Zhang et al., AISec 2021, §4): pairs of queries nearer than δ, the account is cancelled after 50. δ: one benign pair in 10⁴.
    The contrastive encoder is stood in for by the embedding. Of very long lives the first 6,000 queries are compared."""
    pairs = np.cumsum(_near_pairs(np.ascontiguousarray(life.embedded[:6000]), known.close))
    at = looks(len(pairs))
    return at, pairs[at - 1]


def coverage(life: Life, known: Known) -> Course:
    """B4B (Dubiński et al., NeurIPS 2023, §4.2): share of 2¹² buckets of random hyperplanes that the client's embeddings occupy."""
    buckets = ((life.embedded - known.embedded.mean(axis=0)) @ known.planes > 0) @ (1 << np.arange(12))
    _, first = np.unique(buckets, return_index=True)
    new = np.zeros(len(buckets))
    new[first] = 1
    at = looks(len(buckets))
    return at, np.cumsum(new)[at - 1] / 4096


def collinearity(life: Life, known: Known, window: int = 256) -> Course:
    """After GWAD (CVPR 2025): share of the last 256 successive moves with a cosine beyond ± .98 to the move before.
    Its trained classifier of attack kinds is left out; the histogram's ends are what it fires on."""
    moves = np.diff(life.rows, axis=0)
    length = np.linalg.norm(moves, axis=1)
    if len(moves) < 2:
        return np.empty(0, np.int64), np.empty(0)
    both = length[1:] * length[:-1]
    along = (np.abs((moves[1:] * moves[:-1]).sum(axis=1)) > 0.98 * both) & (both > 0)
    at, values = _share_of_last(np.concatenate([[False, False], along]), window)
    return at, values


def _signals(life: Life, known: Known, window: int = 50) -> Rows:
    """(windows, 5) novelty, low margin, class concentration, spread, closeness of pairs, of successive windows of 50."""
    out = []
    for start in range(0, len(life.labels) - window + 1, window):
        part = slice(start, start + window)
        shares = np.bincount(life.labels[part], minlength=known.classes) / window
        apart = np.sqrt(_squared(life.embedded[part], life.embedded[part]))[np.triu_indices(window, 1)]
        low = np.mean(life.margins[part] < known.low_margin) if np.isfinite(life.margins[part]).all() else 0.0
        out.append(
            [life.distance[part].mean(), low, np.square(shares).sum(), apart.mean(), np.mean(apart < known.close)]
        )
    return np.array(out).reshape(-1, 5)


def sentry(life: Life, known: Known, window: int = 50) -> Course:
    """The SENTRY rule (2026): five signals of windows of 50, conformal p-values against independent benign windows, e = ½ p^−½
    (Vovk and Wang 2021), their mean, and the Shiryaev–Roberts recursion R ← (1 + R) e; the value is log R."""
    if known.null_signals is None:
        rows = known.rng.integers(0, len(known.embedded), size=200 * window)
        draw = Life(
            known.embedded[rows], known.embedded[rows], known.labels[rows], known.margins[rows], known.distance[rows], None, 0.0, rows
        )  # fmt: skip
        known.null_signals = np.sort(_signals(draw, known), axis=0)
    signals, null = _signals(life, known), known.null_signals
    above = np.stack([len(null) - np.searchsorted(null[:, k], signals[:, k], "left") for k in range(5)], axis=1)
    evidence = (0.5 * ((1 + above) / (len(null) + 1)) ** -0.5).mean(axis=1)
    log_r, values = -np.inf, np.zeros(len(evidence))
    for k, e in enumerate(evidence):
        log_r = float(np.logaddexp(0.0, log_r) + np.log(e))
        values[k] = log_r
    return np.arange(1, len(values) + 1) * window, values


def distinct(life: Life, known: Known) -> Course:
    """The count rule of monitoring practice: distinct queries of a client; an alarm beyond 1,000."""
    at = looks(len(life.distinct))
    return at, life.distinct[at - 1].astype(float)


def lot(life: Life, known: Known) -> Course:
    """The control: a number drawn for the client, whatever it asks. What it catches at the budget is what chance catches."""
    at = looks(len(life.labels))
    return at, np.full(len(at), life.lot)


@dataclass(frozen=True, slots=True)
class Method:
    """A detector of the literature.

    published  its threshold, or None where the paper gives none
    iid        or: the quantile of independent benign clients of `window` queries that its threshold is
    window     queries before which the published rule says nothing
    """

    statistic: Callable[[Life, Known], Course]
    text: str
    published: float | None = None
    iid: float | None = None
    window: int = 0

    def threshold(self, known: Known, clients: int = 40) -> float | None:
        """The published threshold; one that is set on benign samples is set on rows of the reference that `known` does not hold."""
        if self.iid is None:
            return self.published
        victim, largest = known.victim, []
        rng = np.random.default_rng(1)
        others = victim.reference[1::2]
        for _ in range(clients):
            rows = others[rng.integers(0, len(others), size=self.window)]
            _, values = self.statistic(known.life(rows, victim.predict(rows)), known)
            largest.append(values[-1] if len(values) else np.inf)
        return float(np.quantile(largest, self.iid))


METHODS: dict[str, Method] = {
    "PRADA": Method(prada, "Juuti et al. 2019, δ = .95", published=0.05, window=101),
    "ADD": Method(add, "Mei et al. 2025", iid=0.99, window=256),
    "MMD": Method(mmd, "arXiv 2606.05725, 2026", iid=0.95, window=1500),
    "HODA": Method(hoda, "Sadeghzadeh et al. 2021", iid=0.99, window=100),
    "Mahalanobis share": Method(mahalanobis, "Lee et al. 2018", iid=0.99, window=100),
    "kNN share": Method(neighbours, "Sun et al. 2022", iid=0.99, window=100),
    "SEAT": Method(seat, "Zhang et al. 2021", published=50.0),
    "B4B coverage": Method(coverage, "Dubiński et al. 2023"),
    "collinearity": Method(collinearity, "after GWAD, 2025"),
    "SENTRY": Method(sentry, "SENTRY, 2026", published=float(np.log(100.0)), window=50),
    "distinct count": Method(distinct, "practice", published=1000.0),
    "control": Method(lot, "flags at random", published=0.99),
}
