"""The page of an evaluation: which simulated thefts would be caught, after how many queries, at what exposure, and what was not simulated.

Rules: one HTML file that stands alone, without a script; the limits stand above the table. `consumers.evaluate` makes the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from consumers import atomic_file
from consumers.legible import legible
from consumers.readers.charts import escape
from detector.exposure import Exposure

ROW_PX, LEFT_PX, RIGHT_PX, TOP_PX = 22, 250, 30, 34


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedFamily:
    """All simulated thefts of one family and variant.

    visible   whether content can tell this family from honest use at all
    queries   queries sent when each caught theft was caught, ascending; median: of these, None where none was
    exposure  at that moment, median of the estimate and of both ends of its interval; missed_exposure: of thefts that were not caught, at
              their end. None where it is not known
    signal    the most frequent leading signal
    """

    family: str
    variant: str
    text: str
    visible: bool
    thefts: int
    caught: int
    queries: tuple[int, ...]
    median: int | None
    exposure: Exposure | None
    missed_exposure: Exposure | None
    signal: str


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation found. stolen: answers that each theft was after; limits: sentences, never empty."""

    model_id: str
    budget: float
    stolen: int
    families: tuple[EvaluatedFamily, ...]
    limits: tuple[str, ...]

    @property
    def thefts(self) -> int:
        return sum(row.thefts for row in self.families)

    @property
    def caught(self) -> int:
        return sum(row.caught for row in self.families)


def share_words(exposure: Exposure | None) -> str:
    """Exposure with its interval."""
    if exposure is None:
        return "–"
    return f"{100 * exposure.fidelity:.0f} % ({100 * exposure.low:.0f}–{100 * exposure.high:.0f})"


def write_page(path: Path, report: EvaluationReport) -> None:
    """Write the page. Raises Refused when the file can't be written."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: legible(value, keep="\N{NO-BREAK SPACE}") if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shares=share_words, thousands=lambda n: f"{n:,}")
    page = environment.get_template("evaluation.html.j2").render(report=report, figure=figure(report))
    with atomic_file.whole(path) as draft:
        draft.write_text(page, encoding="utf-8")


def figure(report: EvaluationReport, width: int = 1000) -> str:
    """A line for each family and variant: a disc where a theft was caught, a ring at the end for each that was not. As SVG."""
    most = max((max(row.queries, default=1) for row in report.families), default=1)
    most = max(most, 2 * report.stolen)
    height = TOP_PX + ROW_PX * len(report.families) + 12

    def at(queries: float) -> float:
        return LEFT_PX + (width - LEFT_PX - RIGHT_PX) * math.log10(max(queries, 1)) / math.log10(most)

    label = "Queries sent when each simulated theft was caught, by family"
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{label}">']
    for power in range(int(math.log10(most)) + 1):
        x = at(10.0**power)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP_PX - 8}" x2="{x:.1f}" y2="{height - 8}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{TOP_PX - 14}" text-anchor="middle">{10**power:,}</text>')
    for i, row in enumerate(report.families):
        y = TOP_PX + ROW_PX * (i + 0.5)
        parts.append(f'<text class="name" x="{LEFT_PX - 12}" y="{y + 4:.1f}" text-anchor="end">{_name(row)}</text>')
        parts += _marks(row, [at(q) for q in row.queries], at(most), y)
    return "".join([*parts, "</svg>"])


def _name(row: EvaluatedFamily) -> str:
    return escape(f"{row.family}, {row.variant}")


def _marks(row: EvaluatedFamily, caught: Sequence[float], end: float, y: float) -> list[str]:
    marks = [f'<circle class="caught" cx="{x:.1f}" cy="{y:.1f}" r="5"/>' for x in caught]
    if missed := row.thefts - row.caught:
        title = f"<title>{missed} of {row.thefts} not caught</title>"
        marks.append(f'<circle class="missed" cx="{end:.1f}" cy="{y:.1f}" r="5">{title}</circle>')
        marks.append(f'<text class="tick" x="{end + 9:.1f}" y="{y + 4:.1f}">{missed}</text>')
    return marks
