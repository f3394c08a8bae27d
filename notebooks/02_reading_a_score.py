# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading a score
#
# A client has suspicion 0.993. Is that much? This notebook takes one apart: from signals in units of honest clients,
# over the fused score, to a lifetime p-value and a state. And it checks the claim behind all of them: of honest
# clients that the calibration never saw, a share p should get a p-value of at most p.
#
# The model and its inputs are real (scikit-learn's wine table, blended to enough rows); the clients are simulated.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression

from detector.baseline import PUBLIC_KEY
from detector.features import Column, Schema
from detector.fitting.baseline import fit_baseline
from detector.ladder import rung
from detector.policy import BLOCK_FACTOR, WATCH_FACTOR, Policy, wanted
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.scoring import Assessment, assess
from detector.signals import SIGNAL_NAMES, measure
from detector.simulation.domain import Domain, HonestPools, Rows, strangers
from detector.simulation.population import Stream, interleave, simulated_population

rng = np.random.default_rng(4)
BUDGET = 0.05
HONEST = ("regular", "light", "what_if", "monitor")

# %% [markdown]
# ## A model, and clients around it
#
# The table has 178 wines. A client's wine is a real one, blended with a neighbour of its class: so rows are new and
# stay plausible.

# %%
table, kinds = load_wine(return_X_y=True)
table = np.round(table, 2)
model = LogisticRegression(max_iter=5000).fit(table / table.std(axis=0), kinds)
names = ("class_0", "class_1", "class_2")


def wines(n: int, rng: np.random.Generator) -> Rows:
    """(n, 13) wines: each between two real ones of one class."""
    first = rng.integers(0, len(table), n)
    other = np.array([rng.choice(np.flatnonzero(kinds == kinds[i])) for i in first])
    share = rng.uniform(0, 0.4, (n, 1))
    return np.asarray(np.round(table[first] * (1 - share) + table[other] * share, 2))


def predict(rows: Rows) -> Rows:
    return np.asarray(model.predict_proba(rows / table.std(axis=0)))


reference = wines(500, rng)
domain = Domain.of(reference)


def clients(count: int, attacks: list[tuple[str, str]], rng: np.random.Generator) -> list[Stream]:
    """Honest clients and thieves, two weeks of each."""
    pool = wines(600, rng)
    pools = HonestPools(
        domain, pool, predict(pool).argmax(1), wines(200, rng), strangers(domain, reference, rng), lambda rows, r: wines(len(rows), r)
    )  # fmt: skip
    return simulated_population(
        pools, predict, rng, clients=count, kinds=HONEST, attacks=attacks, queries=(150, 300), start_s=0.0, horizon_s=14 * 86_400.0
    )  # fmt: skip


def log_of(streams: list[Stream]) -> QueryBatch:
    log = interleave(streams)
    answers = predict(log.inputs)
    n = len(log.inputs)
    return QueryBatch(
        log.clients, log.who, np.ascontiguousarray(log.inputs), answers.argmax(1).astype(np.int32), answers.astype(np.float32),
        np.full(n, np.nan), np.round(log.times_s * 1000).astype(np.int64), np.ones(n, np.float32), np.arange(n),
    )  # fmt: skip


# %% [markdown]
# ## The baseline

# %%
columns = tuple(Column(f"x{j}", "numeric", float(c.min()), float(c.max()), 0.01) for j, c in enumerate(reference.T))
schema = Schema(columns, "features", False, "classification", names)
answers = predict(reference)
everything = QueryBatch(
    ["reference"], np.zeros(len(reference), np.int32), reference, answers.argmax(1).astype(np.int32), answers.astype(np.float32),
    np.full(len(reference), np.nan), np.zeros(len(reference), np.int64), np.ones(len(reference), np.float32), np.arange(len(reference)),
)  # fmt: skip
baseline, _ = fit_baseline("wine", schema, everything, log_of(clients(100, [], rng)), rng=rng)
print(
    f"calibrated on {baseline.calibration.clients} clients, up to {baseline.calibration.distinct:,.0f} distinct queries each"
)

# %% [markdown]
# ## Sixty new honest clients and one thief
#
# Folded and assessed as the service does it.

# %%
streams = clients(60, [("noise_uniform", "plain")], rng)
log = log_of(streams)
profiles = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, half_horizon_ms=2**62)
for part in np.array_split(np.arange(len(log)), 40):
    poll = log.take(part)
    profiles.add(list(poll.clients), poll, baseline.map.measure(poll, PUBLIC_KEY))
