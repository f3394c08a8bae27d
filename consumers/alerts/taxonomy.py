"""Names of findings in public frameworks, as sinks write them out: MITRE ATLAS, OWASP and NIST, each with its version.

Rules: a name is written exactly as its framework prints it. Which ids an alert carries is said by `records/frameworks.py`. An alert from
before that names no technique is about extraction all the same, unless it is about the exposure budget.
"""

from __future__ import annotations

from consumers.alerts.finding import Finding
from consumers.records.frameworks import ATLAS_VERSION, FRAMEWORKS, OF_EXTRACTION, Technique, techniques_of

__all__ = ["ACCOMPANYING", "ATLAS", "ATLAS_VERSION", "EXTRACTION", "TAGS", "Technique", "tags", "techniques"]

ATLAS = "MITRE ATLAS"
EXTRACTION = OF_EXTRACTION[0]
ACCOMPANYING = OF_EXTRACTION[1:]
"""What goes with every extraction."""

TAGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("OWASP Machine Learning Security Top 10", ("ML05:2023 Model Theft",)),
    ("OWASP Top 10 for LLM Applications", ("LLM10:2025 Unbounded Consumption",)),
    ("OWASP AISVS 1.0", ("C11.3.1", "C11.3.4", "C11.2.2")),
    ("NIST AI 100-2 E2025", ("NISTAML.031 Model Extraction",)),
)
"""(framework, ids) of every finding."""


def techniques(found: Finding) -> list[Technique]:
    """The rows of ATLAS of a finding, extraction first; none for an alert that accuses nobody."""
    return [] if found.policy == "exposure" else techniques_of([*FRAMEWORKS, *found.frameworks])


def tags(found: Finding) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(framework, ids) of a finding."""
    return (("OWASP AISVS 1.0", ("C11.2.2",)),) if found.policy == "exposure" else TAGS
