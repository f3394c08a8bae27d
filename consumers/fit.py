"""Fit: reference and honest traffic → a baseline file.

Rules: without traffic it calibrates on simulated clients drawn from the reference and says so; whatever is refused is counted and
shown; the file appears whole or not at all. The reference's schema is inferred unless a schema file is given (docs/formats.md).
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from consumers import drafts, paths
from consumers.errors import Refused, WrongUse
from consumers.log import QueryLog, Records
from consumers.log.formats import InputReader, NativeFormat
from consumers.log.references import RawReference, read_reference, reference_batch, stack
from detector.baseline import Baseline, Rehearsed
from detector.domain import Domain, Scene, strangers
from detector.errors import DetectorError
from detector.features import Column, Schema, infer_grain
from detector.honest import BENIGN
from detector.query import UNKNOWN_TIME, QueryBatch
from detector.recalibration import Outlier, outliers
from detector.rehearsal import rehearse
from detector.worlds import honest_stream, interleave, population

CAP_A_CLIENT = 200
"""Rows that one client may give to a reference that is derived from traffic."""

SIMULATED_CLIENTS = 400
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
MANY_COLUMNS = 32
ONE_LENGTH = 0.01


_PersonaName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9._-]{1,40}$")]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A baseline, what there is to say about it, and clients that its owner should look at."""

    baseline: Baseline
    said: list[str]
    review: tuple[Outlier, ...] = ()


def infer_schema(raw: RawReference, declared: dict[str, Any] | None = None) -> Schema:
    """Schema of a reference: columns with kind, bounds and grain, task and labels. `declared` wins where it speaks.

    declared: ``{"columns": [{"name", "kind", "lower", "upper", "grain", "categories"}, …]}``, all but name optional.
    """
    events = raw.events
    if not events:
        raise Refused(f"the reference holds no usable event{_reasons(raw.refused)}")
    forms = Counter(form for e in events for form in ("features", "embedding", "text") if e.get(form) is not None)
    if not forms:
        raise Refused("the reference's events have none of features, embedding or text")
    form = forms.most_common(1)[0][0]
    if form == "text":
        raise Refused("text inputs are not assessed yet: log an embedding beside the text")
    rows = [e[form] for e in events if e.get(form) is not None]
    named = isinstance(rows[0], dict)
    names = list(rows[0]) if named else [f"x{j}" for j in range(len(rows[0]))]
    if not names:
        raise Refused("the reference's inputs are empty")
    given = _columns_of(declared)
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise Refused(f"the schema names columns that the reference lacks: {', '.join(unknown[:5])}")
    columns = []
    for j, name in enumerate(names):
        values = [(r.get(name) if isinstance(r, dict) else r[j] if j < len(r) else None) for r in rows]
        columns.append(_column(name, [v for v in values if v is not None], form, given.get(name, {})))
    task, labels = _answers([e.get("prediction") or {} for e in events])
    return Schema(tuple(columns), form, named, task, labels)


