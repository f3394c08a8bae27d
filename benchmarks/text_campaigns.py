"""Thefts of models of texts that are split over accounts which share nothing but the template of their prompts.

    python -m benchmarks.text_campaigns [--short] [--out FILE]

For each victim of `text_detection` a baseline is fitted on honest clients, and other honest clients are its fleet. Then one group of
accounts at a time is added: a theft around one template, or an honest application that many accounts use. Groups are formed by the
product's own functions, from what its rows hold: by fleet cells and odd patches (*without* the link), and by templates (*with* it).

Rules of the file:

* A group is told of if its p-value among groups of one kind is at most 1 %. A theft is found if at least half of the accounts of a group
  told of are its own.
* Templates of thefts are written for this file, and so are `persona` and `format`: rehearsals do not hold them. `own` fills a template
  with texts of the model's domain, and nobody can tell it from an honest application.
* An honest application fills a template of any wording with the texts of honest clients. The foreign application fills it with texts of
  other models: in content it is a theft, and the figures say so.
* The control deals the templates of each added group to random accounts of the whole fleet: whoever finds as much then does not see the
  template.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ours import HALF_HORIZON_MS, KEY, MEMORY_MS
from benchmarks.progress import publish, say
from benchmarks.text_campaign_tables import RESULTS, template_links
from benchmarks.text_detection import VICTIMS, deal, fitted
from detector.baseline import Baseline
from detector.campaigns import assess_group
from detector.features import Measured
from detector.fleet import fleet_cells
from detector.patch_groups import OddAccounts, patch_groups
from detector.patches import listed, smallest, united
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.scoring import assess
from detector.simulation.population import HORIZON_S, account_name, clock
from detector.simulation.text_population import TextStream, text_population
from detector.simulation.texts import TEXT_HONEST, TextPools, Texts
from detector.templates import Sketches, TemplateSketch
from detector.text import digest

ACCOUNTS = 50
THEFTS = {
    "front": "Write an exam question with a worked solution for the following passage and grade it: {foreign}",
    "back": "{foreign} Now rewrite the passage above as a dialogue between a teacher and a student, with corrections.",
    "long": "You are a data generator. Produce one high quality training example about the topic below, with an instruction, an input "
    "and an output, in JSON. Topic: {word}. Context: {foreign}",
    "middle": "{word}: generate a conversation in which two experts argue about it, then summarise. Source: {foreign}",
    "short": "{foreign} Explain this in detail.",
    "own": "Write an exam question with a worked solution for the following passage and grade it: {item}",
}
"""Templates of thefts; foreign: a text of another model, word: one of its words, item: a text of the model's domain."""
APPLICATIONS = {
    "support": "You are the assistant of our support team. Ticket: {item} Be polite.",
    "translation": "Translate into Danish: {item}",
    "persona": "Imagine you are a grumpy wizard from the northern mountains and reply in rhymes about dragons to this: {item}",
    "format": "{item} Turn the above into a haiku, an emoji summary and three hashtags for my fitness blog.",
    "exam": "Read each item with care. Every item has exactly one best answer. Mark your answer clearly and go on. Item: {item}",
    "reasoning": "Please think carefully, explain every step of your reasoning, then answer: {item}",
}
"""Templates of honest applications."""
TOOLS = ("evaluator", "robustness", "tester", "editor")
"""Honest kinds that are odd, or near to it; an organisation lets many accounts use one of them behind its own prompt."""


@dataclass(frozen=True, slots=True)
class Plan:
    """clients: to calibrate on; fleet: honest accounts beside each group; sizes: median prompts of an account of a theft."""

    victims: tuple[str, ...] = tuple(VICTIMS)
    clients: int = 240
    fleet: int = 1000
    sizes: tuple[int, ...] = (15, 40)
    seed: int = 1732


@dataclass(frozen=True, slots=True)
class Account:
    """What a row says of an account, and its profile."""

    profile: Profile
    p: float
    oddest: str
    patches: tuple[int, ...]
    templates: tuple[int, ...]


