"""Simulate a query log: honest clients and extraction attacks around a reference, with the truth in a second file.

Rules:
* The log has the native event format, and nothing in it marks an attacker. The truth goes to ``NAME.truth.json``, for scoring only.
* Without a victim model a built-in one answers: a small network that is fitted on the reference's own answers (NumPy only).
* Reference rows are divided: 70 % go to honest clients, 30 % to attackers. A baseline that was fitted on the same reference has seen both,
  so figures from such a log are better than real ones. The truth file says so.
* The same arguments give the same bytes.
* `linked`: events have metadata (organisation, address), also those of honest clients: some are alone, some are colleagues. The accounts
  of one theft share an organisation of their own.
"""

from __future__ import annotations

import datetime as dt
import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from consumers import atomic_file, paths
from consumers.errors import InvalidInput, WrongUse
from consumers.log.lines import Lines, gunzip, plain, unzstd
from detector.simulation.attacks import ATTACKS
from detector.simulation.copies import Surrogate
from detector.simulation.domain import Domain, HonestPools, Predict, Rows, strangers
from detector.simulation.honest import BENIGN
from detector.simulation.population import VARIANTS, Interleaved, Stream, interleave, simulated_population
from detector.simulation.text_population import TextStream

START_S = dt.datetime(2026, 3, 2, tzinfo=dt.UTC).timestamp()
PLAIN_ATTACKS = tuple(ATTACKS)
MOST_REFERENCE_ROWS = 20_000
NOTE = (
    "Simulated. Honest clients and thieves ask items of the reference itself, and the kinds of clients are simpler "
    "than life: use it to try the product out, not to quote its detection rate."
)
Progress = Callable[[int, int], None]
"""(events written, events in all) → None."""


@dataclass(frozen=True, slots=True)
class Columns:
    """How the rows of a reference are written: names (None: a plain list), categories of columns that hold strings.

    key is "features" or "embedding".
    """

    key: str
    names: tuple[str, ...] | None
    categories: tuple[tuple[str, ...] | None, ...]

    def encode(self, values: Any) -> list[float]:
        """One input → numbers. Raises InvalidInput when it is not like the first row."""
        if self.names is not None:
            if not isinstance(values, dict) or set(values) != set(self.names):
                raise InvalidInput("the reference's rows do not have the same feature names")
            values = [values[name] for name in self.names]
        if not isinstance(values, list) or len(values) != len(self.categories):
            raise InvalidInput("the reference's rows do not have the same number of features")
        row = []
        for value, levels in zip(values, self.categories, strict=True):
            if levels is not None:
                row.append(float(levels.index(str(value))))
            elif isinstance(value, (int, float)):
                row.append(float(value))
            else:
                raise InvalidInput(f"a feature of the reference is neither a number nor a category: {value!r:.40}")
        return row

    def decode(self, row: list[float], whole: Sequence[bool]) -> Any:
        """One row of numbers → what the log shows; columns of `whole` numbers without a fraction."""
        values = [
            levels[int(value)] if levels is not None else int(value) if is_whole else value
            for value, levels, is_whole in zip(row, self.categories, whole, strict=True)
        ]
        return values if self.names is None else dict(zip(self.names, values, strict=True))


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference file: model id, columns, rows (n, d), answers (n, c) probabilities, c labels as logged."""

    model_id: str
    columns: Columns
    rows: Rows
    answers: Rows
    labels: list[Any]


def read_reference(path: Path) -> Reference:
    """Inputs and answers of at most 20,000 lines. Raises WrongUse when the file is missing, InvalidInput when unfit."""
    events = list(islice(events_of(path), MOST_REFERENCE_ROWS))
    if len(events) < 50:
        raise InvalidInput(f"{path}: {len(events)} rows are too few to simulate from; 50 are needed")
    key = next((k for k in ("features", "embedding") if k in events[0]), None)
    if key is None:
        raise InvalidInput(f"{path}: no numeric input (features or embedding) in the first row")
    inputs = [event.get(key) for event in events]
    columns = _columns(key, inputs)
    rows = np.array([columns.encode(values) for values in inputs], dtype=np.float64)
    answers, labels = answers_of(path, [event["prediction"] for event in events])
    return Reference(str(events[0].get("model_id", "model")), columns, rows, answers, labels)


def events_of(path: Path) -> Iterator[dict[str, Any]]:
    """Events of a reference, each with a prediction. Raises WrongUse when the file is missing, InvalidInput when a line is unfit."""
    for number, line in enumerate(filter(bytes.strip, _lines(path)), 1):
        try:
            event = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise InvalidInput(f"{path}: line {number} is not JSON") from error
        if not isinstance(event, dict) or not isinstance(event.get("prediction"), dict):
            raise InvalidInput(f"{path}: line {number} has no prediction")
        yield event


def named_attacks(names: Sequence[str], families: Sequence[str] = PLAIN_ATTACKS) -> list[tuple[str, str]]:
    """``jbda`` or ``jbda/drip10`` → (family, variant). Raises WrongUse and lists what there is."""
    out = []
    for name in names:
        family, _, variant = name.partition("/")
        variant = variant or "plain"
        if family not in families:
            raise WrongUse(f"unknown attack {family!r}; there are: {', '.join(families)}")
        if variant not in VARIANTS:
            raise WrongUse(f"unknown variant {variant!r}; there are: {', '.join(VARIANTS)}")
        out.append((family, variant))
    return out


def simulate(
    reference_path: Path,
    out_path: Path,
    *,
    model_id: str | None = None,
    clients: int = 300,
    attacks: Sequence[str] = PLAIN_ATTACKS,
    kinds: Sequence[str] | None = None,
    queries: tuple[int, int] = (400, 4000),
    seed: int = 0,
    predict: Predict | None = None,
    start_s: float = START_S,
    linked: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a log of `clients` honest clients and one theft for each of `attacks`, and the truth beside it.

    attacks  ``family`` or ``family/variant`` (keys of ATTACKS and VARIANTS)
    kinds    honest kinds (keys of BENIGN), all by default
    queries  a theft's budget is log-uniform between these two
    predict  the victim, (n, d) → (n, c); default: a built-in model fitted on the reference's answers
    linked   events say where their client comes from

    Returns the truth as written. Raises WrongUse for a wrong call, InvalidInput for a file that is unfit.
    """
    thefts = named_attacks(attacks)
    for kind in kinds or ():
        if kind not in BENIGN:
            raise WrongUse(f"unknown kind {kind!r}; there are: {', '.join(BENIGN)}")
    if clients < 0 or not 0 < queries[0] <= queries[1]:
        raise WrongUse("clients must be 0 or more, and 0 < fewest <= most queries of a theft")
    if clients == 0 and not thefts:
        raise WrongUse("no clients and no attacks: nothing to simulate")
    reference = read_reference(reference_path)
    rng = np.random.default_rng(seed)
    coded = np.array([levels is not None for levels in reference.columns.categories])
    domain = Domain.of(reference.rows, coded if coded.any() else None)
    victim = predict or Surrogate(domain, rng, hidden=256).fit(reference.rows, reference.answers).predict
    order = rng.permutation(len(reference.rows))
    pool, own = np.split(reference.rows[order], [round(0.7 * len(order))])
    foreign = strangers(domain, reference.rows, rng)
    pools = HonestPools(domain, pool, victim(pool).argmax(axis=1), own, foreign)
    streams = simulated_population(
        pools, victim, rng, clients=clients, kinds=kinds, attacks=thefts, queries=queries, start_s=start_s
    )
    name = model_id or reference.model_id
    write_log(
        out_path, name, interleave(streams), victim, reference.columns, reference.labels, domain,
        metadata=origins(streams, np.random.default_rng([seed, 1])) if linked else None, progress=progress,
    )  # fmt: skip
    truth = {"model_id": name, "seed": seed, "note": NOTE, "clients": truth_of(streams)}
    write_json(truth_path(out_path), truth)
    return truth


