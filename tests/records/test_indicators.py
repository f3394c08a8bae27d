"""Who matches an indicator: by any of its hashes, while it holds, and never by what many accounts share."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from consumers.records.indicators import Indicator, Reported, StoredIndicators, most_matching
from detector.query import ClientKey

NOW_S = 1000


def indicator(name: str, *hashes: str, **more: Any) -> Indicator:
    fields: dict[str, Any] = {"confidence": 50, "valid_from_s": 0, "valid_until_s": 2000} | more
    return Indicator(name, "k", hashes, reason="extraction", family="", techniques=(), **fields)


def imported(source: str, *indicators: Indicator) -> StoredIndicators:
    return StoredIndicators(source, indicators, "d", "maria", 0)


def key(i: int, model: str = "m") -> ClientKey:
    return ClientKey("t", model, f"{i:032x}")


def test_clients_that_match_one_indicator_share_one_link() -> None:
    of = Reported([imported("p", indicator("i", "ip:1", "ip:2", "payment:3"), indicator("j", "ip:9"))], NOW_S)
    found = of.among([(key(1), ["k.ip:1", "k.ip:2"]), (key(2), ["k.payment:3"]), (key(3), ["other.ip:1", "k.ip:4"])])
    assert {k.client[-1]: [(m.source, m.indicator.id, m.kinds) for m in mine] for k, mine in found.items()} == {
        "1": [("p", "i", ("ip",))], "2": [("p", "i", ("payment",))],
    }  # fmt: skip
    assert found[key(1)][0].links == found[key(2)][0].links
    other = Reported([imported("q", indicator("i", "ip:1"))], NOW_S).among([(key(1), ["k.ip:1"])])
    assert other[key(1)][0].links != found[key(1)][0].links, "another source may not extend a peer's indicator"


def test_an_indicator_holds_from_its_beginning_to_its_end() -> None:
    times = {"past": (0, NOW_S), "future": (NOW_S + 1, 3000), "now": (NOW_S, NOW_S + 1)}
    given_ = [indicator(name, "ip:1", valid_from_s=a, valid_until_s=b) for name, (a, b) in times.items()]
    found = Reported([imported("p", *given_)], NOW_S).among([(key(1), ["k.ip:1"])])
    assert [m.indicator.id for m in found[key(1)]] == ["now"]


def test_a_value_that_thousands_share_proposes_nobody() -> None:
    of = Reported([imported("p", indicator("i", "ip:shared", "ip:rare"))], NOW_S)
    clients = [(key(i), ["k.ip:shared"] if i % 2 else []) for i in range(10_000)]
    clients[7] = (key(7), ["k.ip:shared", "k.ip:rare"])
    assert list(of.among(clients)) == [key(7)]
    few = clients[: 2 * most_matching(40)]
    assert len(of.among(few)) == most_matching(40), "the control: what few share"
    elsewhere = [(key(i, "other"), ["k.ip:shared"]) for i in range(3)]
    assert len(of.among([*clients, *elsewhere])) == 4, "each model counts for itself"


hashes = st.lists(st.sampled_from([f"ip:{i}" for i in range(6)]), max_size=4)


@given(st.lists(hashes, max_size=30), st.lists(hashes, min_size=1, max_size=4))
def test_it_is_the_plain_comparison_of_all_with_all(accounts: list[list[str]], reported: list[list[str]]) -> None:
    given_ = [indicator(str(i), *dict.fromkeys(one)) for i, one in enumerate(reported)]
    clients = [(key(i), [f"k.{h}" for h in mine]) for i, mine in enumerate(accounts)]
    found = Reported([imported("p", *given_)], NOW_S).among(clients)
    shares = {h: sum(h in mine for mine in accounts) for h in {f"ip:{i}" for i in range(6)}}
    for i, mine in enumerate(accounts):
        telling = {h for h in mine if shares[h] <= most_matching(len(accounts))}
        expected = {one.id for one in given_ if telling & set(one.hashes)}
        assert {m.indicator.id for m in found.get(key(i), ())} == expected
