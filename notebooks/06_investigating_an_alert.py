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
# # Investigating an alert from its evidence bundle
#
# Somebody hands you a file and says: this client copied the model. This notebook is for whoever must judge that, without
# access to the service. It checks that the file is whole and follows from the one before it, assesses the profile again,
# and looks at what the client did: what was odd, where it asked, and when suspicion rose.
#
# It imports `consumers.readers`, which reads and checks bundles, beside `detector`. The first cell plays the service:
# a model (scikit-learn's wine table), simulated clients, an alert, and two bundles from the command line.

# %%
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression

from consumers.errors import InvalidInput
from consumers.readers import custody, evidence
from consumers.records.spans import read_span, together
from detector.baseline_file import read_baseline
from detector.scoring import assess
from detector.signals import SIGNAL_NAMES, measure

rng = np.random.default_rng(2)
folder = Path(tempfile.mkdtemp())


def querywarden(*words: str) -> str:
    """What the command prints."""
    own = {"QUERYWARDEN_STATE_DIR": str(folder), "QUERYWARDEN_BASELINES": str(folder / "wine.baseline")}
    command = [sys.executable, "-m", "consumers", *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True, check=True)  # noqa: S603 — our own command
    return done.stdout


table, kinds = load_wine(return_X_y=True)
table = np.round(table, 2)
model = LogisticRegression(max_iter=5000).fit(table / table.std(axis=0), kinds)
blend = rng.uniform(0, 0.4, (600, 1))
first = rng.integers(0, len(table), 600)
other = np.array([rng.choice(np.flatnonzero(kinds == kinds[i])) for i in first])
rows = np.round(table[first] * (1 - blend) + table[other] * blend, 2)
answers = np.round(model.predict_proba(rows / table.std(axis=0)), 3)
with (folder / "reference.jsonl").open("w") as file:
    for row, p in zip(rows.tolist(), answers.tolist(), strict=True):
        file.write(json.dumps({"model_id": "wine", "features": row, "prediction": {"probabilities": p}}) + "\n")
simulated = ("simulate", "--reference", "reference.jsonl", "--model-id", "wine")
querywarden(*simulated, "--out", "traffic.jsonl", "--clients", "100", "--attack", "in_domain", "--seed", "1")
querywarden(
    "fit",
    "--model-id",
    "wine",
    "--reference",
    "reference.jsonl",
    "--traffic",
    "traffic.jsonl",
    "--out",
    "wine.baseline",
)
querywarden(
    *simulated, "--out", "week.jsonl", "--clients", "40", "--attack", "noise_gauss", "--attack", "mixup", "--seed", "2"
)
querywarden(
    "replay", "week.jsonl", "--baseline", "wine.baseline", "--store", "querywarden.sqlite", "--alerts", "alerts.jsonl"
)
alerts = [json.loads(line) for line in (folder / "alerts.jsonl").read_text().splitlines()]
for number, alert in enumerate(alerts[:2], 1):
    querywarden("evidence", alert["client_id"], "--out", f"case-{number}.zip")
print(f"{len(alerts)} alerts; bundles: {', '.join(sorted(path.name for path in folder.glob('*.zip')))}")

# %% [markdown]
# ## Is the file whole?
#
# The manifest names every member with its hash, and is signed. Anybody can sign a file, so the fingerprint of the key must
# come from elsewhere: ask the owner by another way. One changed byte is found.

# %%
blob, baseline_blob = (folder / "case-1.zip").read_bytes(), (folder / "wine.baseline").read_bytes()
checked = evidence.verify(blob, baseline_blob)
print(
    f"signed by key {checked.signer}; {len(checked.members)} members; assessed again: {len(checked.differences)} differences"
)
found = 0
for at in rng.integers(100, len(blob) - 100, 40):
    tampered = bytearray(blob)
    tampered[at] ^= 1
    try:
        found += evidence.verify(bytes(tampered), baseline_blob).digest != checked.digest
    except InvalidInput:
        found += 1
