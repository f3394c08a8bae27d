"""What the lanes of `make test` need before the first test: compiled kernels and one baseline, made once and in halves.

A clean clone has no compiled kernel, and all of them together take as long as a hundred tests. Lanes that start at once would each
compile all of them. Rules:

* Each half compiles kernels that the other one does not: reading events and storing profiles, or measuring, folding and calibrating.
* A lane takes a half that nobody took, if there is one, and waits until both are done.
* The baseline of `victims` lies in the lanes' folder afterwards, so it is fitted once.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from support import victims

from consumers.log import Records
from consumers.log.formats import InputReader, NativeFormat
from consumers.log.references import read_reference, reference_batch
from consumers.schemas import infer_schema
from detector.baseline_file import pack_baseline
from detector.fitting.feature_map import fit_feature_map
from detector.profile_table import ProfileTable
from detector.signals import signal_table

PATIENCE_S = 240.0
"""How long a lane waits for the other half; then it compiles itself what is missing."""


def baseline(folder: Path) -> None:
    """Fit the baseline of `victims`: measure, fold, calibrate, rehearse."""
    whole = pack_baseline(victims.baseline())
    (folder / "writing").write_bytes(whole)
    (folder / "writing").replace(folder / victims.KEPT)


def records(folder: Path) -> None:
    """Decode events, and write and read profiles, without one fold."""
    del folder
    raw = read_reference(victims.reference_lines(victims.WIDTH), victims.MODEL)
    schema = infer_schema(raw)
    lines = [victims.line(row, client_id=f"c-{i % 3}") for i, row in enumerate(victims.reference_rows()[:20])]
    where = Records("log:0", lines, np.arange(len(lines), dtype=np.int64), len(lines))
    NativeFormat({victims.MODEL: InputReader(schema)}).decode(where)
    reference, _ = reference_batch(raw, schema)
    few = reference.take(np.arange(200))
    feature_map = fit_feature_map(schema, few.inputs, few.labels, few.probabilities, np.random.default_rng(1))
    profiles = ProfileTable(feature_map, signal_table(), "00" * 8, 86_400_000, 2, memory_ms=8.64e9)
    profiles.put("one", None)
    (packed,) = profiles.packed(["one"])
    profiles.put_packed({"another": list(packed.spans.values())})


HALVES = (baseline, records)


def prepare(folder: Path) -> None:
    """Do the first half that no other lane took, and wait for what others do."""
    victims.keep_in(folder)
    for half in HALVES:
        try:
            (folder / f"taken-{half.__name__}").touch(exist_ok=False)
        except FileExistsError:
            continue
        half(folder)
        (folder / f"done-{half.__name__}").touch()
        break
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        missing = [half for half in HALVES if not (folder / f"done-{half.__name__}").exists()]
        if not missing:
            return
        time.sleep(0.1)
