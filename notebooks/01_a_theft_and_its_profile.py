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
# # A theft and its profile
#
# A digit classifier answers queries. Most clients are honest; two want a copy of it. What does QueryWarden keep of
# each client, and what betrays the thieves?
#
# Everything here is `detector`: arithmetic on arrays, no Kafka, no store. The images are real (scikit-learn's
# digits); the clients are simulated, with a fixed seed.
# The thieves' figures therefore show the mechanism, not a detection rate.

# %%
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from detector.baseline import PUBLIC_KEY
from detector.features import Column, Schema
from detector.fitting.baseline import fit_baseline
from detector.ladder import rung
from detector.policy import Decision, Policy, decide
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.scoring import assess
from detector.signals import SIGNAL_NAMES, measure
from detector.simulation.domain import Domain, HonestPools, Rows, strangers
from detector.simulation.population import Stream, honest_stream, interleave, population, theft_streams

rng = np.random.default_rng(7)
BUDGET = 0.01

# %% [markdown]
# ## The victim
#
# A classifier trained on 500 images. The rest is divided so that no image is used twice: a reference, the honest
# clients of the calibration, honest clients to look at, the thieves' own.

# %%
images, digits = load_digits(return_X_y=True)
train, reference, calibration, honest, own, _ = np.split(rng.permutation(len(images)), [500, 900, 1250, 1500, 1700])
victim = LogisticRegression(max_iter=3000).fit(images[train], digits[train])
predict: Callable[[Rows], Rows] = victim.predict_proba

domain = Domain.of(images[reference])
foreign = strangers(domain, images[reference], rng)  # rows of no digit: mirrored and shuffled pixels


def pools(items: np.ndarray) -> HonestPools:
    """The rows that simulated clients own: `items` are theirs."""
    return HonestPools(domain, images[items], predict(images[items]).argmax(1), images[own], foreign)


# %% [markdown]
# ## A log
#
# A log is a `QueryBatch`: columns, one row a query, in time order.


# %%
def batch_of(streams: list[Stream]) -> QueryBatch:
    log = interleave(streams)
    answers = predict(log.inputs)
    n = len(log.inputs)
    return QueryBatch(
        clients=log.clients,
        who=log.who,
        inputs=log.inputs,
        labels=answers.argmax(1).astype(np.int32),
        probabilities=answers.astype(np.float32),
        values=np.full(n, np.nan),
        time_ms=(log.times_s * 1000).astype(np.int64),
        weight=np.ones(n, np.float32),
        offsets=np.arange(n),
    )


def honest_clients(items: np.ndarray, count: int) -> list[Stream]:
    own_pools = pools(items)
    return [
        honest_stream(kind, own_pools, child)
        for kind, child in zip(population(count, rng), rng.spawn(count), strict=True)
    ]


# %% [markdown]
# ## The baseline
#
# Fitted on the reference (what inputs look like) and on 120 honest clients (how far honest clients ever go). The
# unit of calibration is the client.

# %%
schema = Schema(
    columns=tuple(Column(f"x{j}", "numeric", 0.0, 16.0, 1.0) for j in range(64)),
    input_form="features",
    named=False,
    task="classification",
    labels=tuple("0123456789"),
)
everything = np.zeros(len(reference), np.int32)
answers = predict(images[reference])
sample = QueryBatch(
    ["reference"], everything, images[reference], answers.argmax(1).astype(np.int32), answers.astype(np.float32),
    np.full(len(reference), np.nan), np.zeros(len(reference), np.int64), np.ones(len(reference), np.float32), np.arange(len(reference)),
)  # fmt: skip
traffic = batch_of(honest_clients(calibration, 120))
baseline, _lives = fit_baseline("digits", schema, sample, traffic, rng=rng)
print(
    "; ".join(baseline.notes),
    f"· {len(traffic):,} queries · largest honest client: {baseline.calibration.distinct:,.0f} distinct queries",
)

# %% [markdown]
# ## Two thieves among forty honest clients
#
# * **JBDA** (Papernot et al. 2017): 100 real digits, then each of them moved by a fixed step along the gradient signs
#   of the thief's own copy.
# * **Out of distribution** (Orekondy et al. 2019, KnockoffNets): images that are no digits.

# %%
own_pools = pools(honest)
thieves = {
    name: theft_streams(family, "plain", own_pools, predict, child, 1200)[0]
    for (name, family), child in zip({"JBDA": "jbda", "OOD": "knockoff_random"}.items(), rng.spawn(2), strict=True)
}
others = honest_clients(honest, 40)
log = batch_of([*others, *thieves.values()])
kinds = {s.client: s.kind for s in others}
busiest = max(others, key=lambda s: len(s.inputs)).client
shown = {thieves["JBDA"].client: "JBDA", thieves["OOD"].client: "OOD", busiest: f"honest: {kinds[busiest]}"}

pictures = {name: stream.inputs[[0, 300, 600, 900]] for name, stream in thieves.items()}
figure, axes = plt.subplots(2, 4, figsize=(6, 3.2))
for row, (name, rows) in zip(axes, pictures.items(), strict=True):
    for axis, picture in zip(row, rows, strict=True):
        axis.imshow(picture.reshape(8, 8), cmap="gray_r")
        axis.set_xticks([])
        axis.set_yticks([])
    row[0].set_ylabel(name)