def truth_of(streams: Sequence[Stream]) -> dict[str, dict[str, Any]]:
    """Client id → who it is: role, kind, variant, run, queries, attack_queries."""
    return {
        s.client: {
            "role": s.role,
            "kind": s.kind,
            "variant": s.variant,
            "run": s.run,
            "queries": len(s.inputs),
            "attack_queries": int(s.is_attack.sum()),
        }
        for s in streams
    }


def origins(streams: Sequence[Stream | TextStream], rng: np.random.Generator) -> dict[str, dict[str, str]]:
    """Client id → metadata: organisations of 1 to 12 honest clients at one to three addresses; one for each theft."""
    honest = [s.client for s in streams if s.role != "attack"]
    teams: list[list[str]] = []
    while honest:
        size = int(rng.choice([1, 1, 2, 4, 12]))
        teams.append(honest[:size])
        del honest[:size]
    thefts: dict[str, list[str]] = {}
    for s in streams:
        if s.role == "attack":
            thefts.setdefault(s.run, []).append(s.client)
    teams += thefts.values()
    found = {}
    for i in rng.permutation(len(teams)).tolist():
        places = int(rng.integers(1, 4))
        name = f"org-{int(rng.integers(2**32)):08x}"
        for client in teams[i]:
            address = f"10.{i // 250}.{i % 250}.{1 + int(rng.integers(places))}"
            found[client] = {"org": name, "ip": address, "user_agent": "python-requests/2.32"}
    return found


def truth_path(log_path: Path) -> Path:
    """``x/log.jsonl.gz`` → ``x/log.truth.json``."""
    return log_path.with_name(log_path.name.split(".jsonl")[0] + ".truth.json")


