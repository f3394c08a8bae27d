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
# # Attacks, and what is caught
#
# What do published thefts of a model look like, how fast does a copy become good, and when does the alarm come? This
# notebook runs six of them against a small digit classifier, trains a copy on the answers so far, and marks the moment
# at which the client is flagged. A detector is worth the fidelity that is still missing at its alarm.
#
# The images are real (scikit-learn's digits); the clients are simulated, and the thieves are simplified. The figures
# show the mechanism. What was measured on many models is in `docs/detection.md`.

# %%
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from detector.baseline import PUBLIC_KEY, Baseline
from detector.features import Column, Schema
from detector.fitting.baseline import fit_baseline
from detector.policy import FLAGGED, Policy, wanted
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.scoring import assess, reached
from detector.simulation.attacks import ATTACKS, AttackerKnowledge, steal
from detector.simulation.domain import Domain, HonestPools, Rows, strangers
from detector.simulation.population import Stream, interleave, simulated_population
from detector.simulation.rehearsal import batch_of

rng = np.random.default_rng(11)
BUDGET = 0.05
FAMILIES = ("noise_uniform", "knockoff_random", "jbda", "active_uncertainty", "mixup", "in_domain")
QUERIES = 600

# %% [markdown]
# ## The victim, and a baseline from honest clients
#
# The images are divided: the model is trained on a third, honest clients ask about a third, and a sixth belongs to
# whoever steals. The last sixth is honest and asked by nobody: copies are tested on it.

# %%
images, digits = load_digits(return_X_y=True)
order = rng.permutation(len(images))
trained, honest_rows, own, tested = np.split(images[order], [600, 1200, 1500])
model = KNeighborsClassifier(5).fit(trained, digits[order][:600])


def predict(rows: Rows) -> Rows:
    return np.asarray(model.predict_proba(rows), np.float64)


def variants_of(rows: Rows, n: int, rng: np.random.Generator) -> Rows:
    """(n, 64) images as a scanner gives them: a real one, a little brighter or darker."""
    chosen = rows[rng.integers(0, len(rows), n)]
    return np.clip(
        np.round(chosen * rng.uniform(0.8, 1.2, (n, 1)) + rng.normal(0, 0.4, chosen.shape) * (chosen > 0)), 0, 16
    )


reference = variants_of(honest_rows, 800, rng)
domain = Domain.of(reference)
foreign = strangers(domain, reference, rng)
pool = variants_of(honest_rows, 1500, rng)
pools = HonestPools(domain, pool, predict(pool).argmax(1), own, foreign)


def log_of(streams: list[Stream]) -> QueryBatch:
    log = interleave(streams)
    batch = batch_of(log.inputs, predict(log.inputs))
    return replace(batch, clients=log.clients, who=log.who, time_ms=np.round(log.times_s * 1000).astype(np.int64))


columns = tuple(Column(f"pixel_{j}", "numeric", 0.0, 16.0, 1.0) for j in range(64))
schema = Schema(columns, "features", False, "classification", tuple("0123456789"))
traffic = log_of(simulated_population(pools, predict, rng, clients=100, horizon_s=14 * 86_400.0))
baseline, _ = fit_baseline("digits", schema, batch_of(reference, predict(reference)), traffic, rng=rng)
print(f"calibrated on {baseline.calibration.clients} clients")

# %% [markdown]
# ## What the thieves ask
#
# Noise looks like noise. Foreign images (`knockoff`) have strokes, but no digits. `jbda` moves a few digits along the
# gradient of a copy, `active_uncertainty` looks for images about which its copy is unsure, `mixup` blends. The last one
# only asks about digits of its own: nothing in a query gives it away.

