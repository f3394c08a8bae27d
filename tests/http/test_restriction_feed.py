"""The decision feed: CrowdSec's shape, cursors that callers hold, server-sent events; over HTTP in tests/http."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.remembered_store import TENANT, RememberedStore, read

from consumers.enforcement.restrictions import KEPT_CHANGES, Restrictions
from consumers.http import restriction_feed
from consumers.http.auth import Credential
from consumers.http.restriction_feed import DecisionFeed, Places, TooManyFollowers, duration
from consumers.store import Restriction
from detector.policy import State
from detector.query import ClientKey

EDGE, OTHER_EDGE = (Credential(f"key:{name}", name, "gateway", TENANT, "key") for name in ("edge", "other"))


class Followed:
    def __init__(self, followers: int = 64) -> None:
        self.store, self.view, self.now_s = RememberedStore(), Restrictions("block"), 1000.0
        names = {"hash-a": "acct-a"}
        self.feed = DecisionFeed(self.view, lambda key: names.get(key.client), followers, clock=lambda: self.now_s)
        read(self.store, self.view)

    def detect(self, client: str, state: State, model: str = "m", until_s: int = 0, tenant: str = TENANT) -> None:
        self.view.learn([Restriction(ClientKey(tenant, model, client), state, state, until_s)], [], self.now_s)


def test_items_have_crowdsecs_shape_and_say_nothing_of_the_detection() -> None:
    f = Followed()
    f.detect("hash-a", "block", until_s=1000 + 4 * 3600)
    f.detect("hash-b", "throttle")
    a, b = f.feed.listing(TENANT)
    assert a | {"id": 0} == {
        "id": 0, "origin": "querywarden", "type": "ban", "scope": "ApiKey", "value": "hash-a", "duration": "4h0m0s",
        "scenario": "querywarden/model-extraction", "model": "m", "client": "hash-a", "until": "1970-01-01T04:16:40Z",
    }  # fmt: skip
    assert (b["type"], b["duration"], "until" in b) == ("throttle", "8760h0m0s", False)
    assert isinstance(a["id"], int)
    assert 0 <= a["id"] < 2**53, "safe in every JSON reader"
    assert a["id"] != b["id"]
    assert f.feed.listing(TENANT)[0]["id"] == a["id"]


def test_ids_only_for_those_who_may_see_them() -> None:
    f = Followed()
    f.detect("hash-a", "block")
    f.detect("hash-b", "block")
    assert [i["value"] for i in f.feed.listing(TENANT)] == ["hash-a", "hash-b"]
    assert [i["value"] for i in f.feed.listing(TENANT, named=True)] == ["acct-a", "hash-b"]
    assert f.feed.listing(TENANT, value="acct-a") == []
    assert len(f.feed.listing(TENANT, value="acct-a", named=True)) == 1
    assert len(f.feed.listing(TENANT, value="hash-a")) == 1


def test_filters_and_tenants() -> None:
    f = Followed()
    f.detect("a", "block", "m")
    f.detect("a", "throttle", "n")
    f.detect("b", "block", "m", tenant="another")
    assert [(i["client"], i["model"]) for i in f.feed.listing(TENANT)] == [("a", "m"), ("a", "n")]
    assert [i["model"] for i in f.feed.listing(TENANT, model="n")] == ["n"]
    assert [i["client"] for i in f.feed.listing("another")] == ["b"]
    assert f.feed.listing(TENANT, scopes="ip,range") == []
    assert len(f.feed.listing(TENANT, scopes="Ip,ApiKey")) == 2
    page = f.feed.page("another", since=f.feed.page("another").cursor)
    assert page.body == {"new": None, "deleted": None}


def test_what_ended_is_not_listed() -> None:
    f = Followed()
    f.detect("a", "block", until_s=1010)
    assert len(f.feed.listing(TENANT)) == 1
    f.now_s = 1010.5
    assert f.feed.listing(TENANT) == []


def test_a_follower_of_the_stream_knows_what_a_newcomer_is_told() -> None:
    for seed in range(20):
        rng, f = random.Random(seed), Followed()
        picture: dict[tuple[str, str], str] = {}
        page = f.feed.page(TENANT, startup=True)
        for _ in range(60):
            for _ in range(rng.randrange(5)):
                f.detect(rng.choice("abc"), rng.choice(["clear", "watch", "throttle", "block"]), rng.choice("mn"))
            page = f.feed.page(TENANT, since=page.cursor)
            for item in page.body["deleted"] or []:
                assert item["duration"].startswith("-")
                picture.pop((item["client"], item["model"]), None)
            for item in page.body["new"] or []:
                picture[item["client"], item["model"]] = item["type"]
            told = f.feed.page(TENANT, startup=True).body["new"] or []
            assert picture == {(i["client"], i["model"]): i["type"] for i in told}, seed


@pytest.mark.parametrize("cursor", ["nonsense", "", "YWJj", "YS4x", "ä", "=", "a" * 200, "LTE"])
def test_cursors_that_are_none(cursor: str) -> None:
    f = Followed()
    f.detect("a", "block")
    page = f.feed.page(TENANT, since=cursor)
    assert page.status == (410 if cursor else 200)


def test_a_cursor_of_another_process_or_too_far_back_is_gone() -> None:
    f, other = Followed(), Followed()
    assert f.feed.page(TENANT, since=other.feed.cursor).status == 410
    old = f.feed.cursor
    for n in range(KEPT_CHANGES + 1):
        f.detect("a", "block" if n % 2 == 0 else "clear")
    assert f.feed.page(TENANT, since=old).status == 410
    assert f.feed.page(TENANT, startup=True, since=old).status == 200


def test_before_the_first_sync_nothing_is_said() -> None:
    feed = DecisionFeed(Restrictions("block"))
    assert feed.page(TENANT, startup=True).status == 503


async def take(events: AsyncIterator[bytes], kinds: int) -> list[tuple[str, str, Any]]:
    """The next events: (event, id, data)."""
    found = []
    async for block in events:
        lines = dict(line.split(": ", 1) for line in block.decode().strip().splitlines() if not line.startswith(":"))
        if "event" in lines:
            found.append((lines["event"], lines["id"], json.loads(lines["data"])))
        if len(found) == kinds:
            break
    return found


def test_events_begin_follow_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restriction_feed, "_LOOK_EVERY_S", 0.001)

    async def scenario() -> None:
        f = Followed()
        f.detect("a", "block")
        events = f.feed.events(TENANT, follower=EDGE)
        ((kind, number, data),) = await take(events, 1)
        assert (kind, [i["client"] for i in data["new"]]) == ("startup", ["a"])
        f.detect("b", "block")
        f.detect("a", "clear")
        ((kind, number, data),) = await take(f.feed.events(TENANT, number, follower=EDGE), 1)
        assert (kind, [i["client"] for i in data["new"]], [i["client"] for i in data["deleted"]]) == (
            "decisions",
            ["b"],
            ["a"],
        )
        f.detect("c", "block")
        ((kind, _, data),) = await take(f.feed.events(TENANT, number, follower=EDGE), 1)
        assert (kind, [i["client"] for i in data["new"]], data["deleted"]) == ("decisions", ["c"], None)
        ((kind, _, data),) = await take(f.feed.events(TENANT, "from another process", follower=EDGE), 1)
        assert (kind, [i["client"] for i in data["new"]]) == ("reset", ["b", "c"])

    asyncio.run(scenario())


def test_an_empty_picture_is_told_too_and_silence_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restriction_feed, "_LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(restriction_feed, "_KEEP_ALIVE_S", 0.01)

    async def scenario() -> list[bytes]:
        found: list[bytes] = []
        async for block in Followed().feed.events(TENANT, follower=EDGE):
            found.append(block)
            if block.startswith(b":"):
                return found
        return found

    blocks = asyncio.run(scenario())
    assert b"event: startup" in blocks[1]
    assert blocks[-1].startswith(b":")


def test_followers_are_bounded_and_leave_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restriction_feed, "_LOOK_EVERY_S", 0.001)

    async def scenario() -> None:
        f = Followed(followers=2)
        first, second, third = (f.feed.events(TENANT, follower=who) for who in (EDGE, OTHER_EDGE, EDGE))
        await anext(first)
        await anext(second)
        with pytest.raises(TooManyFollowers):
            await anext(third)
        await first.aclose()  # type: ignore[attr-defined]
        await take(f.feed.events(TENANT, follower=EDGE), 1)

    asyncio.run(scenario())


def test_nobody_takes_the_places_of_gateways() -> None:
    """One key, or all keys of people together, or one gateway's: others still find a place."""
    places = Places(64)

    def taken(who: Credential) -> int:
        for number in range(65):
            try:
                places.take(who)
            except TooManyFollowers:
                return number
        return 65

    people = [Credential(f"key:{i}", "", "viewer", TENANT, "key") for i in range(6)]
    assert [taken(who) for who in people] == [8, 8, 8, 8, 0, 0]
    assert taken(EDGE) == 32
    places.leave(people[0])
    assert taken(people[4]) == 1
    places = Places(64)
    assert (taken(EDGE), taken(OTHER_EDGE)) == (48, 16)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m0s"), (3661, "1h1m1s"), (-1, "-1s"), (86_400, "24h0m0s")]
)
def test_durations_as_go_writes_them(seconds: int, text: str) -> None:
    assert duration(seconds) == text