def write_log(
    path: Path,
    model_id: str,
    log: Interleaved,
    predict: Predict,
    columns: Columns,
    labels: Sequence[Any],
    domain: Domain,
    *,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
) -> None:
    """Native events of a simulated log, by time; .jsonl, .jsonl.gz or .jsonl.zst. The file appears when it is whole.

    metadata: client id → what its events say of where it comes from.
    """
    encode = msgspec.json.Encoder().encode
    whole = (domain.decimals == 0).tolist()
    simple = columns.names is None and not any(whole) and not any(columns.categories)
    with written(path) as sink:
        for first in range(0, len(log.who), 4096):
            part = slice(first, first + 4096)
            inputs = log.inputs[part]
            answers = np.round(np.asarray(predict(inputs), dtype=np.float64), 6)
            stamps = stamp(log.times_s[part])
            likely = answers.argmax(axis=1).tolist()
            lines = []
            for i, (row, answer) in enumerate(zip(inputs.tolist(), answers.tolist(), strict=True)):
                event: dict[str, Any] = {
                    "event_id": f"{model_id}-{first + i:08d}",
                    "timestamp": stamps[i],
                    "client_id": log.clients[log.who[first + i]],
                    "model_id": model_id,
                    columns.key: row if simple else columns.decode(row, whole),
                    "prediction": {"label": labels[likely[i]], "probabilities": answer},
                }
                if metadata is not None:
                    event["metadata"] = metadata[event["client_id"]]
                lines.append(encode(event))
            sink.write(b"\n".join(lines) + b"\n")
            if progress is not None:
                progress(first + len(lines), len(log.who))


def write_reference(
    path: Path, model_id: str, rows: Rows, answers: Rows, columns: Columns, labels: Sequence[Any], domain: Domain
) -> None:
    """A reference file: events without client, time and event id."""
    encode = msgspec.json.Encoder().encode
    whole = (domain.decimals == 0).tolist()
    with written(path) as sink:
        for row, answer in zip(rows.tolist(), np.round(answers, 6).tolist(), strict=True):
            prediction = {"label": labels[int(np.argmax(answer))], "probabilities": answer}
            event = {"model_id": model_id, columns.key: columns.decode(row, whole), "prediction": prediction}
            sink.write(encode(event) + b"\n")


def stamp(times_s: Rows) -> list[str]:
    """RFC 3339 with milliseconds, UTC."""
    moments = np.round(times_s * 1000).astype(np.int64).astype("datetime64[ms]")
    return [str(text) for text in np.datetime_as_string(moments, unit="ms", timezone="UTC")]


def write_json(path: Path, content: Any) -> None:
    with written(path) as sink:
        sink.write(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when everything was written; the same content gives the same bytes."""
    with atomic_file.whole(path) as draft, draft.open("wb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=4) as packed:
                yield packed  # type: ignore[misc]
        elif path.suffix in (".zst", ".zstd"):
            with zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) as packed_zst:
                yield packed_zst
        else:
            yield raw


def _lines(path: Path) -> Iterator[bytes]:
    opener = {".gz": gunzip, ".zst": unzstd, ".zstd": unzstd}.get(path.suffix, plain)
    if path.exists():
        paths.check_regular(path)
    try:
        raw = path.open("rb")
    except OSError as error:
        raise WrongUse(f"{path}: {error.strerror}") from error
    with raw:
        lines = Lines(opener(raw, str(path)))
        while batch := lines.take(1024):
            yield from batch


def _columns(key: str, inputs: Sequence[Any]) -> Columns:
    first = inputs[0]
    names = tuple(first) if isinstance(first, dict) else None
    rows = [list(values.values()) if isinstance(values, dict) else values for values in inputs]
    if names is not None:
        rows = [[values.get(name) for name in names] for values in inputs if isinstance(values, dict)]
    if not isinstance(rows[0], list) or not rows[0]:
        raise InvalidInput("the reference's first input is empty")
    width = len(rows[0])
    levels = []
    for j in range(width):
        column = [row[j] for row in rows if isinstance(row, list) and len(row) == width]
        named = any(isinstance(value, str) for value in column)
        levels.append(tuple(sorted({str(value) for value in column})) if named else None)
    return Columns(key, names, tuple(levels))


def answers_of(path: Path, predictions: Sequence[dict[str, Any]]) -> tuple[Rows, list[Any]]:
    """(n, c) probabilities and the labels of the c classes."""
    first = predictions[0]
    scores = next((k for k in ("probabilities", "logits") if k in first), None)
    if scores is not None:
        try:
            table = np.array([p[scores] for p in predictions], dtype=np.float64)
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidInput(f"{path}: the predictions do not all have the same {scores}") from error
        if table.ndim != 2 or table.shape[1] < 2:
            raise InvalidInput(f"{path}: {scores} must be lists of two or more numbers")
        if scores == "logits":
            table = np.exp(table - table.max(axis=1, keepdims=True))
        table = table / np.maximum(table.sum(axis=1, keepdims=True), 1e-12)
        labels: list[Any] = list(range(table.shape[1]))
        for p, c in zip(predictions, table.argmax(axis=1).tolist(), strict=True):
            labels[c] = p.get("label", labels[c])
        return table, labels
    if "label" not in first:
        raise InvalidInput(f"{path}: simulate needs the reference of a classifier (label, probabilities or logits)")
    labels = sorted({p.get("label") for p in predictions}, key=lambda v: (str(type(v)), v))
    index: NDArray[np.int64] = np.array([labels.index(p.get("label")) for p in predictions])
    return np.eye(len(labels))[index], labels