# %%
knowledge = AttackerKnowledge(domain, own, foreign)
stolen = {family: steal(family, knowledge, predict, QUERIES, rng) for family in FAMILIES}
figure, axes = plt.subplots(len(FAMILIES), 8, figsize=(8, 6.4))
for line, (family, rows) in zip(axes, stolen.items(), strict=True):
    for axis, row in zip(line, rows[:: QUERIES // 8], strict=False):
        axis.imshow(row.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        axis.set_xticks([])
        axis.set_yticks([])
    line[0].set_ylabel(family, rotation=0, ha="right", va="center")
figure.suptitle("eight queries of each theft, in their order")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## How good the copy is, and when the alarm comes
#
# At some numbers of queries a copy is trained on the answers so far (the best of three kinds), and its *fidelity* is the
# share of unseen digits to which it gives the model's label. The dot is the moment at which the client's p-value fell to
# the budget.

# %%
CHECKPOINTS = (20, 50, 100, 200, 350, QUERIES)
truth = predict(tested).argmax(1)


@dataclass
class Course:
    """What a theft gains, and when it is caught."""

    fidelity: list[float]
    caught_at: int | None
    p_value: float
    sentence: str


def folded(rows: Rows, baseline: Baseline) -> Profile:
    batch = batch_of(rows, predict(rows))
    table = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, half_horizon_ms=2**62)
    table.add([0], batch, baseline.map.measure(batch, PUBLIC_KEY))
    return table.profile(0)


def fidelity_of(rows: Rows) -> float:
    answers = predict(rows).argmax(1)
    if len(set(answers)) < 2:
        return float((truth == answers[0]).mean())
    copies = (KNeighborsClassifier(1), SVC(C=10.0), SVC(kernel="linear", C=0.05))
    return max(float((copy.fit(rows, answers).predict(tested) == truth).mean()) for copy in copies)


def course_of(rows: Rows, theft: Rows | None = None) -> Course:
    """rows: all that the client asks; theft: what the copy learns from, None for all of it."""
    learned = rows if theft is None else theft
    profile = folded(rows, baseline)
    assessment = assess(profile, baseline)
    first = None
    if wanted(assessment, baseline.calibration, Policy(BUDGET))[0] in FLAGGED:
        found = reached(profile, baseline, BUDGET)
        first = found[1] if found is not None else None
    said = assessment.evidence[0].text if assessment.evidence else "nothing"
    return Course([fidelity_of(learned[:n]) for n in CHECKPOINTS], first, assessment.p_value, said)


courses = {family: course_of(rows) for family, rows in stolen.items()}
figure, axis = plt.subplots(figsize=(8.5, 4.6))
for family, course in courses.items():
    (line,) = axis.plot(CHECKPOINTS, course.fidelity, marker=".", label=family)
    if course.caught_at is not None:
        at = float(np.interp(course.caught_at, CHECKPOINTS, course.fidelity))
        axis.plot([course.caught_at], [at], "o", color=line.get_color(), markersize=11)
axis.set_xscale("log")
axis.set_xticks(CHECKPOINTS, [str(n) for n in CHECKPOINTS])
axis.set_xticks([], minor=True)
axis.set_ylim(0, 1)
axis.set_xlabel("queries")
axis.set_ylabel("fidelity of the copy")
axis.legend(title="large dot: flagged", bbox_to_anchor=(1.01, 1), loc="upper left")
figure.tight_layout()
plt.show()
for family, course in courses.items():
    when = (
        f"flagged after {course.caught_at} queries"
        if course.caught_at is not None
        else f"not flagged, p = {course.p_value:.2g}"
    )
    print(f"{family:20s} {when}")
    print(f"    {course.sentence[:110]}")

# %% [markdown]
# Noise and foreign images are caught while their copies are worth little. Thefts that start from real digits have a good
# copy after a hundred queries, and the alarm comes later. And a thief that owns enough real inputs is not caught at all:
# its *exposure* is estimated, and a budget of queries or exposure is what stops it.

# %% [markdown]
# ## Under cover
#
# The same thefts are mixed with honest queries, up to nine for each stolen one. Each odd distinct query counts, whatever
# is asked between: so here cover costs the thief queries and time, and hardly changes how many *stolen* answers it has
# when the alarm comes. Where honest clients are odder than these, cover helps it more.

# %%
SHARES = (1.0, 0.5, 0.2, 0.1)
figure, axis = plt.subplots(figsize=(8.5, 3.6))
for y, family in enumerate(("noise_uniform", "knockoff_random", "jbda", "mixup")):
    for share in SHARES:
        total = round(QUERIES / share)
        is_theft = np.zeros(total, np.bool_)
        is_theft[rng.choice(total, QUERIES, replace=False)] = True
        rows = pool[rng.integers(0, len(pool), total)]
        rows[is_theft] = stolen[family]
        profile = folded(rows, baseline)
        found = reached(profile, baseline, BUDGET)
        state = wanted(assess(profile, baseline), baseline.calibration, Policy(BUDGET))[0]
        got = int(is_theft[: found[1]].sum()) if found is not None and state in FLAGGED else None
        x = SHARES.index(share)
        axis.text(x, y, "never" if got is None else f"{got}", ha="center", va="center", fontsize=12,
                  bbox={"boxstyle": "round", "facecolor": "mistyrose" if got is None else "honeydew", "edgecolor": "none"})  # fmt: skip
axis.set_xticks(range(len(SHARES)), [f"{share:.0%} theft" for share in SHARES])
axis.set_yticks(range(4), ["noise_uniform", "knockoff_random", "jbda", "mixup"])
axis.set_xlim(-0.6, len(SHARES) - 0.4)
axis.set_ylim(3.6, -0.6)
axis.set_title(f"stolen answers when it was flagged, of {QUERIES}")
figure.tight_layout()
plt.show()
seen = [family for family, course in courses.items() if course.caught_at is not None]
print(
    f"flagged without cover: {len(seen)} of {len(FAMILIES)}; visible by content: {sum(ATTACKS[f].visible for f in FAMILIES)}"
)