print(f"{found} of 40 bundles with one changed bit are refused")

# %% [markdown]
# ## Does it stand in a chain?
#
# Each bundle names the one before it by its hash, and the audit log of the service holds a row of each. So none can be
# left out or made afterwards without a trace, as long as one of them, or the end of the log, had left the house.

# %%
second = evidence.verify((folder / "case-2.zip").read_bytes(), baseline_blob)
missing = custody.follow([checked, second])
log = (folder / "audit.jsonl").read_bytes().splitlines()
row = custody.recorded(checked, log)
print(
    f"bundle {second.manifest.number} follows from bundle {checked.manifest.number}; missing in between: {missing or 'none'}"
)
print(f"the audit log has {row.rows} rows, all chained; row {row.row} is this bundle")
rows_alone = [line for line in log if not line.startswith(b'{"head":')]
try:
    custody.recorded(second, rows_alone[1:])
except InvalidInput as error:
    print(f"without its first row the log is refused: {error}")

# %% [markdown]
# ## What was odd
#
# The profile in the bundle holds no query, only counts and marks. Assessed again, with the baseline that the manifest
# names, it gives the signals in units of the honest clients with the highest values.

# %%
baseline = read_baseline(baseline_blob)
spans = [read_span(part.cell, part.window, checked.members[part.member], baseline) for part in checked.manifest.profile]
profile = together(spans)
assert profile is not None
again = assess(profile, baseline, checked.manifest.log_cells, checked.manifest.persona)
values = measure(profile, baseline.table).lifetime / baseline.calibration.scale
best = np.argsort(-values)[:8][::-1]
figure, axes = plt.subplots(1, 2, figsize=(12, 4), width_ratios=(1.4, 1))
axes[0].barh([SIGNAL_NAMES[i] for i in best], values[best], color="firebrick")
axes[0].axvline(1, color="black", linestyle=":")
axes[0].set_xlabel("excess, in units of the oddest honest clients")
asked = profile.region_counts / profile.queries
x, y = baseline.map.region_at.T
axes[1].scatter(x, y, s=4000 * baseline.map.region_share, facecolors="none", edgecolors="grey", label="honest use")
axes[1].scatter(x, y, s=4000 * asked, color="firebrick", alpha=0.5, label="this client")
axes[1].set_xticks([])
axes[1].set_yticks([])
axes[1].set_title("where it asked: regions of the input space")
figure.tight_layout()
plt.show()
print(f"suspicion {again.suspicion:.5f} after {profile.queries} queries, {profile.distinct:.0f} of them distinct")
for one in again.evidence[:3]:
    print(f"    {one.text}")

# %% [markdown]
# ## When suspicion rose, and what was decided
#
# The decision in the bundle has the moments at which suspicion first reached each level, and the state with its reason.

# %%
decision: dict[str, Any] = json.loads(checked.members["decision.json"])
trail = np.array([[queries, 1 - suspicion, ms] for queries, suspicion, ms in decision["trail"]])
figure, axis = plt.subplots(figsize=(8, 3.6))
axis.step(trail[:, 0], np.maximum(trail[:, 1], 1e-8), where="post", color="firebrick")
for level, name in ((0.05, "watch"), (0.01, "throttle"), (0.001, "block")):
    axis.axhline(level, color="grey", linestyle=":")
    axis.text(trail[-1, 0], level, name, ha="right", va="bottom", fontsize=9)
axis.set_yscale("log")
axis.set_xlabel("queries")
axis.set_ylabel("p-value")
axis.set_title("how rare such a client is among honest ones")
figure.tight_layout()
plt.show()
began = datetime.fromtimestamp(trail[0, 2] / 1000, UTC)
print(
    f"state {decision['state']} ({decision['reason']}); first evidence at query {trail[0, 0]:.0f}, {began:%Y-%m-%d %H:%M} UTC"
)
print("what a verdict still needs: was this use agreed upon? The bundle says what happened, not why.")