figure.suptitle("The 1st, 301st, 601st and 901st query of each thief")
plt.show()

# %% [markdown]
# ## Folding, and measuring on the way
#
# The log is folded in polls of 250 queries, as in the service. After each poll the profiles can be measured; measuring
# changes nothing.

# %%
profiles = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, half_horizon_ms=2**62)
seen: dict[str, list[tuple[int, np.ndarray, float]]] = {client: [] for client in shown}
for part in np.array_split(np.arange(len(log)), max(1, len(log) // 250)):
    poll = log.take(part)
    profiles.add(list(poll.clients), poll, baseline.map.measure(poll, PUBLIC_KEY))
    for client in shown:
        if client in profiles:
            profile = profiles.profile(client)
            if profile.queries:
                values = measure(profile, baseline.table).lifetime
                seen[client].append(
                    (profile.queries, values / baseline.calibration.scale, assess(profile, baseline).suspicion)
                )

final: dict[str, Profile] = {client: profiles.profile(client) for client in log.clients}

# %% [markdown]
# ## The profile of a client

# %%
for client, name in shown.items():
    p = final[client]
    print(
        f"{name:22} {p.queries:5,} queries → {len(p.to_bytes()):6,} bytes: {p.distinct:6,.0f} distinct, {p.novel:6,.0f} novel, "
        f"{len(p.odd_hash):3} in the odd set, {len(p.sequence_hash):3} in the sequence set"
    )

# %% [markdown]
# ## Signals over queries
#
# Each line is one signal of one client, in units of the largest honest lifetime maxima: at 1 a client is as odd as the
# oddest honest clients ever were. A thief's excess grows as long as it steals;
# an honest client's stays below 1, or grows slowly over a long lifetime.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
for axis, (client, name) in zip(axes, shown.items(), strict=True):
    queries = np.array([q for q, _, _ in seen[client]])
    curves = np.array([v for _, v, _ in seen[client]])
    for i in np.argsort(-curves[-1])[:5]:
        if curves[-1, i] > 0:
            axis.plot(queries, np.maximum(curves[:, i], 0.01), label=SIGNAL_NAMES[i])
    axis.axhline(1, color="grey", linestyle=":")
    axis.set_title(name)
    axis.set_xlabel("queries")
    axis.set_yscale("log")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
axes[0].set_ylabel("excess / honest scale")
figure.suptitle("The five largest signals of each client")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Coverage
#
# Where the queries fall, in the first two whitened coordinates of the reference: each dot is a region, and its area is
# the share of queries in it. Coverage explains and does not accuse: an honest
# batch scorer covers more than most thieves.

# %%
figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), sharex=True, sharey=True)
panels: list[tuple[str, Any]] = [("reference", baseline.map.region_share)]
panels += [(name, final[c].region_counts / max(1, final[c].region_counts.sum())) for c, name in shown.items()]
x, y = baseline.map.region_at.T
for axis, (name, share) in zip(axes, panels, strict=True):
    axis.scatter(x, y, s=8, color="lightgrey")
    axis.scatter(x, y, s=2500 * np.asarray(share), alpha=0.6)
    axis.set_title(name)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Suspicion
#
# Suspicion is 1 − p, where p is the share of honest clients that ever get this far. The first passages in the profile
# say exactly when each level of a fixed ladder was reached, whenever the client was assessed.

# %%
figure, axis = plt.subplots(figsize=(8, 3.8))
for client in log.clients:
    p = final[client]
    steps = [max(1e-6, baseline.ordered.p(rung(i + 1))) for i in range(len(p.passage_query))]
    if steps:
        line: dict[str, Any] = {"color": "lightgrey", "linewidth": 1, "zorder": 1}
        if client in shown:
            line = {"label": shown[client], "linewidth": 2.2, "zorder": 2}
        axis.step([*p.passage_query, p.queries], [*steps, steps[-1]], where="post", **line)
axis.axhline(BUDGET, color="firebrick", linestyle="--", label=f"budget {BUDGET:.0%}")
axis.set_xscale("log")
axis.set_yscale("log")
axis.invert_yaxis()
axis.set_xlabel("queries of the client")
axis.set_ylabel("lifetime p-value")
axis.set_title("How rarely an honest client gets this far (grey: the other honest clients)")
axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The verdict, with reasons

# %%
policy = Policy(budget=BUDGET)
flagged: list[str] = []
for client in log.clients:
    assessment = assess(final[client], baseline)
    decision = decide(Decision(), assessment, baseline.calibration, policy, now_s=0)
    if decision.state in ("throttle", "block"):
        flagged.append(client)
    if client in shown or client in flagged:
        name = shown.get(client, f"honest: {kinds.get(client)}")
        reason = assessment.evidence[0].text if assessment.evidence else "nothing unusual"
        print(f"{name:22} {decision.state:9} p = {assessment.p_value:.2g}\n    {reason}")
wrong = sum(client in kinds for client in flagged)
caught = len(flagged) - wrong
print(f"\n{caught} of {len(thieves)} thieves and {wrong} of {len(kinds)} honest clients are flagged.")
