"""Templates as stored: bounded, sealed, of one map and tenant, and the same however polls are cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from consumers.records import templates
from consumers.secrets import Secrets
from detector.query import ClientKey, QueryBatch
from detector.templates import TemplateSketch
from detector.text import UNTRAINED

SECRETS = Secrets(b"s" * 16, b"p" * 32, b"k" * 32)
MAP = "00ff" * 4
KEYS = [ClientKey("default", "m", f"c{i}") for i in range(4)]
TEXTS = [f"please write a question about {word} and its answer" for word in "abcdefghijkl"]


def batch_of(who: list[int], texts: list[str]) -> tuple[QueryBatch, Any]:
    n, read = len(who), [UNTRAINED.read(text) for text in texts]
    hashes, rows = np.array([h for _, h in read]), np.array([row for row, _ in read])
    batch = QueryBatch(
        clients=[key.client for key in KEYS], who=np.array(who, np.int32), inputs=rows, labels=np.zeros(n, np.int32),
        probabilities=np.zeros((n, 0), np.float32), values=np.zeros(n), time_ms=np.zeros(n, np.int64), weight=np.ones(n, np.float32),
        offsets=np.arange(n), templates=hashes,
    )  # fmt: skip
    return batch, cast(Any, SimpleNamespace(templates=hashes, raw=rows))


def counted(poll: int) -> dict[ClientKey, TemplateSketch]:
    known: dict[ClientKey, TemplateSketch] = {}
    who = [i % 3 for i in range(len(TEXTS))]
    for at in range(0, len(TEXTS), poll):
        batch, measured = batch_of(who[at : at + poll], TEXTS[at : at + poll])
        known |= templates.seen(known, KEYS, batch, measured)
    return known


def test_polls_make_no_difference() -> None:
    one, other = counted(1), counted(7)
    assert set(one) == set(other) == set(KEYS[:3]), "nobody without a text"
    assert all(one[key].to_bytes() == other[key].to_bytes() for key in one)
    assert one[KEYS[0]].shared == (0, 4), "four texts are too few"


def test_tables_have_none() -> None:
    batch, _ = batch_of([0], TEXTS[:1])
    assert templates.seen({}, KEYS, batch, cast(Any, SimpleNamespace(templates=np.zeros((1, 0), np.uint64)))) == {}


def test_a_field_is_sealed_and_of_one_map_and_tenant() -> None:
    mine = counted(3)[KEYS[0]]
    blob = templates.packed(mine, MAP, SECRETS, "default")
    found = templates.unpacked(blob, MAP, SECRETS, "default")
    assert found is not None
    assert found.to_bytes() == mine.to_bytes()
    assert mine.keys[:1].tobytes() not in blob
    assert len(blob) < TemplateSketch.BYTES + 64
    for wrong in (None, b"", blob[:-1], blob + b"x"):
        assert templates.unpacked(wrong, MAP, SECRETS, "default") is None
    assert templates.unpacked(blob, "0" * 16, SECRETS, "default") is None
    assert templates.unpacked(blob, MAP, SECRETS, "other") is None


def test_cells_are_put_together_and_a_client_without_any_is_not_known() -> None:
    mine = counted(3)[KEYS[0]]
    blob = templates.packed(mine, MAP, SECRETS, "t")
    both = templates.together([blob, None, blob], MAP, SECRETS, "t")
    assert both is not None
    assert both.shared == (8, 8)
    assert templates.together([None], MAP, SECRETS, "t") is None


def test_links_are_keyed_by_tenant_and_map() -> None:
    links = {
        templates.hashed([7], MAP, SECRETS, "a"), templates.hashed([7], MAP, SECRETS, "b"),
        templates.hashed([7], "0" * 16, SECRETS, "a"), templates.hashed([7], MAP, Secrets(b"s" * 16, b"q" * 32, b"k" * 32), "a"),
    }  # fmt: skip
    assert len(links) == 4
    assert all(link.startswith("template:") and len(link) == 25 for (link,) in links)
