"""Names of findings in public frameworks: rows of MITRE ATLAS, OWASP and NIST, each with its version.

Rules: a name is written exactly as its framework prints it. A new release of a framework changes this file only.
"""

from __future__ import annotations

from typing import NamedTuple

ATLAS = "MITRE ATLAS"
ATLAS_VERSION = "5.6"


class Technique(NamedTuple):
    """A row of ATLAS: tactic → technique → sub-technique (empty where there is none)."""

    tactic_uid: str
    tactic: str
    uid: str
    name: str
    sub_uid: str = ""
    sub: str = ""


EXTRACTION = Technique(
    "AML.TA0010", "Exfiltration",
    "AML.T0024", "Exfiltration via AI Inference API",
    "AML.T0024.002", "Extract AI Model",
)  # fmt: skip
RELATED = (
    Technique("AML.TA0001", "AI Attack Staging", "AML.T0005", "Create Proxy AI Model",
              "AML.T0005.001", "Train Proxy via Replication"),
    Technique("AML.TA0000", "AI Model Access", "AML.T0040", "AI Model Inference API Access"),
)  # fmt: skip
TECHNIQUES = (EXTRACTION, *RELATED)
"""The finding itself first, then what goes with it."""

TAGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("OWASP Machine Learning Security Top 10", ("ML05:2023 Model Theft",)),
    ("OWASP Top 10 for LLM Applications", ("LLM10:2025 Unbounded Consumption",)),
    ("OWASP AISVS 1.0", ("C11.3.1", "C11.3.4", "C11.2.2")),
    ("NIST AI 100-2 E2025", ("NISTAML.031 Model Extraction",)),
)
"""(framework, ids) of every finding."""
