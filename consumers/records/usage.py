"""Token usage: how many tokens a client's queries and their answers had, if the log says so (`usage` of the events).

Rules:
* `usage` is never a reason to refuse an event. ``total_tokens`` counts, or else the sum of what is stated of input and answer; names are
  those of the common interfaces of language models. Anything else counts as 0, and an event as at most `MOST_TOKENS`.
* An event that stands for several queries counts as often. Repetitions that a producer sent twice count once, as queries do. A sum
  stays at `MOST_KEPT` once it is there.
* Tokens are kept by half-horizon window, the newest and the one before it, which is what the longer span of a profile covers.
* Usage is field ``u`` of the profile (a msgpack map window → tokens). A field that cannot be read is started again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from detector.query import ClientKey, QueryBatch

FIELD = "u"
MOST_TOKENS = 10**8
"""Of one event: more than any model takes."""
MOST_KEPT = 2**53
"""Of one window: every reader of JSON holds it exactly."""

Usage = Mapping[int, int]
"""Half-horizon window → tokens."""


class _Stated(msgspec.Struct):
    """`usage` of an event, as OpenAI's and Anthropic's interfaces name it."""

    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


_stated = msgspec.json.Decoder(_Stated)
_map = msgspec.msgpack.Decoder(dict[int, int])
_pack = msgspec.msgpack.Encoder()


def tokens_of(usage: msgspec.Raw | bytes) -> int:
    """Return the tokens of one event.

    >>> (
    ...     tokens_of(b'{"prompt_tokens": 9, "completion_tokens": 4}'),
    ...     tokens_of(b'{"total_tokens": 20}'),
    ...     tokens_of(b'"many"'),
    ... )
    (13, 20, 0)
    """
    try:
        said = _stated.decode(usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return 0
    parts = (said.input_tokens or said.prompt_tokens or 0) + (said.output_tokens or said.completion_tokens or 0)
    return min(max(said.total_tokens or parts, 0), MOST_TOKENS)


def seen(
    known: Mapping[ClientKey, Usage],
    keys: Sequence[ClientKey],
    batch: QueryBatch,
    stated: Mapping[int, msgspec.Raw | bytes],
    half_horizon_ms: int,
) -> dict[ClientKey, Usage]:
    """Clients whose usage changes, with what it is then.

    known   usage so far
    keys    (g,) what `batch.who` points into
    stated  offset → `usage` of the events that have some
    """
    if not stated:
        return {}
    found: dict[ClientKey, dict[int, int]] = {}
    rows = zip(batch.offsets.tolist(), batch.who.tolist(), batch.time_ms.tolist(), batch.weight.tolist(), strict=True)
    for offset, who, time_ms, weight in rows:
        raw = stated.get(offset)
        n = tokens_of(raw) if raw is not None else 0
        if not n:
            continue
        key = keys[who]
        mine = found.get(key)
        if mine is None:
            mine = found[key] = dict(known.get(key, {}))
        window = time_ms // half_horizon_ms
        mine[window] = min(mine.get(window, 0) + round(n * weight), MOST_KEPT)
    return {key: {w: n for w, n in sorted(mine.items()) if w >= max(mine) - 1} for key, mine in found.items()}


def packed(usage: Usage) -> bytes:
    return _pack.encode(usage)


def unpacked(blob: bytes | None) -> dict[int, int]:
    """Usage as stored; none for a field that is missing or damaged."""
    if not blob:
        return {}
    try:
        return _map.decode(blob)
    except (msgspec.DecodeError, ValueError):
        return {}


def together(blobs: Iterable[bytes | None]) -> int:
    """Tokens of one client from all its profile cells, in the newest window and the one before it."""
    cells = [unpacked(blob) for blob in blobs]
    newest = max((window for cell in cells for window in cell), default=0)
    return sum(n for cell in cells for window, n in cell.items() if window >= newest - 1)
