"""Fit a baseline: a reference and honest traffic go in, a baseline file comes out.

Rules:
* Without traffic, or with fewer than `MIN_CLIENTS` clients in it, simulated clients that are drawn from the reference calibrate, alone or
  beside the real ones, and the notes say so.
* Every refused line is counted and shown. The file is written completely or not at all.
* The schema is inferred from the reference, unless a schema file is given (docs/formats.md).
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consumers import atomic_file, paths
from consumers.embeddings import KEPT_BY_FIT, SentenceEmbedder
from consumers.errors import InvalidInput, WrongUse
from consumers.log import QueryLog, Records
from consumers.log.formats import InputReader, NativeFormat
from consumers.log.mappings.identity import UNATTRIBUTED
from consumers.log.references import (
    RawReference,
    ReferenceLine,
    input_of,
    lines_of,
    read_reference,
    reference_batch,
    stack,
)
from consumers.misfits import Misfits, Shares
from consumers.refused_lines import RefusedLines
from consumers.schemas import Understood, understand
from consumers.text_fitting import TEXT_REHEARSED, TEXT_STAND_INS, LearnedTexts, learn_texts
from detector.baseline import Baseline
from detector.baseline_file import pack_baseline
from detector.errors import DetectorError
from detector.features import Schema
from detector.fitting.baseline import MIN_CLIENTS, Rehearsed, fit_baseline
from detector.fitting.recalibration import Outlier, first_to_review, outliers
from detector.query import UNKNOWN_MS, QueryBatch
from detector.simulation.domain import Domain, HonestPools, Rows, misrouted_rows, strangers
from detector.simulation.honest import BENIGN
from detector.simulation.population import honest_stream, interleave, population
from detector.simulation.rehearsal import rehearse
from detector.simulation.texts import TEXT_HONEST
from detector.text import Embedder

CAP_A_CLIENT = 200
"""Rows that one client may give to a reference that is derived from traffic."""

SIMULATED_CLIENTS = 400
SIMULATED = "simulated "
"""What their ids begin with; no id of the traffic may be theirs."""
REHEARSED_KINDS = (
    "regular", "batch_scorer", "entity_stream", "what_if", "shifted", "qa_edge", "explainer", "robustness", "misrouted",
)  # fmt: skip
"""Honest clients that bound what a client of the traffic may say about honest use (docs/decisions/0012)."""
TOOLS = ("what_if", "qa_edge", "explainer", "robustness")
"""Those that turn inputs feature by feature; nobody does that to the numbers of an embedding."""
STAND_INS = (*TOOLS, "misrouted")
"""Those that are odd by trade and may come later: some stand among the clients of the traffic (docs/decisions/0016)."""
REHEARSED_A_KIND = 12
REHEARSED_STAND_INS = 24
"""Of each that stands in, for one that went far among few is a matter of luck."""
TEXTS_SEED = 17
"""Of the encoder of texts, so that the rest does not depend on it."""
MANY_COLUMNS = 32
ONE_LENGTH = 0.01


@dataclass(frozen=True, slots=True)
class Fitted:
    """A baseline and what there is to say about it.

    understood  the schema, column by column
    refused     "the reference", "the traffic" → lines that were left out
    misfits     queries of the traffic that do not fit the schema; expected: shares of the reference's rows that do not
    review      clients that its owner should look at
    """

    baseline: Baseline
    said: list[str]
    understood: Understood
    refused: Mapping[str, RefusedLines]
    misfits: Misfits
    expected: Shares
    review: tuple[Outlier, ...] = ()


def fit(
    model_id: str,
    reference: Iterable[bytes | ReferenceLine] | None,
    traffic: QueryLog | None,
    *,
    declared: dict[str, Any] | None = None,
    personas: Mapping[str, str] | None = None,
    excluded: frozenset[str] = frozenset(),
    seed: int = 0,
    exposure: bool = True,
    trust_traffic: bool = False,
    embeddings: bool | Embedder = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Fit a baseline for one model. Raises InvalidInput with one clear line.

    reference  lines of a reference file; None: derived from the traffic, capped per client
    traffic    a log of presumably honest clients; None: simulated from the reference
    personas   client → the use that its owner declared
    excluded   clients of the traffic that are not presumed honest
    exposure   also rehearse thefts, so that the service can say how much a client could have copied (some 10 s)
    trust_traffic  every client of the traffic has a say, however far beyond what honest tools reach in rehearsal
    embeddings  of texts: rows take their axes from sentence embeddings (the extra ``embeddings``), or from those of this embedder
    """
    said: list[str] = []
    rng = np.random.default_rng(seed)
    lines = list(lines_of(traffic)) if traffic is not None else []
    if reference is None:
        if traffic is None:
            raise WrongUse("give --reference, --traffic, or both")
        raw = _derived(lines, model_id, excluded)
        said.append(
            f"no reference given: derived from the traffic, {len(raw.events):,} rows, at most {CAP_A_CLIENT} of one client"
        )
    else:
        progress("reading the reference")
        raw = read_reference(reference, model_id)
    if raw.elsewhere:
        said.append(f"reference: {raw.elsewhere:,} lines of other models left out")
    understood = understand(raw, declared)
    schema, learned = understood.schema, None
    embedder = None if embeddings is False else _embedder(schema, embeddings)
    if schema.of_texts:
        progress("learning the words of the model's domain")
        learned = learn_texts(
            raw, schema, lines, model_id, excluded, np.random.default_rng([seed, TEXTS_SEED]), embedder
        )
        schema = learned.schema
    batch, left_out = reference_batch(raw, schema)
    if reference is not None:  # else they are the traffic's
        left_out.add(dataclasses.replace(raw.refused, lines=raw.refused.total))
    refused, misfits, usual = {"the reference": left_out}, Misfits(), Misfits()
    usual.add(batch, schema)
    batch = _judged(batch, learned, by_client=False)
    _tell(said, "reference", left_out)
    if not len(batch):
        raise InvalidInput(f"no row of the reference can be used ({left_out.words()}; {left_out.first()})")
    honest, stand_ins = None, list[str]()
    if traffic is not None:
        progress("reading the traffic")
        honest, refused["the traffic"] = _queries(lines, model_id, schema, said)
        misfits.add(honest, schema)
        honest = _judged(_presumed_honest(honest, excluded, said), learned, by_client=True)
    if honest is None or 0 < _undeclared(honest, personas or {}) < MIN_CLIENTS:
        progress("simulating honest clients from the reference")
        standing = simulated(batch, schema, rng, learned)
        stand_ins = standing.clients
        honest = standing if honest is None else stack([honest, standing])
    progress("learning what real inputs look like, calibrating on honest clients")
    try:
        baseline, fitted_clients = fit_baseline(
            model_id, schema, batch, honest, rng=rng, simulated=frozenset(stand_ins), personas=personas,
            rehearsed=None if trust_traffic else rehearsal(batch, schema, seed, learned, honest),
            reworded=None if learned is None else learned.reworded_rows(batch),
            rehearse_on=None if trust_traffic or learned is not None else rehearsal_on(batch, schema, seed),
        )  # fmt: skip
    except DetectorError as error:
        raise InvalidInput(str(error)) from error
    if traffic is not None and (first := first_to_review(fitted_clients.clients, fitted_clients.lifetime_maxima)):
        said.append(first_words(first))
    if exposure:
        progress("rehearsing thefts, to learn what a copy would be worth")
        estimator = rehearse(baseline.map, filled(batch, rng), filled(honest, rng), rng)
        if estimator is None:
            said.append("no estimate of exposure: it needs labels or values as answers, and 100 distinct answered rows")
        baseline = dataclasses.replace(baseline, estimator=estimator)
    review: tuple[Outlier, ...] = ()
    if traffic is not None:
        clients = fitted_clients
        review = outliers(clients.clients, clients.lifetime_maxima, clients.excluded, schema.of_texts)
    return Fitted(baseline, [*said, *baseline.notes], understood, refused, misfits, usual.shares(), review)