def filled(template: str, n: int, pools: TextPools, items: Texts, rng: np.random.Generator) -> Texts:
    """n prompts of a template. items: (≥ n) texts of the model's domain."""
    picks = rng.integers(0, len(pools.generic), n).tolist()
    return [
        template.format(word=pools.generic[i][0], foreign=pools.generic[i][1], item=item)
        for i, item in zip(picks, items, strict=False)
    ]


def accounts(
    template: str,
    pools: TextPools,
    rng: np.random.Generator,
    median: float,
    *,
    spread: float = 0.5,
    cover: bool = False,
    kind: str = "",
) -> list[TextStream]:
    """`ACCOUNTS` accounts that use one template; cover: half of their texts are those of people who type; kind: fills it, if honest."""
    out = []
    for _ in range(ACCOUNTS):
        n = int(np.clip(round(median * np.exp(spread * rng.normal())), 5, 1500))
        items = TEXT_HONEST[kind].make(pools, n, rng) if kind else pools.items(n, rng)
        texts = filled(template, n, pools, items, rng)
        if cover:
            texts += TEXT_HONEST["free"].make(pools, n, rng)
            texts = [texts[i] for i in rng.permutation(len(texts)).tolist()]
        times = clock(len(texts), rng, 0.0, HORIZON_S)
        out.append(TextStream(account_name(rng), "", "", "", "", texts, np.zeros(len(texts), np.bool_), times))
    return out


def account(baseline: Baseline, stream: TextStream) -> Account:
    """What the product keeps of an account."""
    encoder = baseline.map.schema.encoder
    if encoder is None:
        raise RuntimeError("a baseline of texts has an encoder")
    n = len(stream.texts)
    read = [encoder.read(text) for text in stream.texts]
    batch = QueryBatch(
        [stream.client], np.zeros(n, np.int32), np.array([row for row, _ in read]), np.full(n, -1, np.int32), np.empty((n, 0), np.float32),
        np.ones(n), np.round(stream.times_s * 1000).astype(np.int64), np.ones(n, np.float32), np.arange(n), np.zeros(n, np.uint8),
        np.array([digest(t) for t in stream.texts], np.uint64), np.array([hashes for _, hashes in read]),
    )  # fmt: skip
    sketches, patches = Sketches([TemplateSketch()]), list[tuple[int, ...]]([()])

    def look(poll: QueryBatch, measured: Measured) -> None:
        sketches.note(poll.who, measured.templates, measured.raw)
        patches.append(united(patches.pop(), smallest(poll.who, measured.patches).get(0, ())))

    table = ProfileTable(
        baseline.map, baseline.table, baseline.calibration_version, HALF_HORIZON_MS, memory_ms=MEMORY_MS
    )
    [profile] = table.of_log(batch, KEY, measured=look)
    said = assess(profile, baseline)
    level = baseline.calibration.templates.level
    return Account(profile, said.size_p_value, said.oddest, patches[0], tuple(sketches[0].foreign(level)))


def groups(baseline: Baseline, fleet: Sequence[Account]) -> dict[str, list[list[int]]]:
    """The groups that the product proposes, by kind of link: places in the fleet."""
    p_values = np.array([one.p for one in fleet])
    calibration = baseline.calibration
    odd = baseline.size_null.honest_p_values()[0]

    def tied(mine: Sequence[Sequence[int]], honest: OddAccounts) -> list[list[int]]:
        return [one.accounts.tolist() for one in patch_groups(OddAccounts.of(p_values, _words(mine)), honest)]

    return {
        "content": [c.accounts.tolist() for c in fleet_cells(p_values, [one.oddest for one in fleet], baseline.size_null)],
        "odd_patch": tied([one.patches for one in fleet], OddAccounts.of(odd, _words(listed(calibration.patches)))),
        "template": tied(
            [one.templates for one in fleet],
            OddAccounts.of(np.zeros(len(calibration.templates)), _words(listed(calibration.templates.hashes))),
        ),
    }  # fmt: skip


