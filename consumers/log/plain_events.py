"""Plain events: the records of a poll that have the common shape, as columns, without a Python object for any of them.

Most records of most logs are alike: ASCII, a client, a model, a time, a list of numbers, a label and perhaps probabilities, a
success. A compiled scanner finds their fields (`json_scan.py`), a compiled parser reads their numbers (`number_lists.py`), and each
different client, model and label of the poll is looked at once.

Rules:

* A record is plain or it is not. Whatever is in doubt is not, and `formats.py` reads it in full. Both ways give the same columns:
  tests/log/test_plain_events.py compares them.
* Nothing here refuses a record, marks it or counts it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumers.log import Records
from consumers.log.columns import DIGEST_BYTES, LONGEST_COMPARED, ModelColumns, Texts
from consumers.log.inputs import PROBABLE, InputReader
from consumers.log.json_scan import PLACES, copy_pieces, scan_events, tell_apart, times_ms
from consumers.log.number_lists import parse_number_lists, rows_within
from consumers.log.payloads import Payloads
from consumers.log.tolerant import Raw
from detector.misfit import OUT_OF_RANGE
from detector.query import TIMES_MS, QueryBatch

LONGEST = 1 << 18
"""Bytes of the longest plain event; some 20,000 numbers."""
_COMPARED = [PLACES[name] for name in ("event_id", "features", "embedding", "text", "messages", "prediction")]
"""What two events with one id must have in common to be one event that was sent twice, in the order in which it is laid out."""
_NEEDED = [PLACES[name] for name in ("client_id", "model_id", "timestamp", "prediction", "prediction.label")]
_OTHER_LIST = {"features": "embedding", "embedding": "features"}
"""Form of an input that is a list → the form whose list the model's reader does not read."""
_NULL_ONLY = ("prediction.logits", "prediction.value", "prediction.text")
_SUCCESS = frozenset((b"null", b"200"))
_WHOLE = frozenset((b"null", b"1", b"1.0"))
_QUOTE, _OPEN_LIST, _LETTER_N = b'"'[0], b"["[0], b"n"[0]

_SEED = np.uint64(secrets.randbits(64))

_label = msgspec.json.Decoder(int | str)

Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Poll:
    """The bytes of a poll and the spans of the fields in it."""

    text: NDArray[np.uint8]
    spans: Longs

    def span(self, rows: Longs, name: str) -> tuple[Longs, Longs]:
        """Where the values of a field begin and end, (n,) each, contiguous."""
        place = PLACES[name]
        return np.ascontiguousarray(self.spans[rows, place, 0]), np.ascontiguousarray(self.spans[rows, place, 1])

    def given(self, rows: Longs, name: str) -> NDArray[np.bool_]:
        """(n,) whether there is a value other than null."""
        starts, ends = self.span(rows, name)
        null: NDArray[np.bool_] = (ends - starts == 4) & (self.text[starts] == _LETTER_N)
        return (ends > 0) & ~null

    def different(self, rows: Longs, name: str) -> tuple[list[bytes], Longs]:
        """The different values of a field as they are written, in order of appearance, and (n,) which of them each row has."""
        starts, ends = self.span(rows, name)
        slots = np.full(1 << (2 * len(rows) + 1).bit_length(), -1, np.int64)
        index, first = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        count = tell_apart(self.text, starts, ends, _SEED, slots, index, first)
        return [self.text[starts[i] : ends[i]].tobytes() for i in first[:count].tolist()], index

    def among(self, rows: Longs, name: str, allowed: frozenset[bytes]) -> NDArray[np.bool_]:
        """(n,) whether a field is absent or one of the allowed values."""
        if not self.spans[rows, PLACES[name], 1].any():
            return np.ones(len(rows), np.bool_)
        values, index = self.different(rows, name)
        return np.array([not value or value in allowed for value in values])[index]


def plain_events(
    records: Records, readers: Mapping[str, InputReader], names_a_client: Callable[[str], bool]
) -> dict[str, ModelColumns]:
    """The plain events of a poll, by model.

    Parameters
    ----------
    records
        Those that the log refused, or that are longer than `LONGEST`, are not plain.
    readers
        Model id → reader of its inputs. Models whose inputs are named or hold categories have no plain events.
    names_a_client
        Whether a text can be a client id.
    """
    values: Sequence[bytes] = records.values
    if (
        not isinstance(values, Payloads) and max(map(len, values), default=0) > LONGEST
    ):  # their copy could take gigabytes
        values = [value if len(value) <= LONGEST else b"" for value in values]
    found = Payloads.of(values)
    text, starts = found.text, found.starts
    if not len(text):
        return {}
    spans, plain = scan_events(text, starts, np.where(found.ends - starts > LONGEST, starts, found.ends))
    poll = _Poll(text, spans)
    plain &= (spans[:, _NEEDED, 1] > 0).all(1)
    plain[list(records.refused)] = False
    rows = np.flatnonzero(plain)
    if not len(rows):
        return {}
    good = poll.among(rows, "status", _SUCCESS) & poll.among(rows, "sampled_fraction", _WHOLE)
    for name in _NULL_ONLY:
        good &= ~poll.given(rows, name)
    rows = rows[good]
    if not len(rows):
        return {}
    models, which = poll.different(rows, "model_id")
    columns = {}
    for k, raw in enumerate(models):
        model = _text(raw)
        reader = readers.get(model) if model is not None else None
        if model is not None and reader is not None and reader.plain:
            events = _of_model(poll, rows[which == k], records.offsets, reader, names_a_client)
            if events is not None:
                columns[model] = events
    return columns