def _embedder(schema: Schema, given: Literal[True] | Embedder) -> Embedder:
    """What embeds texts while `fit` runs. Raises WrongUse for other inputs, InvalidInput where the extra is missing."""
    if not schema.of_texts:
        raise WrongUse("--embeddings is for models whose inputs are texts")
    return SentenceEmbedder(KEPT_BY_FIT) if given is True else given


def _queries(
    lines: Sequence[ReferenceLine], model_id: str, schema: Schema, said: list[str]
) -> tuple[QueryBatch, RefusedLines]:
    """The queries of the traffic, and what was refused of it. Raises InvalidInput where no query is left."""
    found, refused = _decode(lines, model_id, schema)
    _tell(said, "traffic", refused)
    if found is None:
        told = f" ({refused.words()}; {refused.first()})" if refused.total else ""
        raise InvalidInput(f"the traffic holds no usable query of model {model_id}{told}")
    return found, refused


def _judged(batch: QueryBatch, learned: LearnedTexts | None, by_client: bool) -> QueryBatch:
    """The batch as it may be judged: of texts with rows of encoders that did not learn from them."""
    return batch if learned is None else learned.held_out(batch, by_client)


def _presumed_honest(traffic: QueryBatch, excluded: frozenset[str], said: list[str]) -> QueryBatch:
    """The traffic without excluded clients."""
    if UNATTRIBUTED in traffic.clients:
        said.append(f"the client {UNATTRIBUTED} stands for everybody whom the log does not name: not calibrated on")
        nobody = traffic.clients.index(UNATTRIBUTED)
        traffic = traffic.take(np.flatnonzero(traffic.who != nobody))
    if not excluded:
        return traffic
    out = np.array([client in excluded for client in traffic.clients], np.bool_)
    unknown = len(excluded) - int(out.sum())
    said.append(f"excluded: {int(out.sum())} clients{f', {unknown} more are not in the traffic' if unknown else ''}")
    return traffic.take(np.flatnonzero(~out[traffic.who]))


