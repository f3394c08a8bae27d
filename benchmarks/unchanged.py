"""Show that two commits judge the same logs the same: scores, alerts and the stored profiles, field by field.

    python -m benchmarks.unchanged --before c0c9a42 --logs DIR             against the working tree
    python -m benchmarks.unchanged --before c0c9a42 --after 3b3b06f --logs DIR

DIR holds, for each model, `NAME.reference.jsonl.gz`, `NAME.calibration.jsonl.gz` and `NAME.test.jsonl.gz`. Each commit is laid
out in a folder of its own and does the whole job with its own code: `fit`, then `replay` into an embedded store. Both use
one file of secrets, so that keyed hashes agree. Compared are

* the lines of `--scores` and `--alerts`, field by field;
* every field of every stored profile, element by element.

Fields that one of the commits does not have are named, and the rest is compared.

The control: `--spoil` changes one number of the second commit's results before they are compared, and the run must then fail.

Exit status: 0 the same, 1 not the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

RENAMED: dict[str, str] = {
    "nulls_version": "calibration_version",
    "cell_counts": "region_counts",
    "sample_root": "sample_novel",
    "path_hash": "sequence_hash",
    "path_bits": "sequence_bits",
    "marks": "maxima",
    "trail_ms": "passage_ms",
    "trail_query": "passage_query",
    "low_hash": "reservoir_hash",
    "low_label": "reservoir_label",
    "low_codes": "reservoir_codes",
    "low_n": "reservoir_n",
}
"""Names of profile fields in the older commit → their names today."""

GONE = frozenset({"volume", "margin_counts", "moments"})
"""Fields that were stored once and read by nothing. A commit may have them or not."""

# Runs inside the commit's own folder, with the commit's own code: stored profiles → a JSON line each.
PROBE = """
import dataclasses, json, sqlite3, sys
import numpy as np
try:
    from detector.baseline_file import read_baseline as from_bytes
except ImportError:
    from detector.baseline import Baseline
    from_bytes = Baseline.from_bytes
from detector.profile import Profile
from detector.profile_shape import Shape

store, baseline = sys.argv[1:]
fitted = from_bytes(open(baseline, "rb").read())
shape = Shape.of(fitted.map, len(fitted.table.need))

def plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in sorted(value.items())}
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value

rows = sqlite3.connect(store).execute(
    "SELECT p.cell, p.client, f.name, f.value FROM fields f JOIN profiles p ON p.id = f.profile "
    "WHERE f.name LIKE 'w:%' ORDER BY p.cell, p.client, f.name")
for cell, client, name, blob in rows:
    print(json.dumps({"key": f"{cell} {client} {name}", **plain(Profile.from_bytes(blob, shape))}))
