"""A service loads neither what only fitting needs nor the simulated thieves, whatever it imports when it starts: start-up and memory."""

from __future__ import annotations

import subprocess
import sys

STARTED = (
    "consumers.baselines, consumers.ingest.loop, consumers.detect.loop, consumers.http.server, "
    "consumers.wiring.processes, consumers.wiring.serve"
)
UNWANTED = ("detector.fitting", "detector.simulation", "scipy.special", "scipy.stats", "sklearn")
LOADED = f"import sys; print(*sorted(m for m in sys.modules if m.startswith({UNWANTED})))"


def loaded_by(imports: str) -> str:
    command = [sys.executable, "-c", f"import {imports}; {LOADED}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_service_loads_neither_fitting_nor_simulation_nor_scipy() -> None:
    assert loaded_by(STARTED) == ""


def test_the_question_would_notice() -> None:
    assert "detector.simulation.attacks" in loaded_by("consumers.fit")