def _undeclared(traffic: QueryBatch, personas: Mapping[str, str]) -> int:
    """Clients of the traffic without a persona."""
    return sum(traffic.clients[i] not in personas for i in np.unique(traffic.who))


def simulated(
    reference: QueryBatch, schema: Schema, rng: np.random.Generator, learned: LearnedTexts | None = None
) -> QueryBatch:
    """Simulated honest clients of all kinds, in place of traffic or beside it. learned: where inputs are texts."""
    if learned is not None:
        shares = {name: kind.share for name, kind in TEXT_HONEST.items()}
        asked = learned.simulated(reference, population(SIMULATED_CLIENTS, rng, None, shares), rng)
    else:
        kinds = [kind for kind in BENIGN if kind != "misrouted"]  # nothing foreign is at hand
        asked = _simulated_queries(reference, schema, population(SIMULATED_CLIENTS, rng, kinds), rng)
    return dataclasses.replace(asked, clients=[SIMULATED + client for client in asked.clients])


def rehearsal(
    reference: QueryBatch,
    schema: Schema,
    seed: int,
    learned: LearnedTexts | None = None,
    honest: QueryBatch | None = None,
) -> Rehearsed:
    """Honest tools: how far do they get? With a generator of its own, so that the map does not depend on it.

    learned  of texts
    honest   who calibrates. No tool on texts asks more than the largest of them: a client of that size is damped beyond it
    """
    if learned is not None:
        told = [
            kind
            for kind in TEXT_REHEARSED
            for _ in range(REHEARSED_STAND_INS if kind in TEXT_STAND_INS else REHEARSED_A_KIND)
        ]
        most = None if honest is None else _largest(honest)
        asked = learned.simulated(reference, told, np.random.default_rng([seed, REHEARSED_A_KIND]), most)
        return Rehearsed(asked, tuple(k if k in TEXT_STAND_INS else "" for k in told))
    embedded = _embedded(reference, schema)
    kinds = [
        kind
        for kind in REHEARSED_KINDS
        if not (embedded and kind in TOOLS)
        for _ in range(REHEARSED_STAND_INS if kind in STAND_INS else REHEARSED_A_KIND)
    ]
    queries = _simulated_queries(reference, schema, kinds, np.random.default_rng([seed, REHEARSED_A_KIND]))
    return Rehearsed(queries, tuple(k if k in STAND_INS else "" for k in kinds))


