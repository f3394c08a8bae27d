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
# # Verifying a watermark
#
# Two clients are suspected and get *marked* answers: at inputs that a secret key selects, about one in two hundred, the
# label is another one. Somewhere a model turns up. Did it learn from marked answers, and from whose? This notebook marks
# answers, trains copies and models that are innocent, and tests all of them.
#
# It imports `consumers.watermark` beside `detector`: marks are no part of detection. In the service the middleware marks,
# the registry remembers, and `querywarden watermark verify` asks the suspect. The images are real (scikit-learn's
# digits), the clients are simulated.

# %%
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

from consumers.watermark.answers import Answer
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.marks import Flip, marked, marks_for
from consumers.watermark.selection import CONTROLS, MOST_FLIPPED, MarkPolicy, digest_of, quantised, select
from consumers.watermark.verification import ClientResult, Question, Questions, judged
from detector.simulation.domain import Rows

rng = np.random.default_rng(21)
MODEL, LABELS = "digits", tuple(range(10))
THIEF, OTHER = "a" * 32, "b" * 32
QUERIES = 5000

# %% [markdown]
# ## Marked answers
#
# Whether an input is marked depends on key and input alone: the same input gets the same answer, whoever asks and however
# often. For each marked input the key selects eight *controls*, which are answered truthfully. Nobody without the key can
# tell the three apart.

# %%
images, digits = load_digits(return_X_y=True)
order = rng.permutation(len(images))
model = ExtraTreesClassifier(60, random_state=0).fit(images[order][:600], digits[order][:600])
key = WatermarkKey(rng.bytes(32))
policy = MarkPolicy(flip_share=MOST_FLIPPED)


def scans(n: int, rng: np.random.Generator) -> Rows:
    """(n, 64) images as a scanner gives them: a real one, brighter or darker, with some noise."""
    chosen = images[order[600:]][rng.integers(0, len(images) - 600, n)]
    return np.asarray(
        np.clip(np.round(chosen * rng.uniform(0.8, 1.2, (n, 1)) + rng.normal(0, 0.8, chosen.shape)), 0, 16)
    )


def answered(client: str, rows: Rows) -> tuple[list[int], list[Question]]:
    """The labels that a suspected client gets, and what the registry remembers of it."""
    given, asked = [], []
    for row, label in zip(rows, model.predict(rows).tolist(), strict=True):
        coarse = quantised(row.tolist())
        chosen = select(key, MODEL, coarse, policy)
        truth = answer = Answer(label)
        if chosen is not None:
            marks = marks_for(truth, chosen.stream, chosen.draw, policy.decimals, LABELS)
            asked.append(Question(client, MODEL, digest_of(key, MODEL, coarse), chosen.treated, row.tolist(), marks))
            answer = marked(truth, marks) if chosen.treated else truth
        given.append(int(str(answer.label)))
    return given, asked


inputs = {THIEF: scans(QUERIES, rng), OTHER: scans(QUERIES, rng)}
answers, registry = {}, {}
for client, rows in inputs.items():
    answers[client], registry[client] = answered(client, rows)
canaries = [question for question in registry[THIEF] if question.treated]
truth = model.predict(inputs[THIEF])
print(f"the thief got {QUERIES:,} answers: {len(canaries)} marked ({(truth != answers[THIEF]).mean():.2%} of its labels), "
      f"{len(registry[THIEF]) - len(canaries)} controls; {CONTROLS} controls are wanted for each")  # fmt: skip

figure, axes = plt.subplots(1, 6, figsize=(10, 2.2))
for axis, question in zip(axes, canaries, strict=False):
    axis.imshow(np.reshape(question.input, (8, 8)), cmap="gray_r")
    (mark,) = question.marks
    if isinstance(mark, Flip):
        axis.set_title(f"it is {model.predict([question.input])[0]},\nit said {mark.target}", fontsize=9)
    axis.axis("off")
figure.suptitle("six marked answers", y=1.06)
plt.show()

# %% [markdown]
# ## The test
#
# The suspect is asked the marked inputs and the controls. A model that never saw the marks errs at both alike: the number
# of marked inputs at which it shows the mark is hypergeometric, whatever model it is. Its p-value is the chance of as
# many or more, corrected for the number of clients.

# %%
Suspect = Callable[[Rows], Rows]


