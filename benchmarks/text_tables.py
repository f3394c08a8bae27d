"""Tables of the detection benchmark on texts, from its committed figures; see `benchmarks.text_detection`.

Rules of the file: plain Python, so that the pages of the docs can be made without the benchmark's packages. A rate of honest clients
never comes without its interval; each was tested once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.evaluation import Rate

RESULTS = Path(__file__).parent / "results" / "texts.json"
EMBEDDING_RESULTS = RESULTS.parent / "text_embeddings.json"
MEANING_RESULTS = RESULTS.parent / "text_meanings.json"
VARIANTS = ("plain", "drip50", "drip5")
CONTROL = "in_domain"
OURS, AMONG_USUAL = "QueryWarden", "QueryWarden, among usual clients only"
WORDS, BOTH = f"{OURS}, words", f"{OURS}, words and embeddings"
VECTORS = "vectors"
"""The victim whose input is an embedding."""
Results = dict[str, Any]
Cells = dict[str, list[int]]


def read() -> Results:
    """The committed figures."""
    found: Results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def _rate(cells: Iterable[list[int]]) -> Rate:
    return sum((Rate(*cell) for cell in cells), Rate(0, 0))


def _share(rate: Rate) -> str:
    return "–" if not rate.trials else f"{rate.share:.2f}"


def _with_interval(rate: Rate, repeats: float) -> str:
    """A share with the interval of the distinct thefts; each was tested `repeats` times."""
    low, high = Rate(rate.hits / repeats, rate.trials / repeats).interval
    return f"{_share(rate)} ({low:.2f} – {high:.2f})"


def _row(name: str, method: str, cells: list[Cells], splits: float) -> str:
    alarms = _rate(c for one in cells for kind, c in one.items() if "/" not in kind)
    low, high = alarms.interval
    caught = [
        _rate(c for one in cells for kind, c in one.items() if kind.endswith(f"/{v}") and not kind.startswith(CONTROL))
        for v in VARIANTS
    ]
    control = _rate(c for one in cells for kind, c in one.items() if kind.startswith(f"{CONTROL}/"))
    shown = " | ".join((*(_with_interval(rate, splits) for rate in caught), _share(control)))
    shown_method = method.replace("@ 0.01", "@ 1 %").replace("@ 0.003", "@ 0.3 %")
    return f"| {name} | {shown_method} | {alarms.share:.1%} ({low:.1%} – {high:.1%}) | {shown} |\n"


def methods(results: Results) -> str:
    """Each method at each budget, on each victim and on all."""
    victims = results["victims"]
    titles = ("victim", "method @ budget", "false alarms", *VARIANTS, "control")
    lines = f"| {' | '.join(titles)} |\n| --- | --- |{' ---: |' * (len(titles) - 2)}\n"
    for method in next(iter(victims.values())):
        lines += _row("all", method, [found[method] for found in victims.values()], results["splits"])
    for name, found in victims.items():
        lines += "".join(
            _row(f"`{name}`", method, [cells], results["splits"])
            for method, cells in found.items()
            if method.startswith(f"{OURS} @")
        )
    return lines


def families(results: Results) -> str:
    """Ours by family at the 1 % budget, over all victims."""
    found = [methods[f"{OURS} @ 0.01"] for methods in results["victims"].values()]
    names = list(dict.fromkeys(kind.partition("/")[0] for one in found for kind in one if "/" in kind))
    lines = f"| theft | {' | '.join(VARIANTS)} |\n| --- |{' ---: |' * len(VARIANTS)}\n"
    for name in names:
        rates = [_rate(one[f"{name}/{v}"] for one in found if f"{name}/{v}" in one) for v in VARIANTS]
        lines += f"| `{name}` | {' | '.join(map(_share, rates))} |\n"
    return lines


def text_by_text(results: Results) -> str:
    """Share of each theft's texts beyond the level of honest ones, by words and with sentence embeddings, a column a victim."""
    victims, how = results["texts"], ("words", "words and embeddings")
    lines = f"| theft | {' | '.join(f'`{v}`: {h}' for v in victims for h in how)} |\n| --- |{' ---: |' * 2 * len(victims)}\n"
    for family in next(iter(victims.values()))["words"]["beyond"]:
        shares = (found[h]["beyond"][family] / results["each"] for found in victims.values() for h in how)
        lines += f"| `{family}` | {' | '.join(f'{share:.2f}' for share in shares)} |\n"
    return lines


def read_embeddings() -> Results:
    """The committed figures of sentence embeddings."""
    found: Results = json.loads(EMBEDDING_RESULTS.read_text(encoding="utf-8"))
    return found


def read_whole_clients() -> Results:
    """The committed figures of whole clients with sentence embeddings."""
    found: Results = json.loads(MEANING_RESULTS.read_text(encoding="utf-8"))
    return found


def meanings(results: Results) -> str:
    """Each method at each budget: on all models of texts together, and on each at the first budget if there are several."""
    victims = results["victims"]
    of_texts = [found for name, found in victims.items() if name != VECTORS]
    titles = ("victim", "method @ budget", "false alarms", *VARIANTS, "control")
    lines = f"| {' | '.join(titles)} |\n| --- | --- |{' ---: |' * (len(titles) - 2)}\n"
    several = len(of_texts) > 1
    for method in of_texts[0] if several else ():
        lines += _row("texts", method, [found[method] for found in of_texts], results["splits"])
    for name, found in victims.items():
        lines += "".join(
            _row(f"`{name}`", method, [cells], results["splits"])
            for method, cells in found.items()
            if not several or name == VECTORS or method.endswith(" @ 0.01")
        )
    return lines


def by_family_and_encoder(results: Results) -> str:
    """Ours by family, by words and with embeddings, on all models of texts at the 1 % budget."""
    victims = [found for name, found in results["victims"].items() if name != VECTORS]
    names = list(dict.fromkeys(kind.partition("/")[0] for kind in victims[0][f"{BOTH} @ 0.01"] if "/" in kind))
    how = {WORDS: "words", BOTH: "words and embeddings"}
    lines = f"| theft | {' | '.join(f'{v}: {h}' for v in VARIANTS for h in how.values())} |\n"
    lines += f"| --- |{' ---: |' * len(how) * len(VARIANTS)}\n"
    for name in names:
        found = [[one[f"{h} @ 0.01"] for one in victims] for h in how]
        rates = [_rate(o[f"{name}/{v}"] for o in one if f"{name}/{v}" in o) for v in VARIANTS for one in found]
        lines += f"| `{name}` | {' | '.join(map(_share, rates))} |\n"
    return lines


TABLES: dict[str, Callable[[Results], str]] = {"bench-text": methods, "bench-text-families": families}
EMBEDDING_TABLES: dict[str, Callable[[Results], str]] = {
    "bench-text-embeddings": text_by_text,
}
MEANING_TABLES: dict[str, Callable[[Results], str]] = {
    "bench-text-meanings": meanings,
    "bench-text-meanings-families": by_family_and_encoder,
}
"""Generated region of docs/text.md → its table."""