def rehearsal_on(reference: QueryBatch, schema: Schema, seed: int) -> Callable[[Rows], Rehearsed]:
    """The tools that stand in, as `rehearsal` plays them, on rows that are given later."""

    def play(rows: Rows) -> Rehearsed:
        embedded = _embedded(reference, schema)
        told = [kind for kind in STAND_INS if not (embedded and kind in TOOLS) for _ in range(REHEARSED_STAND_INS)]
        rng = np.random.default_rng([seed, REHEARSED_STAND_INS])
        return Rehearsed(_simulated_queries(reference, schema, told, rng, rows), tuple(told))

    return play


def _largest(clients: QueryBatch) -> int:
    """Distinct texts of the client that asks most of them."""
    asked = np.unique(np.stack([clients.who.astype(np.uint64), clients.salt]), axis=1)
    return int(np.unique_counts(asked[0]).counts.max())


def filled(batch: QueryBatch, rng: np.random.Generator) -> QueryBatch:
    """The batch with a value of the same column drawn for each that is missing or out of range; itself when there is none.

    What thieves and honest clients of a rehearsal send are numbers; missing ones come back in `_simulated_queries`.
    """
    gone = ~np.isfinite(batch.inputs)
    if not gone.any():
        return batch
    inputs = batch.inputs.copy()
    for j in np.flatnonzero(gone.any(0)):
        known = inputs[~gone[:, j], j]
        inputs[gone[:, j], j] = rng.choice(known, int(gone[:, j].sum())) if len(known) else 0.0
    return dataclasses.replace(batch, inputs=inputs)


def _embedded(reference: QueryBatch, schema: Schema) -> bool:
    """Whether inputs are embeddings: logged as such, or many numbers whose rows all have one length, as no table has."""
    lengths = np.linalg.norm(reference.inputs[np.isfinite(reference.inputs).all(1)], axis=1)
    if not len(lengths):
        return schema.input_form == "embedding"
    alike = float(np.ptp(lengths)) <= ONE_LENGTH * float(lengths.mean())
    return schema.input_form == "embedding" or (schema.width >= MANY_COLUMNS and alike)


def _simulated_queries(
    reference: QueryBatch, schema: Schema, kinds: Sequence[str], rng: np.random.Generator, items: Rows | None = None
) -> QueryBatch:
    """A simulated honest client for each kind, drawn from the reference and answered as the nearest reference row was.

    It lacks the values that the nearest row lacks. items: other rows to draw from.
    """
    gone, marks = ~np.isfinite(reference.inputs), reference
    reference = filled(reference, rng)
    coded = schema.categorical
    domain = Domain.of(reference.inputs, coded if coded.any() else None)
    classes = np.maximum(reference.labels, 0).astype(np.int64)
    drawn = reference.inputs if items is None else items
    misrouted = (
        misrouted_rows if coded.any() else strangers
    )  # codes that the domain infers from whole numbers are numbers
    pools = HonestPools(
        domain, drawn, classes if items is None else classes[_nearest(reference.inputs, items)], drawn,
        misrouted(domain, reference.inputs, rng),
    )  # fmt: skip
    streams = [honest_stream(kind, pools, child) for kind, child in zip(kinds, rng.spawn(len(kinds)), strict=True)]
    log = interleave(streams)
    inputs = log.inputs
    nearest = _nearest(reference.inputs, inputs)
    lacking = gone[nearest]
    if lacking.any():
        inputs = np.where(lacking, marks.inputs[nearest], inputs)
    return QueryBatch(
        log.clients, log.who, inputs, reference.labels[nearest], reference.probabilities[nearest], reference.values[nearest],
        (log.times_s * 1000).astype(np.int64), np.ones(len(inputs), np.float32), np.arange(len(inputs)),
        marks.misfit[nearest], marks.salt[nearest],
    )  # fmt: skip


