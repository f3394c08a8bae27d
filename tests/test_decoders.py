"""Every decoder against damaged bytes: seeded mutations of good inputs. Nothing crashes; what is refused is refused with a reason.

Some thousand executions a decoder in `make test`, a million in `make soak` (QUERYWARDEN_TEST_EXECUTIONS). A failure prints seed and
input; the same seed gives the same inputs.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import kafka.codec
import lz4.frame  # type: ignore[import-untyped]
import numpy as np
import pytest
import zstandard
from support import victims

from consumers.errors import CorruptState, Refused
from consumers.ingest.admission import Admission
from consumers.ingest.duplicates import Windows
from consumers.log import MAX_RECORD_BYTES, Records
from consumers.log.batch_walk import walk_records
from consumers.log.batches import CODECS, KEPT_BYTES, _decompressed, _UnreadableBatch
from consumers.log.formats import REASONS, InputReader, NativeFormat
from consumers.log.lines import Lines, gunzip, unzstd
from consumers.records.alert import packed_alert, stored_alert
from consumers.records.decision import stored_decision
from consumers.records.ledger import imbalance
from consumers.secrets import Secrets
from consumers.store import DecisionRow, OutboxAlert
from detector.baseline_file import pack_baseline, read_baseline
from detector.errors import CorruptBaseline, IncompatibleProfile
from detector.profile import Profile
from detector.profile_shape import Shape
from detector.profile_table import ProfileTable

SEEDED = [
    pytest.param(1, 4_000, id="quick"),
    pytest.param(2, int(os.environ.get("QUERYWARDEN_TEST_EXECUTIONS", "1000000")), id="long", marks=pytest.mark.soak),
]
SECRETS = Secrets(b"s" * 16, b"p" * 32, b"k" * 32)
TOKENS = [
    b"NaN", b"-Infinity", b"1e999", b"1e308", b"-0", b"9" * 400, b"null", b"true", b'"', b"\\", b"\\u0000", b"\\ud800",
    b"[" * 300, b'{"a":' * 300, b"]", b"}", b",", b":", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r\n", b"features",
    b"client_id", b"9999-12-31T23:59:59Z", b"0001-01-01T00:00:00+23:59", (1 << 63).to_bytes(8, "little"), b"\xff" * 8, b"\x80" * 10,
]  # fmt: skip


def mutated(good: bytes, rng: random.Random) -> bytes:
    """A few random edits: flip, cut, repeat, insert a token, overwrite, splice."""
    bad = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(bad) + 1)
        match rng.randrange(6):
            case 0 if bad:
                bad[at % len(bad)] ^= 1 << rng.randrange(8)
            case 1:
                del bad[at : at + rng.choice((1, 2, 8, 64))]
            case 2:
                bad[at:at] = bad[at : at + rng.choice((1, 4, 32))]
            case 3:
                bad[at:at] = rng.choice(TOKENS)
            case 4:
                bad[at : at + 4] = rng.randbytes(4)
            case _:
                other = rng.randrange(len(bad) + 1)
                bad[at:at] = bad[other : other + rng.randrange(1, 40)]
    return bytes(bad)


def fuzz(
    decode: Callable[[bytes], object], goods: list[bytes], seed: int, executions: int, *told: type[Exception]
) -> int:
    """Run the decoder; only the errors that it promises may come. Returns how many inputs it refused."""
    rng = random.Random(seed)
    refused = 0
    for i in range(executions):
        bad = mutated(rng.choice(goods), rng)
        try:
            decode(bad)
        except told:
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, execution {i}: {error!r} for {bad[:2000]!r}") from error
    return refused


def native() -> NativeFormat:
    return NativeFormat({victims.MODEL: InputReader(victims.baseline().map.schema)})


def events() -> list[bytes]:
    row = victims.items(1, np.random.default_rng(0))[0]
    return [
        victims.line(row, event_id="a-1", sampled_fraction=0.5, metadata={"ip": "10.0.0.1"}, status=200),
        victims.line(row, prediction={"logits": [1.0, 2.0, -3.0]}),
        victims.line(row, prediction={"label": "refer"}, model_version="7"),
        victims.line(row, features=dict(zip((f"x{i}" for i in range(10)), row.tolist(), strict=True))),
        victims.line(row, status=429, prediction=None),
    ]


@pytest.mark.parametrize(("seed", "executions"), SEEDED)
def test_every_damaged_event_is_a_query_or_a_dead_letter_with_a_reason(seed: int, executions: int) -> None:
    decoder = native()

    def decode(bad: bytes) -> None:
        out = decoder.decode(Records("c", [bad], np.array([5], np.int64), 6))
        assert imbalance(out.counters) == 0
        assert all(letter.reason in REASONS for letter in out.dead)
        for batch in out.batches.values():
            assert (np.abs(batch.inputs[batch.misfit == 0]) <= 1e12).all()

    fuzz(decode, events(), seed, executions)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 500_000, {"not_json"}),
        (b'{"a":' * 200_000, {"too_deep"}),
        (b'{"features":' + b"[" * 400_000 + b"]" * 400_000 + b"}", {"too_deep"}),
        (b'{"client_id":' + b"9" * 500_000 + b"}", {"malformed_client"}),
        (b'{"timestamp":"' + b"9" * 500_000 + b'","client_id":"a","model_id":"loans-v1"}', {"bad_timestamp"}),
        (b'{"client_id":"' + b"a" * 300 + b'"}', {"malformed_client"}),
        (b'{"client_id":"a\\u0000"}', {"malformed_client"}),
        (b"x" * (MAX_RECORD_BYTES + 1), {"too_large"}),
    ],
)
def test_depth_numbers_identities_and_sizes_have_limits(text: bytes, reason: set[str]) -> None:
    out = native().decode(Records("c", [text], np.array([0], np.int64), 1))
    assert len(out.dead) == 1
    assert out.dead[0].reason in reason


def compressed() -> dict[int, bytes]:
    body = b"".join(events()) * 20
    return {
        1: gzip.compress(body),
        2: kafka.codec.snappy_encode(body),
        3: lz4.frame.compress(body),
        4: zstandard.compress(body),
    }


@pytest.mark.parametrize(("seed", "executions"), SEEDED)
@pytest.mark.parametrize("codec", sorted(CODECS))
def test_every_damaged_batch_is_unreadable_or_read(codec: int, seed: int, executions: int) -> None:
    refused = fuzz(
        lambda bad: _decompressed(bad, codec), [compressed()[codec]], seed, executions // 2, _UnreadableBatch
    )
    assert refused > executions // 8


@pytest.mark.parametrize(("seed", "executions"), SEEDED)
def test_damaged_records_of_a_batch_are_unreadable_or_read(seed: int, executions: int) -> None:
    def record(delta: int, value: bytes) -> bytes:
        body = b"\x00\x00" + varint(delta) + varint(-1) + varint(len(value)) + value + b"\x00"
        return varint(len(body)) + body

    good = b"".join(record(i, value) for i, value in enumerate(events()))

    def decode(bad: bytes) -> None:
        found, whole = walk_records(np.frombuffer(bad, np.uint8), 5, 4, 0, KEPT_BYTES)
        assert ((found.deltas >= 0) & (found.deltas <= 4)).all()
        lengths = found.ends - found.starts
        assert ((lengths >= -1) & (lengths <= MAX_RECORD_BYTES + 1) & (found.ends <= len(bad))).all()
        if not whole:
            raise _UnreadableBatch

    assert walk_records(np.frombuffer(good, np.uint8), 5, 4, 0, KEPT_BYTES)[1]
    assert fuzz(decode, [good], seed, executions, _UnreadableBatch) > 0


def varint(n: int) -> bytes:
    n, out = (n << 1) ^ (n >> 63), bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


@pytest.mark.parametrize(("seed", "executions"), SEEDED)
@pytest.mark.parametrize(("read", "codec"), [(gunzip, 1), (unzstd, 4)])
def test_damaged_files_give_lines_or_one_clear_refusal(
    read: Callable[[io.BytesIO, str], object], codec: int, seed: int, executions: int
) -> None:
    def decode(bad: bytes) -> None:
        lines = Lines(read(io.BytesIO(bad), "log"))  # type: ignore[arg-type]
        while taken := lines.take(100):
            assert all(len(line) <= MAX_RECORD_BYTES + 1 for line in taken)

    assert fuzz(decode, [compressed()[codec]], seed, executions // 4, Refused) > 0


@pytest.mark.parametrize(("seed", "executions"), SEEDED)
def test_damaged_state_is_refused_or_begun_anew_never_a_crash(seed: int, executions: int) -> None:
    """Profiles, rows, alerts, sealed ids, windows, sketches, the baseline itself."""
    baseline = victims.baseline()
    fresh = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, 10**9)
    decoded = native().decode(Records("c", events(), np.arange(5), 5)).batches[victims.MODEL]
    fresh.add(list(decoded.clients), decoded, baseline.map.measure(decoded, SECRETS.sampling_key))
    shape = Shape.of(baseline.map, len(baseline.table.need))
    profile = fresh.spans(decoded.clients[0])[0].to_bytes()
    alert = packed_alert(
        {"alert_id": "x", "update": 0, "kind": "client", "client_id": "a", "tenant": "t"}, 5, SECRETS
    ).body
    window = b"\x01\x00\x02\x00" + bytes(4) + bytes(8) + b"h" * 16 + bytes(8)

    def windows(bad: bytes) -> None:
        one = Windows()
        one.put("c", bad)
        one.blob("c")

    few = executions // 8
    assert fuzz(lambda b: Profile.from_bytes(b, shape), [profile], seed, few, IncompatibleProfile) > 0
    assert fuzz(lambda b: stored_alert(OutboxAlert("u", 1, b), SECRETS), [alert], seed, few, CorruptState) > 0
    assert (
        fuzz(lambda b: stored_decision(DecisionRow(b, "clear", 0, 0), SECRETS, "t"), [alert], seed, few, CorruptState)
        > 0
    )
    assert fuzz(lambda b: SECRETS.unseal(b, "t"), [SECRETS.seal("acct", "t")], seed, few, CorruptState) > 0.9 * few
    assert fuzz(windows, [window], seed, few) == 0
    assert fuzz(lambda b: Admission(b).to_bytes(), [Admission().to_bytes()], seed, min(few, 500)) == 0
    whole = pack_baseline(baseline)
    assert fuzz(read_baseline, [whole], seed, min(few, 60), CorruptBaseline) > 50


@pytest.mark.parametrize("wrong", ["raises", "keeps NaN"])
def test_the_fuzzer_finds_a_decoder_that_is_broken(wrong: str) -> None:
    """The control: standard json takes NaN, and a decoder that lets an error out is caught."""

    def decode(bad: bytes) -> None:
        event = json.loads(bad)
        if wrong == "keeps NaN" and "NaN" in json.dumps(event):
            raise RuntimeError("a NaN came through")

    told = () if wrong == "raises" else (ValueError, RecursionError)
    with pytest.raises(AssertionError, match="seed 1, execution"):
        fuzz(decode, events(), 1, 20_000, *told)


def test_the_same_seed_gives_the_same_inputs(tmp_path: Path) -> None:
    one, other = ([mutated(events()[0], rng) for _ in range(50)] for rng in (random.Random(3), random.Random(3)))
    assert one == other
