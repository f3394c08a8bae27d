"""Bytes of profiles: the compiled writer and reader beside slow twins, and what the bytes of a table's rows are."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.references import DAY_MS, KEY, REFERENCES, START_MS, batch_of, fitted_baseline, life, reference_of

from detector.packing import pack_bits, pack_counts, pack_hashes, pack_sparse
from detector.profile import Profile
from detector.profile_format import FORMAT, HEAD
from detector.profile_table import ProfileTable
from detector.query import QueryBatch

YEAR_MS = 365.0 * DAY_MS


def table_of(name: str, half_horizon_ms: int = DAY_MS // 12) -> ProfileTable:
    baseline = fitted_baseline(name)
    return ProfileTable(
        baseline.map, baseline.table, baseline.calibration_version, half_horizon_ms, 2, memory_ms=YEAR_MS
    )


@functools.cache
def stream(name: str) -> QueryBatch:
    """360 queries of one client over 20 windows."""
    batch = life(name, 360, np.random.default_rng(7))
    return replace(batch, time_ms=START_MS + np.arange(len(batch), dtype=np.int64) * (DAY_MS // 216))


def fold(profiles: ProfileTable, batch: QueryBatch) -> None:
    profiles.add(list(batch.clients), batch, profiles.map.measure(batch, KEY))


# ------------------------------------------------------------------ the slow twin of the writer


def column(values: NDArray[np.int64], size: int) -> bytes:
    """Bits a value, the least, and the differences from it as one long number."""
    least = int(values.min())
    bits = int(values.max() - least).bit_length()
    long: int = sum((int(value) - least) << (bits * i) for i, value in enumerate(values))
    return (
        bytes([bits])
        + int(least % 256**size).to_bytes(size, "little")
        + long.to_bytes((bits * len(values) + 7) // 8, "little")
    )


def remembered(profile: Profile) -> tuple[list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]], bytes]:
    """Hashes, answers and codes of ring buffer and reservoir, as far as they are filled; the last rows column by column."""
    memory = profile.memory
    if memory is None:
        return [], b""
    rows = min(int(memory.ring_n), len(memory.ring_hash))
    kept = int(memory.reservoir_n)
    groups = [
        (hashes[:n], labels[:n].astype(np.int64), codes[:n].astype(np.int64))
        for n, hashes, labels, codes in (
            (rows, memory.ring_hash, memory.ring_label, memory.ring_codes),
            (kept, memory.reservoir_hash, memory.reservoir_label, memory.reservoir_codes),
        )
        if n
    ]
    return groups, memory.raw_ring[: min(int(memory.ring_n), len(memory.raw_ring))].astype("<u2").tobytes()


def written_slowly(profile: Profile) -> bytes:
    """The bytes of a profile, part by part as `profile_format.py` lists them."""
    memory, archive = profile.memory, profile.archive
    groups, raw = remembered(profile)
    size = 0 if memory is None else memory.ring_codes.dtype.itemsize
    by_column = [[column(codes[:, j], size) for j in range(codes.shape[1])] for _, _, codes in groups]
    by_row = [codes.astype(f"<u{size}").tobytes() for _, _, codes in groups]
    packs = sum(len(one) for group in by_column for one in group) < sum(map(len, by_row))
    known = np.unique(np.concatenate([np.empty(0, np.uint64), *(hashes for hashes, _, _ in groups)]))
    derived = bool(len(known)) and np.array_equal(known, profile.sample_hash)
    has = (memory is not None) + 2 * bool(archive) + 4 * derived + 8 * packs
    head = HEAD.pack(
        b"QP", FORMAT, bytes.fromhex(profile.map_id), bytes.fromhex(profile.calibration_version), profile.window, profile.queries,
        profile.first_ms, profile.last_ms, len(profile.sample_hash), len(profile.odd_hash), len(profile.sequence_hash),
        len(profile.passage_ms), int(memory.ring_n) if memory else 0, int(memory.reservoir_n) if memory else 0, has, profile.decay,
    )  # fmt: skip

    def parts() -> Iterator[bytes]:
        yield head
        yield from (pack_counts(c) for c in (profile.classes, profile.region_counts, profile.distance_counts))
        yield b"" if derived else pack_hashes(profile.sample_hash)
        yield from (np.packbits(flags).tobytes() for flags in (profile.sample_novel, profile.sample_misfit))
        yield from (pack_hashes(profile.odd_hash), pack_bits(profile.odd_bits))
        yield from (pack_hashes(profile.sequence_hash), pack_bits(profile.sequence_bits), pack_sparse(profile.maxima))
        yield from (profile.passage_ms.astype("<i8").tobytes(), profile.passage_query.astype("<u4").tobytes())
        for (hashes, labels, _), columns, rows in zip(groups, by_column, by_row, strict=True):
            yield pack_hashes(hashes) + column(labels, 2) + (b"".join(columns) if packs else rows)
        yield raw
        if archive:
            yield archive.window.to_bytes(4, "little", signed=True) + bytes(len(s) for s in archive.sets)
            for s in archive.sets:
                ago = np.clip(archive.window - s.seen, 0, 0xFFFF).astype("<u2").tobytes()
                yield s.limit.to_bytes(7, "little") + pack_hashes(s.hashes) + pack_bits(s.bits) + ago

    body = b"".join(parts())
    return body + zlib.crc32(body).to_bytes(4, "little")


# ------------------------------------------------------------------ what is written and read


@pytest.mark.parametrize("name", REFERENCES)
def test_a_table_s_bytes_are_those_of_the_slow_writer_and_go_on(name: str) -> None:
    """Two tables side by side: one keeps its clients, the other stores and loads them after each poll. Spans turn, archives fill."""
    kept, passing = table_of(name), table_of(name)
    stored: dict[str, list[bytes]] = {}
    seen = set()
    for batch in np.array_split(np.arange(360), [3, 40, 120, 121, 240]):
        poll = stream(name).take(batch)
        assert passing.put_packed({client: stored.get(client, []) for client in poll.clients}) == {}
        for table in (kept, passing):
            fold(table, poll)
        for client, packed, twin in zip(
            poll.clients, kept.packed(poll.clients), passing.packed(poll.clients), strict=True
        ):
            spans = kept.spans(client)
            assert packed.spans == {span.window: written_slowly(span) for span in spans}
            assert packed == twin
            assert packed.fades == spans[0].fades
            assert [span.to_bytes() for span in spans] == list(packed.spans.values())
            seen.add((len(spans), bool(spans[0].archive)))
            stored[client] = list(packed.spans.values())
            passing.drop(client)
    assert {length for length, _ in seen} == {1, 2}
    assert {archived for _, archived in seen} == {False, True}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**16), st.integers(1, 6))
def test_codes_that_differ_little_take_little(n: int, seed: int, grain: int) -> None:
    """Columns of few values are packed, and read as they were."""
    rng, name = np.random.default_rng(seed), "people"
    traffic = reference_of(name).traffic
    rows = traffic.inputs[rng.integers(0, grain, n)]
    batch = batch_of(rows, labels=rng.integers(0, 2, n).astype(np.int32))
    profiles = table_of(name, 2**62)
    fold(profiles, batch)
    (packed,) = profiles.packed(list(batch.clients))
    (blob,) = packed.spans.values()
    span = profiles.spans(batch.clients[0])[0]
    assert blob == written_slowly(span)
    read = Profile.from_bytes(blob, profiles.shape)
    assert read.memory is not None
    assert span.memory is not None
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(read.memory, span.memory, strict=True))


def test_a_client_whose_bytes_are_refused_is_unknown_and_the_others_are_taken() -> None:
    profiles = table_of("people")
    batch = stream("people").take(np.arange(10))
    fold(profiles, batch)
    (packed,) = profiles.packed(list(batch.clients))
    blob = next(iter(packed.spans.values()))
    body = blob[: HEAD.size] + blob[HEAD.size + 1 : -4]
    bad: dict[object, list[bytes]] = {
        "cut": [blob[:-1]],
        "shifted": [body + zlib.crc32(body).to_bytes(4, "little")],
        "none": [b""],
    }
    fresh = table_of("people")
    faults = fresh.put_packed({"good": [blob], **bad, "new": []})
    assert faults.keys() == bad.keys()
    assert all(faults.values())
    assert set(fresh.rows) == {"good", "new"}
    assert list(fresh.packed(["good"])[0].spans.values()) == [blob]
    assert table_of("digits").put_packed({"c": [blob]}).keys() == {"c"}


def test_remembered_rows_of_a_short_span_change_nothing() -> None:
    """No process writes any: the memory of a client is stored with its long span."""
    profiles, other = table_of("people", 2**62), table_of("people", 2**62)
    for table, first in ((profiles, 0), (other, 40)):
        fold(table, stream("people").take(np.arange(first, first + 40)))
    client = stream("people").clients[0]
    (long,), (short,) = (list(table.packed([client])[0].spans.values()) for table in (profiles, other))
    fresh = table_of("people", 2**62)
    assert fresh.put_packed({client: [long, short]}) == {}
    kept, mine = (table.spans(client)[0].memory for table in (fresh, profiles))
    assert kept is not None
    assert mine is not None
    assert np.array_equal(kept.ring_hash, mine.ring_hash)