def _nearest(reference: Rows, inputs: Rows) -> NDArray[np.int64]:
    """The nearest reference row of each input, (n,)."""
    scale = np.maximum(reference.std(0), 1e-9)
    table = reference / scale
    nearest = np.empty(len(inputs), np.int64)
    for part in np.array_split(np.arange(len(inputs)), max(1, len(inputs) // 512)):
        query = inputs[part] / scale
        nearest[part] = np.argmin((table**2).sum(1) - 2 * query @ table.T, 1)
    return nearest


def _derived(lines: Sequence[ReferenceLine], model_id: str, excluded: frozenset[str]) -> RawReference:
    """A reference out of traffic: distinct inputs, every client capped, so that nobody shapes it alone."""
    raw = read_reference(lines, model_id)
    seen: set[str] = set()
    count: Counter[str] = Counter()
    kept = []
    for i, event in enumerate(raw.events):
        client = str(event.get("client_id"))
        if client in excluded:
            continue
        given = input_of(event)
        text = json.dumps(given.values if given is not None else None)
        answered = event.get("status") is None or event["status"] in range(200, 300)
        if text in seen or count[client] >= CAP_A_CLIENT or not answered:
            continue
        seen.add(text)
        count[client] += 1
        kept.append(i)
    return RawReference([raw.events[i] for i in kept], raw.refused, [raw.place(i) for i in kept], raw.elsewhere)


def _decode(lines: Sequence[ReferenceLine], model_id: str, schema: Schema) -> tuple[QueryBatch | None, RefusedLines]:
    native = NativeFormat({model_id: InputReader(schema)}, admit_unknown=True)
    batches: list[QueryBatch] = []
    refused = RefusedLines()
    for start in range(0, len(lines), 5000):
        part = lines[start : start + 5000]
        offsets = np.arange(start, start + len(part))
        records = Records(
            "traffic", [one.value for one in part], offsets, start + len(part), [one.place for one in part]
        )
        decoded = native.decode(records)
        refused.lines += len(part) - decoded.counters["unmodelled"]
        for letter in decoded.dead:
            refused.refuse(letter.reason, letter.place, letter.detail, letter.head.decode())
        # a query without a time says nothing about a life
        batches += [b.take(np.flatnonzero(b.time_ms != UNKNOWN_MS)) for b in decoded.batches.values()]
    return (stack(batches) if batches else None), refused


def first_words(first: Sequence[str]) -> str:
    """Say which calibration clients to look at first."""
    names = ", ".join(first)
    return f"look at these {len(first)} calibration clients first, because a thief among them hides later ones: {names}"


def _tell(said: list[str], what: str, refused: RefusedLines) -> None:
    if refused.total:
        said.append(f"{what}: {refused.total:,} refused ({refused.words()}; {refused.first()})")


def read_excluded(path: Path) -> frozenset[str]:
    """Client ids of a text file, one a line; empty lines don't count. Raises InvalidInput in one line."""
    lines = paths.read_text(path, "exclude").split("\n")
    return frozenset(line.rstrip("\r") for line in lines) - {""}


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Whole or not at all. Raises InvalidInput."""
    with atomic_file.whole(path) as draft:
        draft.write_bytes(pack_baseline(baseline))