class _Declared(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    kind: str | None = None
    lower: float | None = None
    upper: float | None = None
    grain: Annotated[float, msgspec.Meta(ge=0)] | None = None
    categories: list[str] | None = None


class _SchemaFile(msgspec.Struct, forbid_unknown_fields=True):
    columns: list[_Declared] = []


def _columns_of(declared: object) -> dict[str, dict[str, Any]]:
    """What a schema file says, by column. Raises Refused in one line."""
    if declared is None:
        return {}
    try:
        file = msgspec.convert(declared, _SchemaFile)
    except msgspec.ValidationError as error:
        raise Refused(f"schema: {error}") from error
    return {c.name: {k: v for k, v in msgspec.structs.asdict(c).items() if v is not None} for c in file.columns}


def _column(name: str, values: Sequence[Any], form: str, given: dict[str, Any]) -> Column:
    kind = given.get("kind") or ("embedding" if form == "embedding" else "categorical" if _words(values) else "numeric")
    if kind not in ("numeric", "categorical", "embedding"):
        raise Refused(f"column {name}: unknown kind {kind!r}")
    if kind == "categorical":
        categories = tuple(given.get("categories") or sorted({_name(v) for v in values}))
        return Column(name, kind, 0.0, float(len(categories) - 1), 1.0, categories)
    numbers = np.array([v for v in values if isinstance(v, int | float) and not isinstance(v, bool)], np.float64)
    if not len(numbers) or not np.isfinite(numbers).all():
        raise Refused(f"column {name}: no finite numbers in the reference")
    lower, upper = float(given.get("lower", numbers.min())), float(given.get("upper", numbers.max()))
    if lower > upper:
        raise Refused(f"column {name}: lower bound {lower:g} above upper bound {upper:g}")
    return Column(
        name=name,
        kind=kind,
        lower=lower,
        upper=upper,
        grain=float(given.get("grain", infer_grain(numbers))),
    )


def _words(values: Sequence[Any]) -> bool:
    return any(isinstance(v, str) for v in values)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else str(int(value)) if value == int(value) else repr(value)


def _answers(predictions: Sequence[dict[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """Task and class names, in the order of the probabilities where there are some."""
    scores = [p.get("probabilities") or p.get("logits") for p in predictions]
    width = max((len(s) for s in scores if s), default=0)
    labels = [p.get("label") for p in predictions]
    named = {str(label) for label in labels if label is not None}
    if not width and not named:
        return "regression", ()
    if not width:
        return "classification", tuple(sorted(named))
    votes: list[Counter[str]] = [Counter() for _ in range(width)]
    for label, s in zip(labels, scores, strict=True):
        if label is not None and s:
            votes[max(range(width), key=s.__getitem__)][str(label)] += 1
    return "classification", tuple(v.most_common(1)[0][0] if v else str(k) for k, v in enumerate(votes))


def fit(
    model_id: str,
    reference: Iterable[bytes] | None,
    traffic: QueryLog | None,
    *,
    declared: dict[str, Any] | None = None,
    personas: Mapping[str, str] | None = None,
    excluded: frozenset[str] = frozenset(),
    seed: int = 0,
    exposure: bool = True,
    trust_traffic: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Fit a baseline for one model. Raises Refused with one clear line.

    reference  lines of a reference file; None: derived from the traffic, capped per client
    traffic    a log of presumably honest clients; None: simulated from the reference
    personas   client → the use that its owner declared
    excluded   clients of the traffic that are not presumed honest
    exposure   also rehearse thefts, so that the service can say how much a client could have copied (some 10 s)
    trust_traffic  every client of the traffic has a say, however far beyond what honest tools reach in rehearsal
    """
    said: list[str] = []
    rng = np.random.default_rng(seed)
    lines = list(_read(traffic)) if traffic is not None else []
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
    _tell(said, "reference", raw.refused)
    schema = infer_schema(raw, declared)
    batch, refused = reference_batch(raw, schema)
    _tell(said, "reference", refused)
    if not len(batch):
        raise Refused(f"no row of the reference can be used{_reasons(refused)}")
    if traffic is not None:
        progress("reading the traffic")
        honest, refused = _decode(lines, model_id, schema)
        _tell(said, "traffic", refused)
        if honest is None:
            raise Refused(f"the traffic holds no usable query of model {model_id}")
        honest = _presumed_honest(honest, excluded, said)
    else:
        progress("simulating honest clients from the reference")
        honest = simulated(batch, schema, rng)
    progress("learning what real inputs look like, calibrating on honest clients")
    try:
        baseline, lives = Baseline.fit(
            model_id, schema, batch, honest, real_clients=traffic is not None, rng=rng, personas=personas,
            rehearsed=None if trust_traffic else rehearsal(batch, schema, seed),
        )  # fmt: skip
    except DetectorError as error:
        raise Refused(str(error)) from error
    if exposure:
        progress("rehearsing thefts, to learn what a copy would be worth")
        estimator = rehearse(baseline.map, batch, honest, rng)
        if estimator is None:
            said.append("no estimate of what could be copied: it needs a classifier and 100 distinct answered rows")
        baseline = dataclasses.replace(baseline, estimator=estimator)
    review: tuple[Outlier, ...] = ()
    if traffic is not None:
        review = outliers(lives.clients, lives.masses, lives.left_out)
    return Fitted(baseline, [*said, *baseline.notes], review)


def _presumed_honest(traffic: QueryBatch, excluded: frozenset[str], said: list[str]) -> QueryBatch:
    """The traffic without excluded clients."""
    if not excluded:
        return traffic
    out = np.array([client in excluded for client in traffic.clients], np.bool_)
    unknown = len(excluded) - int(out.sum())
    said.append(f"excluded: {int(out.sum())} clients{f', {unknown} more are not in the traffic' if unknown else ''}")
    return traffic.take(np.flatnonzero(~out[traffic.who]))


def simulated(reference: QueryBatch, schema: Schema, rng: np.random.Generator) -> QueryBatch:
    """Honest clients of all kinds: they stand in for traffic."""
    kinds = [kind for kind in BENIGN if kind != "misrouted"]  # nothing foreign is at hand
    return _played(reference, schema, population(SIMULATED_CLIENTS, rng, kinds), rng)


def rehearsal(reference: QueryBatch, schema: Schema, seed: int) -> Rehearsed:
    """Honest tools: how far do they get? With a generator of its own, so that the map does not depend on it."""
    embedded = _embedded(reference, schema)
    kinds = [
        kind
        for kind in REHEARSED_KINDS
        if not (embedded and kind in TOOLS)
        for _ in range(REHEARSED_STAND_INS if kind in STAND_INS else REHEARSED_A_KIND)
    ]
    queries = _played(reference, schema, kinds, np.random.default_rng([seed, REHEARSED_A_KIND]))
    return Rehearsed(queries, tuple(k if k in STAND_INS else "" for k in kinds))


def _embedded(reference: QueryBatch, schema: Schema) -> bool:
    """Whether inputs are embeddings: logged as such, or many numbers whose rows all have one length, as no table has."""
    lengths = np.linalg.norm(reference.inputs, axis=1)
    alike = float(np.ptp(lengths)) <= ONE_LENGTH * float(lengths.mean())
    return schema.input_form == "embedding" or (schema.width >= MANY_COLUMNS and alike)


def _played(reference: QueryBatch, schema: Schema, kinds: Sequence[str], rng: np.random.Generator) -> QueryBatch:
    """A simulated honest client for each kind, drawn from the reference and answered as the nearest reference row was."""
    coded = np.array([c.kind == "categorical" for c in schema.columns])
    domain = Domain.of(reference.inputs, coded if coded.any() else None)
    classes = np.maximum(reference.labels, 0).astype(np.int64)
    scene = Scene(domain, reference.inputs, classes, reference.inputs, strangers(domain, reference.inputs, rng))
    streams = [honest_stream(kind, scene, child) for kind, child in zip(kinds, rng.spawn(len(kinds)), strict=True)]
    log = interleave(streams)
    inputs = log.inputs
    scale = np.maximum(reference.inputs.std(0), 1e-9)
    table = reference.inputs / scale
    nearest = np.empty(len(inputs), np.int64)
    for part in np.array_split(np.arange(len(inputs)), max(1, len(inputs) // 512)):
        query = inputs[part] / scale
        nearest[part] = np.argmin((table**2).sum(1) - 2 * query @ table.T, 1)
    return QueryBatch(
        log.clients, log.who, inputs, reference.labels[nearest], reference.probabilities[nearest], reference.values[nearest],
        (log.times_s * 1000).astype(np.int64), np.ones(len(inputs), np.float32), np.arange(len(inputs)),
    )  # fmt: skip


def _read(traffic: QueryLog) -> Iterable[bytes]:
    while True:
        poll = traffic.poll(1.0, 5000)
        for cell in poll.assigned:
            traffic.seek(cell, None)
        for records in poll.batches:
            yield from records.values
        # nothing for the moment is the end of a file, but not of a pipe
        if not poll.batches and not poll.assigned and all(traffic.position(c) >= e for c, e in traffic.ends().items()):
            return


def _derived(lines: Sequence[bytes], model_id: str, excluded: frozenset[str]) -> RawReference:
    """A reference out of traffic: distinct inputs, every client capped, so that nobody shapes it alone."""
    raw = read_reference(lines, model_id)
    seen: set[str] = set()
    count: Counter[str] = Counter()
    kept = []
    for event in raw.events:
        client = str(event.get("client_id"))
        if client in excluded:
            continue
        text = json.dumps(event.get("features") or event.get("embedding"))
        if text in seen or count[client] >= CAP_A_CLIENT or (event.get("status") or 200) not in range(200, 300):
            continue
        seen.add(text)
        count[client] += 1
        kept.append(event)
    return RawReference(kept, raw.refused)


def _decode(lines: Sequence[bytes], model_id: str, schema: Schema) -> tuple[QueryBatch | None, Counter[str]]:
    native = NativeFormat({model_id: InputReader(schema)}, admit_unknown=True)
    batches: list[QueryBatch] = []
    refused = Counter[str]()
    for start in range(0, len(lines), 5000):
        part = list(lines[start : start + 5000])
        decoded = native.decode(Records("traffic", part, np.arange(start, start + len(part)), start + len(part)))
        refused.update(letter.reason for letter in decoded.dead)
        # a query without a time says nothing about a life
        batches += [b.take(np.flatnonzero(b.time_ms != UNKNOWN_TIME)) for b in decoded.batches.values()]
    return (stack(batches) if batches else None), refused


def _tell(said: list[str], what: str, refused: Counter[str]) -> None:
    if refused:
        said.append(f"{what}: {sum(refused.values()):,} refused{_reasons(refused)}")


def _reasons(refused: Counter[str]) -> str:
    return f" ({', '.join(f'{k} {v:,}' for k, v in refused.most_common())})" if refused else ""


def read_personas(path: Path) -> dict[str, str]:
    """Client id → persona, of a JSON object in a file. Raises Refused in one line."""
    try:
        return msgspec.json.decode(paths.read(path, "personas"), type=dict[str, _PersonaName])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Refused(f"personas: {path}: {error}") from error


def read_excluded(path: Path) -> frozenset[str]:
    """Client ids of a text file, one a line; empty lines don't count. Raises Refused in one line."""
    lines = paths.read_text(path, "exclude").split("\n")
    return frozenset(line.rstrip("\r") for line in lines) - {""}


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Whole or not at all. Raises Refused."""
    with drafts.whole(path) as draft:
        draft.write_bytes(baseline.to_bytes())


def baseline_files(given: Iterable[str]) -> list[Path]:
    """The files that are meant: those named, and of a folder the baselines in it."""
    found: list[Path] = []
    for where in map(Path, given):
        found += sorted(where.glob("*.baseline")) if where.is_dir() else [where]
    return found


def load_baselines(given: Sequence[str]) -> dict[str, Baseline]:
    """Baselines of files and folders, by model id. Raises Refused in one line for a damaged or foreign one."""
    found: dict[str, Baseline] = {}
    for file in baseline_files(given):
        try:
            baseline = Baseline.from_bytes(paths.read(file))
        except DetectorError as error:
            raise Refused(f"{file}: {error}") from error
        if baseline.model_id in found:
            raise Refused(f"{file}: a second baseline for model {baseline.model_id}")
        found[baseline.model_id] = baseline
    return found