"""


@dataclass(frozen=True, slots=True)
class Results:
    """What one commit made of one log: lines of scores and alerts, and stored profiles by cell, client and window."""

    scores: list[str]
    alerts: list[str]
    profiles: dict[str, dict[str, Any]]


@contextlib.contextmanager
def laid_out(revision: str | None) -> Iterator[Path]:
    """A folder with a commit's files; the working tree itself for None."""
    if revision is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="querywarden-unchanged-") as folder:
        archive = ["git", "-C", str(ROOT), "archive", revision, "detector", "consumers"]
        packed = subprocess.run(archive, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def results_of(tree: Path, logs: Path, name: str, out: Path, state: Path) -> Results:
    """Fit and replay one log with the code in `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "QUERYWARDEN_STATE_DIR": str(state)}
    if "sealing:" in (tree / "consumers" / "config.py").read_text():
        environment["QUERYWARDEN_STORE__SEALING"] = "off"  # the probe reads profiles as they are

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=out, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"unchanged: {arguments[:4]} in {tree} failed:\n{done.stderr[-2000:]}")
        return done.stdout

    baseline, store = out / f"{name}.baseline", out / f"{name}.sqlite"
    scores, alerts = out / f"{name}.scores.jsonl", out / f"{name}.alerts.jsonl"
    run(
        "-m", "consumers", "fit", "--model-id", name, "--reference", str(logs / f"{name}.reference.jsonl.gz"),
        "--traffic", str(logs / f"{name}.calibration.jsonl.gz"), "--out", str(baseline),
    )  # fmt: skip
    run(
        "-m", "consumers", "replay", "--baseline", str(baseline), str(logs / f"{name}.test.jsonl.gz"),
        "--scores", str(scores), "--alerts", str(alerts), "--store", str(store),
    )  # fmt: skip
    profiles = [json.loads(line) for line in run("-c", PROBE, str(store), str(baseline)).splitlines()]
    return Results(
        scores.read_text().splitlines(),
        alerts.read_text().splitlines(),
        {profile.pop("key"): profile for profile in profiles},
    )


def differences(before: Results, after: Results) -> Iterator[str]:
    """What is not the same, a line each; nothing if all is the same."""
    for what in ("scores", "alerts"):
        old, new = getattr(before, what), getattr(after, what)
        if len(old) != len(new):
            yield f"{what}: {len(old)} lines before, {len(new)} after"
        lacking: dict[str, int] = {}
        for i, (one, other) in enumerate(zip(old, new, strict=False)):
            if one == other:
                continue
            left, right = json.loads(one), json.loads(other)
            for name in left.keys() ^ right.keys():
                lacking[name] = lacking.get(name, 0) + 1
            for name in left.keys() & right.keys():
                if left[name] != right[name]:
                    yield f"{what}, line {i + 1}, {name}:\n    {left[name]!s:.300}\n    {right[name]!s:.300}"
        yield from (f"{what}: field {name} is in one of them only, {n} times" for name, n in sorted(lacking.items()))
    if before.profiles.keys() != after.profiles.keys():
        yield f"profiles: {len(before.profiles)} spans before, {len(after.profiles)} after, under other keys"
    unlike: dict[str, int] = {}
    for key in before.profiles.keys() & after.profiles.keys():
        old, new = renamed(before.profiles[key]), renamed(after.profiles[key])
        for name in old.keys() | new.keys():
            if name not in old or name not in new or old[name] != new[name]:
                unlike[name] = unlike.get(name, 0) + 1
    yield from (f"profiles: field {name} differs in {count} spans" for name, count in sorted(unlike.items()))


def renamed(value: Any) -> Any:
    """The same value under today's names, without the fields that nothing read."""
    if isinstance(value, dict):
        return {RENAMED.get(name, name): renamed(inner) for name, inner in value.items() if name not in GONE}
    return value


def spoilt(results: Results) -> Results:
    """The same results with one count of one profile changed."""
    key = min(results.profiles)
    profile = {**results.profiles[key], "queries": results.profiles[key]["queries"] + 1}
    return Results(results.scores, results.alerts, {**results.profiles, key: profile})


def main() -> int:
    parser = argparse.ArgumentParser(description="Show that two commits judge the same logs the same.")
    parser.add_argument("--before", required=True, help="the older commit")
    parser.add_argument("--after", help="the newer commit; default: the working tree")
    parser.add_argument("--logs", type=Path, required=True, help="folder of prepared logs")
    parser.add_argument("--only", nargs="*", default=[], help="names of models; default: all in the folder")
    parser.add_argument(
        "--spoil", action="store_true", help="the control: one number is changed, and the run must fail"
    )
    options = parser.parse_args()
    logs = options.logs.resolve()
    names = options.only or sorted(path.name.split(".")[0] for path in logs.glob("*.reference.jsonl.gz"))
    if not names:
        raise SystemExit(f"unchanged: no NAME.reference.jsonl.gz in {logs}")
    failed = False
    with (
        tempfile.TemporaryDirectory(prefix="querywarden-unchanged-") as scratch,
        laid_out(options.before) as old_tree,
        laid_out(options.after) as new_tree,
    ):
        for name in names:
            results = []
            for tree, side in ((old_tree, "before"), (new_tree, "after")):
                out = Path(scratch) / side / name
                state = Path(scratch) / "state"
                out.mkdir(parents=True)
                results.append(results_of(tree, logs, name, out, state))
                shutil.rmtree(out)
            before, after = results
            unlike = list(differences(before, spoilt(after) if options.spoil else after))
            failed = failed or bool(unlike)
            counts = (
                f"{len(before.scores)} scores, {len(before.alerts)} alerts, {len(before.profiles)} spans of profiles"
            )
            sys.stdout.write(f"{name}: {'the same' if not unlike else 'NOT the same'} ({counts})\n")
            sys.stdout.writelines(f"  {line}\n" for line in unlike[:20])
            sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