def tested(suspect: Suspect) -> dict[str, ClientResult]:
    """The result for each client, by its name."""
    questions = Questions(tuple(question for mine in registry.values() for question in mine), {})
    said = suspect(np.array([question.input for question in questions.asked]))
    return {result.client: result for result in judged(questions, [Answer(int(label)) for label in said])}


copies = {
    "nearest neighbour": KNeighborsClassifier(1),
    "decision tree": DecisionTreeClassifier(random_state=1),
    "extra trees": ExtraTreesClassifier(40, random_state=1),
    "5 neighbours": KNeighborsClassifier(5),
}
suspects: dict[str, Suspect] = {
    f"copy: {name}": copy.fit(inputs[THIEF], answers[THIEF]).predict for name, copy in copies.items()
}
for i in range(20):
    rows = scans(1500, rng)
    labels = np.where(rng.random(1500) < 0.05, rng.integers(0, 10, 1500), model.predict(rows))
    innocent = (DecisionTreeClassifier(random_state=i) if i % 2 else KNeighborsClassifier(1 + i)).fit(rows, labels)
    suspects[f"innocent {i + 1}"] = innocent.predict
results = {name: tested(suspect) for name, suspect in suspects.items()}

figure, axis = plt.subplots(figsize=(9, 4))
for y, name in enumerate([*(f"copy: {name}" for name in copies), "innocent"]):
    mine = [result for who, result in results.items() if who == name or who.startswith(f"{name} ")]
    for client, color, label in ((THIEF, "firebrick", "for the thief"), (OTHER, "steelblue", "for the other client")):
        p = [max(one[client].p_value, 1e-30) for one in mine]
        axis.plot(p, [y] * len(p), "o", color=color, alpha=0.6, markersize=9, label=label if y == 0 else None)
axis.axvline(1e-6, linestyle=":", color="black")
axis.text(1.3e-6, -0.4, "one in a million", fontsize=9)
axis.set_xscale("log")
axis.set_yticks(range(len(copies) + 1), [*(f"copy: {name}" for name in copies), "20 innocent models"])
axis.set_ylim(len(copies) + 0.5, -0.6)
axis.set_xlabel("p-value: how likely an innocent model shows as many marks")
axis.legend(loc="lower left")
figure.tight_layout()
plt.show()
for name in copies:
    one = results[f"copy: {name}"][THIEF]
    counts = f"{one.shown:2d} of {one.canaries} marks, {one.controls_shown} of {one.controls} controls"
    print(f"copy, {name:18s} shows {counts}: p = {one.p_value:.1g}")
least = min(result.p_value for name, mine in results.items() if name.startswith("innocent") for result in mine.values())
print(f"20 innocent models, two clients each: the smallest p-value is {least:.2g}")

# %% [markdown]
# A copy that repeats what it was told is recognised beyond doubt, and it names the client: the other client's canaries
# are unknown to it. A copy that smooths over its neighbours forgets single labels: five neighbours outvote a mark. Then
# the milder marks in probabilities say more, which are ranked instead of counted (`docs/watermark.md`). A p-value near 1
# never proves innocence.

# %% [markdown]
# ## How many marked answers it takes
#
# The same test of the tree copy, if the thief had been given marked answers for fewer queries.

# %%
sizes = (200, 500, 1000, 2000, 3500, QUERIES)
course = []
for n in sizes:
    copy = DecisionTreeClassifier(random_state=1).fit(inputs[THIEF], [*answers[THIEF][:n], *truth[n:].tolist()])
    known = {digest_of(key, MODEL, quantised(row.tolist())) for row in inputs[THIEF][:n]}
    questions = Questions(tuple(question for question in registry[THIEF] if question.digest in known), {})
    said = copy.predict(np.array([question.input for question in questions.asked]))
    course.append(judged(questions, [Answer(int(label)) for label in said])[0])
figure, axis = plt.subplots(figsize=(7, 3.6))
axis.plot(sizes, [max(one.p_value, 1e-30) for one in course], "o-", color="firebrick")
for n, one in zip(sizes, course, strict=True):
    axis.annotate(
        f"{one.canaries} marks", (n, max(one.p_value, 1e-30)), textcoords="offset points", xytext=(6, 6), fontsize=8
    )
axis.axhline(1e-6, linestyle=":", color="black")
axis.set_yscale("log")
axis.set_xlabel("queries of the thief that were answered with marks")
axis.set_ylabel("p-value")
figure.tight_layout()
plt.show()
enough = next(n for n, one in zip(sizes, course, strict=True) if one.p_value < 1e-6)
print(f"below one in a million from {enough:,} queries on")