found: dict[str, tuple[Profile, Assessment]] = {}
for stream in streams:
    profile = profiles.profile(stream.client)
    found[stream.client] = profile, assess(profile, baseline)
thief = next(s.client for s in streams if s.kind not in HONEST)
honest = [assessment for client, (_, assessment) in found.items() if client != thief]
print(
    f"thief: suspicion {found[thief][1].suspicion:.4f}; the most suspicious honest client: {max(a.suspicion for a in honest):.4f}"
)

# %% [markdown]
# ## From signals to the fused score
#
# Each signal is an excess over what is allowed, in units of the honest clients with the highest values: at 1 a client is
# as odd in this signal as they ever were. The fused score is the largest of them.

# %%
profile, assessment = found[thief]
typical = min(honest, key=lambda a: abs(a.suspicion - 0.5))
other = next(p for p, a in found.values() if a is typical)
figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True)
for axis, who, one in zip(axes, ("the thief", "an honest client"), (profile, other), strict=True):
    values = measure(one, baseline.table).lifetime / baseline.calibration.scale
    best = np.argsort(-values)[:8][::-1]
    axis.barh([SIGNAL_NAMES[i] for i in best], values[best], color="steelblue")
    axis.axvline(1, color="firebrick", linestyle="--", label="the oddest honest clients")
    axis.set_title(f"{who}: {one.queries} queries")
    axis.set_xlabel("excess / honest scale")
axes[0].legend(loc="lower right")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## From the fused score to a p-value and a state
#
# The p-value is the share of honest clients that ever get this far in their life, so it does not matter when one looks.
# The false-alarm budget a cuts it into states: watch at 5a, throttle at a, block at a/10. A block also needs 30 odd
# distinct queries and a calibration that can support so rare an event: with 100 clients it cannot, and the reason says so.

# %%
levels = np.array([rung(i) for i in range(1, 40)])
figure, axis = plt.subplots(figsize=(8, 4))
axis.plot(levels, [max(baseline.ordered.p(x), 1e-5) for x in levels], color="black")
for limit, name in ((BUDGET * WATCH_FACTOR, "watch"), (BUDGET, "throttle"), (BUDGET * BLOCK_FACTOR, "block")):
    axis.axhline(limit, linestyle=":", color="grey")
    axis.annotate(name, (levels[-1], limit), ha="right", va="bottom")
axis.plot(
    [min(assessment.fused, levels[-1])], [max(assessment.p_value, 1e-5)], "o", color="firebrick", label="the thief"
)
axis.plot([a.fused for a in honest], [a.p_value for a in honest], "|", color="steelblue", label="honest clients")
axis.set_xscale("log")
axis.set_yscale("log")
axis.set_xlabel("fused score")
axis.set_ylabel("lifetime p-value")
axis.legend(loc="lower left")
figure.tight_layout()
plt.show()
state, reason = wanted(assessment, baseline.calibration, Policy(BUDGET))
print(f"the thief: {state} ({reason}), p = {assessment.p_value:.2g}")
print(f"    {assessment.evidence[0].text}")

# %% [markdown]
# ## Does the p-value keep its word?
#
# Sorted p-values of the sixty honest clients against the share of clients that have come so far. On the diagonal the
# budget is what it says; above it false alarms are rarer, below it they are more frequent. The band is
# what sixty clients would show by chance (Kolmogorov and Smirnov's, 95 %). These clients are of the kinds of the
# calibration: a new kind of honest client may leave the band.

# %%
p = np.sort([a.p_value for a in honest])
share = np.arange(1, len(p) + 1) / len(p)
band = 1.36 / np.sqrt(len(p))
figure, axis = plt.subplots(figsize=(5.5, 5))
axis.plot([0, 1], [0, 1], color="grey")
axis.fill_between([0, 1], [-band, 1 - band], [band, 1 + band], color="lightgrey", alpha=0.5)
axis.step(share, p, where="post", color="steelblue")
axis.set_xlim(0, 1)
axis.set_ylim(0, 1)
axis.set_xlabel("share of honest clients")
axis.set_ylabel("lifetime p-value")
figure.tight_layout()
plt.show()
flagged = sum(wanted(a, baseline.calibration, Policy(BUDGET))[0] in ("throttle", "block") for a in honest)
print(f"{flagged} of {len(honest)} honest clients are flagged; the budget allows {BUDGET * len(honest):.0f}")