def _text(raw: bytes) -> str | None:
    """The text of a plain JSON string; None for another value."""
    return raw[1:-1].decode("ascii") if raw[0] == _QUOTE else None


def _of_model(
    poll: _Poll, rows: Longs, offsets: Longs, reader: InputReader, names_a_client: Callable[[str], bool]
) -> ModelColumns | None:
    clients, who = poll.different(rows, "client_id")
    labels, label_index = poll.different(rows, "prediction.label")
    codes = np.array([_code(raw, reader) for raw in labels], np.int32)[label_index]
    time_ms = np.empty(len(rows), np.int64)
    times_ms(poll.text, *poll.span(rows, "timestamp"), time_ms)
    starts, ends = poll.span(rows, reader.schema.input_form)
    good = ~poll.given(rows, _OTHER_LIST[reader.schema.input_form])  # nobody looked at what is in it
    good &= (
        (codes >= 0)
        & (time_ms >= TIMES_MS.start)
        & (time_ms < TIMES_MS.stop)
        & (ends > 0)
        & (poll.text[starts] == _OPEN_LIST)
    )
    if any((name := _text(raw)) is None or not names_a_client(name) for raw in clients):
        named = [(name := _text(raw)) is not None and names_a_client(name) for raw in clients]
        good &= np.array(named)[who]
    inputs, read = parse_number_lists(poll.text, starts, ends, reader.width)
    good &= read & rows_within(inputs, -OUT_OF_RANGE, OUT_OF_RANGE)
    probabilities = np.full((len(rows), reader.classes), np.nan, np.float32)
    answered = np.flatnonzero(poll.given(rows, "prediction.probabilities"))
    if len(answered):
        scores, read = parse_number_lists(
            poll.text, *poll.span(rows[answered], "prediction.probabilities"), reader.classes
        )
        good[answered] &= read & rows_within(scores, *PROBABLE)
        probabilities[answered] = scores
    if not good.all():
        rows, codes, time_ms = rows[good], codes[good], time_ms[good]
        inputs, probabilities = inputs[good], probabilities[good]
        clients, who = poll.different(rows, "client_id")
    if not len(rows):
        return None
    n = len(rows)
    batch = QueryBatch(
        clients=[str(_text(raw)) for raw in clients],
        who=who.astype(np.int32),
        inputs=inputs,
        labels=codes,
        probabilities=probabilities,
        values=np.full(n, np.nan),
        time_ms=time_ms,
        weight=np.ones(n, np.float32),
        offsets=offsets[rows],
    )
    event_ids, contents = _repeatable(poll, rows)
    return ModelColumns(rows, batch, event_ids, contents, _metadata(poll, rows, offsets))


def _code(raw: bytes, reader: InputReader) -> int:
    """The class that a label names; -1 for one that must be read in full."""
    try:
        code = reader.label_index(_label.decode(raw))
    except msgspec.ValidationError:
        code = None
    return -1 if code is None else code


def _metadata(poll: _Poll, rows: Longs, offsets: Longs) -> dict[int, Raw]:
    starts, ends = poll.span(rows, "metadata")
    given = np.flatnonzero(ends)
    if not len(given):
        return {}
    spans = zip(offsets[rows[given]].tolist(), starts[given].tolist(), ends[given].tolist(), strict=True)
    raw = poll.text.data
    return {offset: bytes(raw[start:end]) for offset, start, end in spans}


def _repeatable(poll: _Poll, rows: Longs) -> tuple[Texts, Texts]:
    """Event ids, and what else a repetition of each query must have in common with it."""
    starts, ends = poll.span(rows, "event_id")
    size = ends - starts
    has_id = poll.given(rows, "event_id") & ~((size == 2) & (poll.text[starts] == _QUOTE))
    if not has_id.any():
        nothing = bytearray(), np.zeros(len(rows), np.int64)
        return nothing, nothing
    spans = poll.spans[rows][:, _COMPARED] * has_id[:, None, None]
    lengths = spans[:, :, 1] - spans[:, :, 0]
    ids = _laid_out(poll.text, spans[:, :1], lengths[:, :1])
    kept = np.where(lengths > LONGEST_COMPARED, DIGEST_BYTES, lengths)
    kept[:, 0] = lengths[:, 0]
    return ids, _laid_out(poll.text, spans, kept)


def _laid_out(text: NDArray[np.uint8], spans: Longs, kept: Longs) -> Texts:
    """Pieces of a text, (n, k, 2) spans, end to end; where a piece is to take less room than it has, its digest."""
    to = np.cumsum(kept).reshape(kept.shape) - kept
    ends = np.ascontiguousarray(to[:, -1] + kept[:, -1])
    out = bytearray(int(ends[-1]))
    if not out:
        return out, ends
    short = kept == spans[:, :, 1] - spans[:, :, 0]
    copy_pieces(text, spans[:, :, 0][short], spans[:, :, 1][short], to[short], np.frombuffer(out, np.uint8))
    for i, j in zip(*np.nonzero(~short), strict=True):
        piece = text[spans[i, j, 0] : spans[i, j, 1]]
        out[to[i, j] : to[i, j] + DIGEST_BYTES] = hashlib.blake2b(piece.tobytes(), digest_size=DIGEST_BYTES).digest()
    return out, ends
