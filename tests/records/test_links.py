"""Links and witnesses at ingest: what of `metadata` and of odd queries is kept, bounded, sealed, and the same however polls are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import victims

from consumers.ingest.loop import IngestLoop, run
from consumers.ingest.step import Ingest
from consumers.log import Records
from consumers.log.files import FileLog
from consumers.log.formats import InputReader, NativeFormat
from consumers.records import links, sample_events
from consumers.secrets import Secrets
from consumers.sharing_keys import SharingKey
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.campaigns import Group
from detector.query import ClientKey

NewStore = Callable[[], EmbeddedStore]
MODEL = victims.MODEL


def raw(text: bytes) -> msgspec.Raw:
    return msgspec.json.decode(b'{"m":' + text + b"}", type=dict[str, msgspec.Raw])["m"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"org":"acme","session":"s-1"}', [("org", "acme"), ("session", "s-1")]),
        (
            b'{"registration":"+49 1","payment":"c-9","device":"d"}',
            [("payment", "c-9"), ("device", "d"), ("registration", "+49 1")],
        ),
        (b'{"org":" acme ","user_agent":"curl","ja4":"t13d"}', [("org", "acme")]),
        (b'{"user_agent":"curl","headers":"host,accept"}', [("agent", "curl\x00host,accept")]),
        (b'{"headers":"host,accept","plan":"pro"}', [("plan", "pro")]),
        (b'{"asn":64500,"ja4":"t13d"}', [("asn_ja4", "64500\x00t13d")]),
        (b'{"asn":64500}', []),
        (b'{"ip":"192.0.2.1"}', [("ip", "192.0.2.1")]),
        (b'{"ip":"2001:db8:1:2:3:4:5:6"}', [("ip", "2001:db8:1:2::/64")]),
        (b'{"ip":"2001:DB8:1:2::1%eth0"}', [("ip", "2001:db8:1:2::/64")]),
        (b'{"ip":"::ffff:192.0.2.1"}', [("ip", "192.0.2.1")]),
        (b'{"ip":"127.0.0.1"}', []),
        (b'{"ip":"::"}', []),
        (b'{"ip":3221225985}', []),
        (b'{"ip":"192.0.2.1:4433"}', []),
        (b'{"org":true,"session":1.5}', []),
        (b'{"org":null,"session":["a"],"ip":{"a":1}}', []),
        (b'{"org":"","session":"unknown","asn":0,"ja4":"-"}', []),
        (b'{"org":' + b"9" * 400 + b',"session":-7}', [("session", "-7")]),
        (b'{"org":"' + b"x" * 257 + b'","session":"' + b"y" * 256 + b'"}', [("session", "y" * 256)]),
        ('{"org":"' + "ü" * 129 + '"}', []),
        (b"[1,2]", []),
        (b'"org"', []),
        (b"null", []),
        (b"7", []),
    ],
)
def test_what_ties_and_what_does_not(text: bytes | str, expected: list[tuple[str, str]]) -> None:
    encoded = text.encode() if isinstance(text, str) else text
    assert links.links_of(raw(encoded)) == expected


def test_keys_of_the_settings_link_too_and_say_what_they_mean() -> None:
    own = links.OwnKeys(who=("reseller",), where=("app", "plan"))
    text = b'{"org":"acme","reseller":"r-1","app":7,"plan":"pro","color":"red"}'
    assert links.links_of(raw(text), own) == [
        ("org", "acme"), ("plan", "pro"), ("who.reseller", "r-1"), ("where.app", "7"), ("where.plan", "pro"),
    ]  # fmt: skip
    kinds = ("who.reseller", "where.app", "agent", "plan")
    assert [bool(Group((f"{kind}:0",), ("a",)).bound([[f"{kind}:0"]])) for kind in kinds] == [
        True, False, False, False,
    ]  # fmt: skip


def test_metadata_is_never_a_reason_to_refuse(baseline: Baseline) -> None:
    hostile: list[Any] = [
        None, 7, "text", [1, [2, [3]]], {"org": {"a": [1] * 1000}}, {"ip": "x" * 100_000}, {"org": 10**300},
        {"ip": "::1" * 99}, {str(i): i for i in range(5000)}, {"org": "\u0000\u2028"}, {"session": "é" * 200},
    ]  # fmt: skip
    values = [victims.encoded(victims.event([1.0] * victims.WIDTH) | {"metadata": one}) for one in hostile]
    format = NativeFormat({MODEL: InputReader(baseline.map.schema)})
    decoded = format.decode(Records("c:0", values, np.arange(len(values)), len(values)))
    assert decoded.counters["queries"] == len(hostile)
    assert decoded.dead == []
    for one in decoded.metadata[MODEL].values():
        assert len(links.links_of(one)) <= 4


@given(st.binary(max_size=60))
def test_a_damaged_field_is_begun_anew(blob: bytes) -> None:
    assert len(links.unpacked(blob)) <= links.KEPT
    assert sample_events.unpacked(blob, Secrets(b"s" * 16, b"p" * 32, b"k" * 32), "default") == ()


def test_a_link_is_keyed_by_tenant_and_kind(secrets: Secrets) -> None:
    other = Secrets(b"s" * 16, b"q" * 32, b"k" * 32)
    made = {
        next(links._hashed([(kind, "acme")], tenant, s))
        for kind in ("org", "session")
        for tenant in ("a", "b")
        for s in (secrets, other)
    }
    assert len({one.partition(":")[2] for one in made}) == 8
    assert all(len(one.partition(":")[2]) == 16 for one in made)


# ------------------------------------------------------------------------------------------------------ at ingest


def odd_rows(n: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
    low, high = victims.reference_rows().min(0), victims.reference_rows().max(0)
    return np.round(rng.uniform(low, high, size=(n, victims.WIDTH)), 2)


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """A thief of 60 odd queries among honest ones, that changes address and session with every query, its organisation never."""
    rng = np.random.default_rng(8)
    honest, odd = victims.items(240, rng), odd_rows(60, rng)
    out = []
    for i in range(240):
        origin: dict[str, Any] = {"org": f"org-{i % 6 % 2}", "ip": f"192.0.2.{i % 6}", "session": f"s-{i % 3}"}
        event_id: Any = f"h-{i}" if i % 4 else None
        out.append(victims.line(honest[i], client_id=f"honest-{i % 6}", event_id=event_id, metadata=origin))
        if i % 4 == 0:
            k = i // 4
            origin = {"org": "shell", "ip": f"198.51.100.{k}", "session": f"t-{k}", "asn": 1, "ja4": "z"}
            event_id = ["x" * 128, "y" * 129, 17, None, f"t-{k}"][k % 5]
            out.append(victims.line(odd[k], client_id="thief", event_id=event_id, metadata=origin))
    return out


def fields_after(
    folder: Path, store: EmbeddedStore, reading: Ingest, lines: Sequence[bytes], poll: int, restart: int = 0
) -> dict[str, dict[str, bytes]]:
    """client → its fields after the log; restart: a new process takes over every so many polls."""
    log = victims.write_lines(folder / "log.jsonl", lines)
    if restart:
        for _ in range(len(lines) // poll // restart):
            one = IngestLoop(FileLog([log]), store, reading, max_poll_records=poll, cautious_after=99)
            for _ in range(restart):
                one.turn(0.0)
    last = IngestLoop(FileLog([log]), store, reading, max_poll_records=poll, cautious_after=99)
    run(last, lambda: False, until_end=True, poll_timeout_s=0.0)
    names = ["thief", *(f"honest-{i}" for i in range(6))]
    keys = {n: ClientKey("default", MODEL, reading.secrets.client_hash("default", n)) for n in names}
    (cell,) = store.cells()
    found = store.shards(cell, list(keys.values())).fields
    return {name: found[key] for name, key in keys.items()}


@pytest.fixture(scope="module")
def reading(baseline: Baseline, secrets: Secrets) -> Ingest:
    return Ingest({MODEL: baseline}, secrets)


def test_links_are_kept_first_seen_bounded_and_hashed(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    store = new_store()
    fields = fields_after(tmp_path, store, reading, lines, 50)
    thief = links.unpacked(fields["thief"]["l"])
    assert len(thief) == 2 + 2 * links.OF_A_KIND <= links.KEPT
    kinds = [one.partition(":")[0] for one in thief]
    assert kinds.count("org") == 1
    assert kinds.count("asn_ja4") == 1
    assert max(map(kinds.count, kinds)) <= links.OF_A_KIND
    assert thief[:4] == tuple(
        links._hashed(
            [("org", "shell"), ("session", "t-0"), ("ip", "198.51.100.0"), ("asn_ja4", "1\x00z")],
            "default",
            reading.secrets,
        )
    )
    orgs = {name: {o for o in links.unpacked(f["l"]) if o.startswith("org:")} for name, f in fields.items()}
    assert orgs["honest-0"] == orgs["honest-2"] != orgs["honest-1"]
    kept = b"".join(Path(p).read_bytes() for p in (store.path, f"{store.path}-wal") if Path(p).exists())
    for secret in (b"shell", b"198.51.100.", b"t-10", b"x" * 128, b"honest-1"):
        assert secret not in kept


def test_witnesses_are_the_last_odd_queries_with_an_id_of_fair_length(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    fields = fields_after(tmp_path, new_store(), reading, lines, 50)
    told = sample_events.unpacked(fields["thief"]["x"], reading.secrets, "default")
    names = [name for _, _, name in told]
    assert len(names) == sample_events.KEPT
    assert set(names) <= {"x" * 128, "17", *(f"t-{k}" for k in range(60))}
    assert names[-1] == "t-59"
    mask = int(np.bitwise_or.reduce(sample_events.masks(reading.baselines[MODEL].table)))
    assert all(bits & mask for _, bits, _ in told)
    honest = [len(sample_events.unpacked(fields[f"honest-{i}"].get("x"), reading.secrets, "default")) for i in range(6)]
    assert min(honest) < sample_events.KEPT, "what is not odd is no witness"
    assert len(fields["thief"]["x"]) < 6 * (sample_events.MOST_BYTES + 40)


@pytest.mark.parametrize(("poll", "restart"), [(1, 0), (7, 0), (7, 3), (1000, 0)])
def test_polls_and_restarts_make_no_difference(
    poll: int, restart: int, tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    (tmp_path / "whole").mkdir()
    whole = fields_after(tmp_path / "whole", new_store(), reading, lines, 50)
    cut = fields_after(tmp_path, new_store(), reading, lines, poll, restart)
    for name, fields in whole.items():
        assert links.unpacked(cut[name].get("l")) == links.unpacked(fields.get("l")), name
        mine, theirs = (sample_events.unpacked(f.get("x"), reading.secrets, "default") for f in (cut[name], fields))
        assert mine == theirs, name


def test_only_what_changed_is_written(tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]) -> None:
    written: list[set[str]] = []
    one = IngestLoop(
        FileLog([victims.write_lines(tmp_path / "log.jsonl", [*lines, *lines[:50]])]), new_store(), reading,
        max_poll_records=50, on_commit=lambda checkpoint, _: written.append({n for f in checkpoint.profiles.values() for n in f}),
    )  # fmt: skip
    run(one, lambda: False, until_end=True, poll_timeout_s=0.0)
    assert "l" in written[0]
    assert [("l" in names) for names in written[2:]] == [False] * len(written[2:])


def test_a_sharing_key_adds_the_same_hashes_everywhere_and_changes_no_link(
    tmp_path: Path, new_store: NewStore, baseline: Baseline, reading: Ingest, lines: list[bytes]
) -> None:
    """Whatever the secrets of a deployment are, and however its polls are cut; hashes under a key that is gone go too."""
    keys = (SharingKey(b"a" * 32), SharingKey(b"b" * 32))
    plain = fields_after(tmp_path, new_store(), reading, lines, 50)
    sharing = Ingest({MODEL: baseline}, reading.secrets, sharing=keys)
    elsewhere = Ingest({MODEL: baseline}, Secrets(b"x" * 16, b"y" * 32, b"z" * 32), sharing=keys[:1])
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    store = new_store()
    with_keys = fields_after(tmp_path / "b", store, sharing, lines, 7, restart=3)
    theirs = fields_after(tmp_path / "c", new_store(), elsewhere, lines, 50)
    for name, fields in with_keys.items():
        own, shared = links.together([fields["l"]])
        assert own == links.unpacked(plain[name]["l"])
        assert {one.partition(".")[0] for one in shared} == {key.key_id for key in keys}
        assert len(shared) == len(keys) * sum(one.startswith(tuple(links.SHAREABLE)) for one in own)
        first = {one for one in shared if one.startswith(keys[0].key_id)}
        assert first == set(links.together([theirs[name]["l"]])[1])
    assert f"{keys[0].key_id}.org:{keys[0].hash('org', 'shell')}" in links.together([with_keys["thief"]["l"]])[1]
    known = {ClientKey("default", MODEL, "c"): links.unpacked(with_keys["thief"]["l"])}
    later = reading.format.decode(Records("c:0", [victims.line(victims.items(1, np.random.default_rng(1))[0], client_id="c",
                                                               metadata={"plan": "pro"})], np.arange(1), 1))  # fmt: skip
    changed = links.seen(
        known, list(known), later.batches[MODEL], later.metadata[MODEL], reading.secrets, sharing=keys[1:]
    )
    (kept,) = changed.values()
    assert {links._circle(one) for one in kept} == {"", keys[1].key_id}
