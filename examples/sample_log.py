"""A small reference and two small query logs to try the commands on (docs/quickstart.md).

    python examples/sample_log.py FOLDER

FOLDER/reference.jsonl  honest inputs of a tumour classifier, with its answers (scikit-learn's breast cancer table)
FOLDER/traffic.jsonl    a log of honest clients, to calibrate on
FOLDER/log.jsonl        the log to look at: other honest clients and five thefts, one of them over ten accounts of one
                        organisation (`metadata`); FOLDER/log.truth.json says who

Who asks what is simulated from the reference, so a result on these files says how the commands work, not how well.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from consumers.simulate import simulate
from detector.simulation.honest import BENIGN

MODEL = "tumour-v1"
CLIENTS = 120
KINDS = [
    kind for kind in BENIGN if kind not in ("batch_scorer", "load_tester", "monitor")
]  # the busy ones: keep it small
THEFTS = ("noise_uniform", "permuted", "knockoff_random", "in_domain", "noise_uniform/sybil10")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows, labels = load_breast_cancer(return_X_y=True)
    names = [str(name).replace(" ", "_") for name in load_breast_cancer().feature_names]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(rows[:200], labels[:200])
    reference = folder / "reference.jsonl"
    with reference.open("w", encoding="utf-8") as out:
        for row, p in zip(rows[200:].tolist(), model.predict_proba(rows[200:]).round(6).tolist(), strict=True):
            answer = {"label": int(p[1] > 0.5), "probabilities": p}
            event = {"model_id": MODEL, "features": dict(zip(names, row, strict=True)), "prediction": answer}
            out.write(json.dumps(event) + "\n")
    simulate(reference, folder / "traffic.jsonl", clients=CLIENTS, kinds=KINDS, attacks=(), seed=1)
    simulate(
        reference, folder / "log.jsonl", clients=CLIENTS // 2, kinds=KINDS, attacks=THEFTS, queries=(1000, 1500), seed=2,
        linked=True,
    )  # fmt: skip
    print(f"{folder}: reference.jsonl, traffic.jsonl, log.jsonl, log.truth.json")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/sample_log.py FOLDER")
    main(Path(sys.argv[1]))