def _words(of_each: Sequence[Sequence[int] | None]) -> list[list[str] | None]:
    return [None if some is None else [str(one) for one in some] for some in of_each]


def told_of(baseline: Baseline, honest: Sequence[Account], added: Sequence[Account]) -> dict[str, Any]:
    """By kind of link the group that holds most of the accounts added, and both p-values of it."""
    fleet = [*honest, *added]
    found: dict[str, Any] = {}
    for kind, some in groups(baseline, fleet).items():
        for group in sorted(some, key=lambda g: -sum(i >= len(honest) for i in g))[:1]:
            profiles = [fleet[i].profile for i in group]
            of_added = sum(i >= len(honest) for i in group)
            found[kind] = {
                "accounts": len(group),
                "added": of_added,
                "p": round(assess_group(profiles, baseline).p_value, 4),
                "by_content": round(assess_group(profiles, baseline, by_content=True).p_value, 4),
            }
    return found


def dealt(honest: Sequence[Account], added: Sequence[Account], rng: np.random.Generator) -> list[Account]:
    """The fleet with the templates of the accounts added dealt to random accounts: the control."""
    fleet = [*honest, *added]
    order = rng.permutation(len(fleet)).tolist()
    return [replace(one, templates=fleet[i].templates) for one, i in zip(fleet, order, strict=True)]


def run_victim(name: str, plan: Plan) -> dict[str, Any]:
    began = time.monotonic()
    rng = np.random.default_rng([plan.seed, *name.encode()])
    shares = deal(name)
    pools = shares.pools(1)
    baseline = fitted(name, shares.reference, text_population(shares.pools(0), rng, clients=plan.clients))
    say(name, f"fitted after {time.monotonic() - began:.0f} s")
    honest = [account(baseline, s) for s in text_population(pools, rng, clients=plan.fleet)]
    thieves = replace(pools, pool=shares.own)
    foreign = replace(pools, pool=shares.foreign)
    added: dict[str, tuple[str, list[TextStream]]] = {}
    for template, words in THEFTS.items():
        for size in plan.sizes:
            for cover in (False, True):
                streams = accounts(words, thieves, rng, size, cover=cover)
                added[f"{template}/{size}/{'half' if cover else 'none'}"] = ("theft", streams)
    for template, words in APPLICATIONS.items():
        added[f"{template}/honest"] = ("honest application", accounts(words, pools, rng, 60, spread=1.0))
        added[f"{template}/foreign"] = ("foreign application", accounts(words, foreign, rng, 60, spread=1.0))
    for kind in TOOLS:
        streams = accounts(APPLICATIONS["persona"], pools, rng, 60, spread=1.0, kind=kind)
        added[f"{kind}/honest"] = ("organisation", streams)
    cases = {}
    for case, (kind, streams) in added.items():
        theirs = [account(baseline, s) for s in streams]
        odd = sum(one.p <= 0.05 for one in theirs)
        control = groups(baseline, dealt(honest, theirs, rng))["template"]
        cases[case] = {"kind": kind, "odd": odd, "found": told_of(baseline, honest, theirs), "control": len(control)}
    alone = {kind: len(some) for kind, some in groups(baseline, honest).items()}
    say(name, f"done in {time.monotonic() - began:.0f} s")
    return {"honest_odd": sum(one.p <= 0.05 for one in honest), "honest_alone": alone, "cases": cases}


def main() -> None:
    parser = argparse.ArgumentParser(description="Thefts of models of texts that only their template ties.")
    parser.add_argument("--short", action="store_true", help="one victim, one size; prints only")
    parser.add_argument("--out", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    plan = Plan(victims=("manuals",), clients=150, fleet=300, sizes=(40,)) if arguments.short else Plan()
    results: dict[str, Any] = {"plan": json.loads(json.dumps(asdict(plan))), "victims": {}}
    for name in plan.victims:
        results["victims"][name] = run_victim(name, plan)
        publish(results, arguments.out or (None if arguments.short else RESULTS))
        print(template_links(results))


if __name__ == "__main__":
    main()
