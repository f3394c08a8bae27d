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

# %% [markdown]
# # A campaign
#
# A theft that is split over accounts stays small in each of them. This notebook deals one out to thirty accounts behind
# fifteen addresses, among a hundred and twenty honest ones, and follows how it is found: links propose groups, and a
# statistic decides which of them is a campaign. The controls are honest: an office that shares an address, a reseller,
# and groups put together at random.
#
# The model is real (scikit-learn's wine table), the clients are simulated.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier

from detector.baseline import PUBLIC_KEY
from detector.campaigns import assess_group, candidates
from detector.features import Column, Schema
from detector.fitting.baseline import Rehearsed, fit_baseline
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.scoring import assess
from detector.simulation.attacks import AttackerKnowledge, steal
from detector.simulation.domain import Domain, HonestPools, Rows, strangers
from detector.simulation.population import Interleaved, Stream, honest_stream, interleave, simulated_population
from detector.simulation.rehearsal import batch_of

rng = np.random.default_rng(5)
BUDGET = 0.01
ACCOUNTS, EACH = 30, 20
TOOLS = ("what_if", "qa_edge", "explainer", "robustness", "misrouted")

# %%
table, kinds = load_wine(return_X_y=True)
model = RandomForestClassifier(50, max_depth=6, random_state=0).fit(table, kinds)


def wines(n: int, rng: np.random.Generator) -> Rows:
    """(n, 13) wines: each between two real ones of one class."""
    first = rng.integers(0, len(table), n)
    other = np.array([rng.choice(np.flatnonzero(kinds == kinds[i])) for i in first])
    share = rng.uniform(0, 0.4, (n, 1))
    return np.asarray(np.round(table[first] * (1 - share) + table[other] * share, 2))


def predict(rows: Rows) -> Rows:
    return np.asarray(np.round(model.predict_proba(rows), 2))


reference, pool = wines(500, rng), wines(800, rng)
domain = Domain.of(reference)
foreign = strangers(domain, reference, rng)
pools = HonestPools(domain, pool, predict(pool).argmax(1), wines(200, rng), foreign)


def honest_clients(count: int) -> list[Stream]:
    return simulated_population(pools, predict, rng, clients=count, horizon_s=14 * 86_400.0)


def log_of(log: Interleaved) -> QueryBatch:
    batch = batch_of(log.inputs, predict(log.inputs))
    return replace(batch, clients=log.clients, who=log.who, time_ms=np.round(log.times_s * 1000).astype(np.int64))


# Honest tools are rehearsed too (`querywarden fit` does it by itself): a group must be unlike each of them.
columns = tuple(Column(f"x{j}", "numeric", float(c.min()), float(c.max()), 0.01) for j, c in enumerate(reference.T))
schema = Schema(columns, "features", False, "classification", ("class_0", "class_1", "class_2"))
traffic = log_of(interleave(honest_clients(200)))
tools = [honest_stream(kind, pools, rng) for kind in TOOLS for _ in range(16)]
rehearsed = Rehearsed(log_of(interleave(tools)), tuple(stream.kind for stream in tools))
baseline, _ = fit_baseline(
    "wine", schema, batch_of(reference, predict(reference)), traffic, rng=rng, rehearsed=rehearsed
)

# %% [markdown]
# ## Thirty accounts of one thief
#
# Six hundred foreign rows, dealt out by turns: twenty for each account. Two accounts share an address, and all pay by
# one means. An office of twelve honest accounts shares an address too, and a reseller's name ties another fifteen.

# %%
stolen = steal("knockoff_random", AttackerKnowledge(domain, pools.own, foreign), predict, ACCOUNTS * EACH, rng)
honest = honest_clients(120)
profiles = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, half_horizon_ms=2**62)
for batch in (
    log_of(interleave(honest)),
    replace(
        batch_of(stolen, predict(stolen)),
        clients=[f"mule-{i:02d}" for i in range(ACCOUNTS)],
        who=(np.arange(len(stolen)) % ACCOUNTS).astype(np.int32),
    ),
):
    for part in np.array_split(np.arange(len(batch)), 20):
        poll = batch.take(part)
        profiles.add(list(poll.clients), poll, baseline.map.measure(poll, PUBLIC_KEY))
names = [stream.client for stream in honest]
mules = [f"mule-{i:02d}" for i in range(ACCOUNTS)]
found: dict[str, Profile] = {name: profiles.profile(name) for name in (*names, *mules)}

links: dict[str, list[str]] = {name: [f"ip:{i}"] for i, name in enumerate(names)}
links |= {name: [f"ip:mule-{i // 2}", "payment:card"] for i, name in enumerate(mules)}
for name in names[:12]:
    links[name] = ["ip:office"]
for name in names[12:27]:
    links[name].append("who.reseller:one")

# %% [markdown]
# ## One by one nobody stands out
#
# Each account by itself: its lifetime p-value among honest clients of any size, and its p-value among honest clients that
# asked about as much. The first is what decides about a single client, and twenty queries are too few for it. The second
# is small for many of the thief's accounts, and for one honest account in twenty: alone it accuses nobody.

# %%
lifetime = {name: assess(profile, baseline).p_value for name, profile in found.items()}
sized = {name: assess(profile, baseline).size_p_value for name, profile in found.items()}
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
for axis, p_value_of, title in zip(
    axes, (lifetime, sized), ("lifetime p-value", "p-value among clients of its size"), strict=True
):
    for group, color, label in ((names, "steelblue", "honest accounts"), (mules, "firebrick", "the thief's accounts")):
        axis.plot(
            [found[n].distinct for n in group], [p_value_of[n] for n in group], "o", color=color, alpha=0.6, label=label
        )
    axis.axhline(BUDGET, linestyle=":", color="black")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("distinct queries")
    axis.set_title(title)
axes[0].legend(loc="lower right")
figure.tight_layout()
plt.show()
print(f"flagged alone at {BUDGET:g}: {sum(lifetime[n] <= BUDGET for n in mules)} of the thief's {ACCOUNTS} accounts, "
      f"{sum(lifetime[n] <= BUDGET for n in names)} of {len(names)} honest ones")  # fmt: skip

# %% [markdown]
# ## Links propose, the statistic decides
#
# Accounts that share a link form a group. A pair is none (three are needed), so the addresses of the thief tie nothing;
# its means of payment does. The statistic of a group is the excess of a signal summed over the members without the
# oddest fifth: it is large only where nearly all are odd. It is compared with honest groups of the same sizes.

# %%
groups = candidates(links)
result = {
    group.links: (len(group.members), assess_group([found[m] for m in group.members], baseline)) for group in groups
}
for names_of, (members, assessment) in result.items():
    said = assessment.evidence[0].text.partition(";")[0] if assessment.evidence else "nothing"
    print(f"{', '.join(names_of):20s} {members} accounts, p = {assessment.p_value:.2g}: {said}")

# %% [markdown]
# ## Which honest groups are accused?
#
# Two controls. Groups of thirty honest accounts of mixed kinds are not odd together. Harder are thirty accounts that
# all behave like one honest client, as those of one application do: where that client is odd in itself, the group is.
# So a campaign that is found by a weak link is shown to a person, and gateways enforce nothing by themselves.

# %%
mixed = [
    assess_group([found[m] for m in rng.choice(names, ACCOUNTS, replace=False)], baseline).p_value for _ in range(150)
]
alike = [assess_group([found[name]] * ACCOUNTS, baseline).p_value for name in names[::2]]
campaign = result["payment:card",][1].p_value
figure, axis = plt.subplots(figsize=(9, 3))
for y, (p_values, label) in enumerate(
    ((mixed, "150 mixed honest groups"), (alike, "60 times one honest client,\nthirty times over"))
):
    axis.plot(p_values, y + rng.uniform(-0.25, 0.25, len(p_values)), "o", color="steelblue", alpha=0.4, markersize=5)
    axis.text(1.3, y, f"{label}:\n{sum(p <= BUDGET for p in p_values)} at or below the budget", va="center", fontsize=9)
axis.axvline(campaign, color="firebrick", linewidth=3)
axis.text(campaign * 1.1, 1.42, "the thief's thirty accounts", color="firebrick", fontsize=9)
axis.axvline(BUDGET, color="black", linestyle=":")
axis.set_xscale("log")
axis.set_xlim(3e-4, 1.15)
axis.set_ylim(-0.6, 1.65)
axis.set_yticks([])
axis.set_xlabel("p-value of the group")
figure.tight_layout()
plt.show()
print(f"accused at {BUDGET:g}: {sum(p <= BUDGET for p in mixed)} of {len(mixed)} mixed groups, "
      f"{sum(p <= BUDGET for p in alike)} of {len(alike)} of one client; the thief's group: {campaign:.2g}")  # fmt: skip
