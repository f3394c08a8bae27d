"""The view of restrictions in memory: what wins over what, what is enforced, what ends, what followers are told."""

from __future__ import annotations

import random

import pytest
from support.remembered_store import TENANT, RememberedStore, read

from consumers.detect.step import Detect
from consumers.enforcement.breaker import GatewayBreaker
from consumers.enforcement.refresher import Refresher
from consumers.enforcement.restrictions import BLOCK, CLEAR, KEPT_CHANGES, THROTTLE, WATCH, Restrictions
from consumers.records import operator_entries
from consumers.secrets import Secrets
from consumers.store import Enforced, Restriction
from consumers.telemetry.metrics import Metrics
from detector.policy import STATES, Policy, State
from detector.query import ClientKey


def level(view: Restrictions, client: str = "c", model: str | None = "m", now_s: float = 0.0) -> int:
    return view.standing(TENANT, client, model, now_s).strictness


def seen(store: RememberedStore, mode: str = "block", modes: dict[str, str] | None = None) -> Restrictions:
    view = Restrictions(mode, modes)
    read(store, view)
    return view


@pytest.mark.parametrize(
    ("mode", "state", "enforced", "expected"),
    [
        ("block", "block", "block", BLOCK),
        ("block", "throttle", "throttle", THROTTLE),
        ("block", "block", "throttle", THROTTLE),
        ("block", "block", "clear", WATCH),
        ("throttle", "block", "block", THROTTLE),
        ("throttle", "throttle", "throttle", THROTTLE),
        ("alert", "block", "block", WATCH),
        ("alert", "throttle", "clear", WATCH),
        ("observe", "block", "block", CLEAR),
        ("observe", "throttle", "clear", CLEAR),
    ],
)
def test_mode_limits_what_was_detected(mode: str, state: State, enforced: Enforced, expected: int) -> None:
    store = RememberedStore()
    store.detect("c", state, enforced)
    assert level(seen(store, mode)) == expected
    assert level(seen(store, "observe", {"m": mode})) == expected, "a model's own mode"
    other = "block" if mode != "block" else "observe"
    assert level(seen(store, mode, {"other": other})) == expected, "another model's mode"


def test_operators_win_over_detection_and_the_allow_list_over_both() -> None:
    store = RememberedStore()
    store.detect("c", "block")
    store.say("c", "clear")
    assert level(seen(store)) == CLEAR
    store.say("c", "throttle", model="m")
    assert level(seen(store)) == THROTTLE, "what is said of the model beats what is said of all"
    assert level(seen(store), model="other") == CLEAR
    store.allow("c", model="m")
    assert level(seen(store)) == CLEAR
    store.put("allow", "c", "m", b"")
    assert level(seen(store)) == THROTTLE


def test_a_block_by_an_operator_holds_in_every_mode_and_with_an_open_breaker() -> None:
    store = RememberedStore()
    store.say("c", "block")
    store.detect("d", "block")
    view = seen(store, "observe")
    assert level(view) == BLOCK
    view = seen(store, "block")
    assert (level(view), level(view, "d")) == (BLOCK, BLOCK)
    view.hold({TENANT: {}}, 0)
    assert (level(view), level(view, "d")) == (BLOCK, WATCH)
    assert view.counts["detected", "block"] == 0
    view.hold({}, 0)
    assert (level(view), level(view, "d")) == (BLOCK, BLOCK)
    assert view.counts["detected", "block"] == 1


def test_simulated_decisions_are_never_enforced() -> None:
    store = RememberedStore()
    store.say("c", "block", simulated=True)
    assert level(seen(store)) == CLEAR
    store.detect("c", "throttle")
    assert level(seen(store)) == THROTTLE
    store.say("c", "clear", model="m", simulated=True)
    assert level(seen(store)) == THROTTLE, "nor does a dry run lift anything"


def test_a_campaigns_decision_holds_for_its_accounts_until_its_end() -> None:
    store = RememberedStore()
    store.say_of_campaign("g", "throttle", ["a", "b"], ["c"], until_s=100)
    store.detect("b", "block")
    view = seen(store, "observe")
    assert [level(view, one) for one in "abcd"] == [THROTTLE] * 3 + [CLEAR]
    assert level(view, "a", "other") == CLEAR
    assert level(seen(store, "block"), "b") == BLOCK, "the more severe of the two"
    assert level(view, "a", None) == THROTTLE, "any model"
    assert level(view, "a", now_s=100) == CLEAR
    store.say("a", "clear")
    store.allow("c")
    assert [level(seen(store), one) for one in "abc"] == [CLEAR, BLOCK, CLEAR], "its own decision, the allowlist"
    store.say_of_campaign("g", "clear", ["b"])
    assert level(seen(store), "b") == CLEAR, "a release lifts what was detected"
    store.put("campaign", "g", "m", b"")
    assert [level(seen(store), one) for one in "abc"] == [CLEAR, BLOCK, CLEAR]
    store.say_of_campaign("g", "block", ["x"], simulated=True)
    assert level(seen(store), "x") == CLEAR


def test_of_several_campaigns_the_most_severe_counts() -> None:
    store, view = RememberedStore(), Restrictions("block")
    refresher = Refresher(store, view, Metrics(), clock=lambda: 1.0)
    refresher.turn()
    store.say_of_campaign("g", "throttle", ["a", "b"])
    store.say_of_campaign("h", "block", ["b", "c"])
    refresher.turn()
    assert [level(view, one) for one in "abc"] == [THROTTLE, BLOCK, BLOCK]
    assert view.counts["operator", "block"] == 2
    store.put("campaign", "h", "m", b"")
    refresher.turn()
    assert [level(view, one) for one in "abc"] == [THROTTLE, THROTTLE, CLEAR]
    changes = view.since(0, view.epoch)
    assert changes is not None
    assert {(c.client, c.lifted) for c in changes[-2:]} == {("b", False), ("c", True)}


def test_the_gateways_breaker_counts_accounts_that_joined() -> None:
    store, view = RememberedStore(), Restrictions("block")
    breaker = GatewayBreaker(store, view, most=2)
    refresher = Refresher(store, view, Metrics(), breaker=breaker, clock=lambda: 1_000.0)
    refresher.turn()
    named = [f"named-{i}" for i in range(50)]
    store.say_of_campaign("g", "block", named)
    refresher.turn()
    assert not view.held
    held = []
    for joined in (["j0", "j1"], ["j0", "j1", "j2"]):
        store.say_of_campaign("g", "block", named, joined, joined_s=10)
        refresher.turn()
        held.append(view.held)
    assert held == [False, True]
    assert level(view, "j2", now_s=1_000) == WATCH
    assert level(view, "named-7", now_s=1_000) == BLOCK, "what a person decided stays in force"


def test_without_a_model_the_most_severe_counts() -> None:
    store = RememberedStore()
    store.detect("c", "throttle", model="a")
    store.detect("c", "block", model="b")
    view = seen(store)
    assert [level(view, model=m) for m in ("a", "b", "x", "*", None)] == [THROTTLE, BLOCK, CLEAR, BLOCK, BLOCK]
    store.allow("c", model="b")
    assert level(seen(store), model=None) == THROTTLE


@pytest.mark.parametrize("until_s", [0, 100])
def test_everything_ends_when_its_time_is_over(until_s: int) -> None:
    store = RememberedStore()
    store.detect("d", "block", until_s=until_s)
    store.say("o", "block", until_s=until_s)
    store.detect("a", "block")
    store.allow("a", until_s=until_s)
    view = seen(store)
    before, after = view.number, [level(view, c, now_s=99.5) for c in "doa"]
    assert after == [BLOCK, BLOCK, CLEAR]
    expected = [BLOCK, BLOCK, CLEAR] if until_s == 0 else [CLEAR, CLEAR, BLOCK]
    assert [level(view, c, now_s=100.5) for c in "doa"] == expected
    view.expire(100.5)
    changes = view.since(before, view.epoch)
    assert changes is not None
    expected_lifts = set() if until_s == 0 else {("d", True), ("o", True), ("a", False)}
    assert {(c.client, c.lifted) for c in changes} == expected_lifts


def test_what_cannot_be_read_is_not_enforced_and_hides_nothing() -> None:
    store = RememberedStore()
    store.put("decision", "c", "*", b"\xff not json")
    store.put("allow", "d", "*", b'{"format": 99}')
    store.say("d", "block")
    assert (level(seen(store)), level(seen(store), "d")) == (CLEAR, BLOCK)


def test_following_changes_leads_to_the_same_as_reading_everything() -> None:
    """Random histories: the incremental view, the full view and the followers' picture agree after every turn."""
    for seed in range(30):
        rng = random.Random(seed)
        store, now_s = RememberedStore(), [1000.0]
        view = Restrictions("block", {"b": "throttle"})
        refresher = Refresher(store, view, Metrics(), clock=lambda now_s=now_s: now_s[0], full_sync_s=1e9)  # type: ignore[misc]
        picture: dict[tuple[str, str], int] = {}
        number = 0
        for _ in range(40):
            for _ in range(rng.randrange(4)):
                client, model = rng.choice("xyz"), rng.choice("ab")
                until_s = int(now_s[0]) + rng.choice([0, 3, 50]) if rng.random() < 0.7 else 0
                if rng.random() < 0.6:
                    state = rng.choice(STATES)
                    store.detect(
                        client, state, rng.choice(STATES[: STATES.index(state) + 1]), model=model, until_s=until_s
                    )
                elif rng.random() < 0.5:
                    of, ruled = rng.choice(["*", model]), rng.choice(operator_entries.RULINGS)
                    if rng.random() < 0.3:
                        store.put("decision", client, of, b"")
                    else:
                        store.say(client, ruled, model=of, until_s=until_s, simulated=rng.random() < 0.3)
                elif rng.random() < 0.5:
                    store.allow(client, model=model, until_s=until_s)
                else:
                    store.put("allow", client, model, b"")
            store.forgets = rng.random() < 0.1
            assert refresher.turn()
            changes = view.since(number, view.epoch)
            assert changes is not None
            for c in changes:
                if c.lifted:
                    picture.pop((c.client, c.model), None)
                else:
                    picture[c.client, c.model] = c.standing.strictness
            number = view.number
            fresh = Restrictions("block", {"b": "throttle"})
            read(store, fresh, now_s[0])
            for client in "xyz":
                for asked in ("a", "b", None):
                    assert level(view, client, asked, now_s[0]) == level(fresh, client, asked, now_s[0]), seed
            full = {(key[1], m): s.strictness for key, m, s in fresh.enforced(now_s[0])}
            assert picture == full == {(key[1], m): s.strictness for key, m, s in view.enforced(now_s[0])}, seed
            assert +view.counts == +fresh.counts
            now_s[0] += rng.choice([0.25, 2.0])


def test_a_reader_too_far_behind_must_begin_again() -> None:
    view = Restrictions("block")
    for n in range(KEPT_CHANGES + 5):
        state: State = "block" if n % 2 == 0 else "clear"
        view.learn([Restriction(ClientKey(TENANT, "m", "c"), state, state, 0)], [], 0)
    assert view.number == KEPT_CHANGES + 5
    assert view.since(4, view.epoch) is None
    kept = view.since(5, view.epoch)
    assert kept is not None
    assert [kept[0].number, kept[-1].number] == [6, view.number]
    assert view.since(view.number, "other") is None
    assert view.since(view.number + 1, view.epoch) is None


def test_the_store_down_changes_nothing_but_the_staleness() -> None:
    store, now_s, metrics = RememberedStore(), [100.0], Metrics()
    view = Restrictions("block")
    refresher = Refresher(store, view, metrics, clock=lambda: now_s[0])
    store.down = True
    assert not refresher.turn()
    assert (view.synced, view.stale_since_s) == (False, 100.0)
    store.down = False
    store.detect("c", "block")
    assert refresher.turn()
    assert (view.synced, view.stale_since_s, level(view)) == (True, None, BLOCK)
    store.down = True
    now_s[0] = 110.0
    assert not refresher.turn()
    now_s[0] = 160.0
    assert not refresher.turn()
    assert (view.stale_since_s, level(view)) == (100.0, BLOCK), "since the last answer"
    assert "querywarden_restrictions_stale_seconds 60.0" in metrics.text().decode()
    store.down = False
    store.detect("c", "clear")
    assert refresher.turn()
    assert (view.stale_since_s, level(view)) == (None, CLEAR)


def test_everything_is_read_at_the_start_now_and_then_and_when_a_feed_forgot() -> None:
    store, now_s = RememberedStore(), [0.0]
    view = Restrictions("block")
    refresher = Refresher(store, view, Metrics(), clock=lambda: now_s[0], full_sync_s=300)
    reads = []
    for t in (0, 1, 299, 300, 301):
        now_s[0] = t
        assert refresher.turn()
        reads.append(store.full_reads)
    assert reads == [1, 1, 1, 2, 2]
    store.detect("c", "block")
    store.forgets = True
    assert refresher.turn()
    assert (store.full_reads, level(view)) == (3, BLOCK)


def test_a_bug_below_does_not_end_the_thread() -> None:
    store, view = RememberedStore(), Restrictions("block")
    refresher = Refresher(store, view, Metrics())
    assert refresher.turn()
    store.feed.append(Restriction(ClientKey(TENANT, "m", "c"), "no such state", "block", 0))  # type: ignore[arg-type]
    assert not refresher.turn()
    store.feed.clear()
    store.detect("c", "block")
    assert refresher.turn()
    assert level(view) == BLOCK


class Stormy:
    """A view that is kept by a refresher with a breaker for more than three."""

    def __init__(self, store: RememberedStore | None = None) -> None:
        self.store, self.view, self.now_s = store or RememberedStore(), Restrictions("block"), 1000.0
        self.storm = GatewayBreaker(self.store, self.view, most=3)
        self.refresher = Refresher(self.store, self.view, Metrics(), breaker=self.storm, clock=lambda: self.now_s)

    def detect(self, *clients: str) -> None:
        for client in clients:
            self.store.detect(client, "block")
        self.turn()

    def turn(self, times: int = 2) -> None:
        for _ in range(times):
            assert self.refresher.turn()

    def blocked(self, *clients: str) -> str:
        return "".join(c for c in clients if level(self.view, c) == BLOCK)


def test_a_flag_storm_is_not_enforced_until_an_operator_says_so() -> None:
    s = Stormy()
    s.store.detect("x", "block")
    s.store.detect("y", "throttle")  # in force before the start: not new
    s.turn()
    s.store.say("o", "block")
    s.detect("a", "b", "c")
    assert (s.blocked(*"xabco"), s.view.held) == ("xabco", False)
    s.now_s += 599
    s.store.detect("y", "block")  # a throttle that becomes a block is new
    s.turn()
    assert s.view.held
    s.detect("d")
    assert s.blocked(*"xyabcdo") == "xo", "what the operator said, and what stood before the storm"
    assert (level(s.view, "y"), level(s.view, "a")) == (THROTTLE, WATCH)
    assert s.view.counts["detected", "block"] == 1
    s.now_s += 10_000
    s.turn()
    assert s.view.held, "time alone does not close it"
    s.store.histories = {"x": [[900, "throttle", "", 0.99], [950, "block", "", 0.99]], "a": [[1500, "block", "", 0.99]]}
    s.store.histories["y"] = [[600, "throttle", "", 0.99], [1599, "block", "", 0.99]]
    again = Stormy(s.store)
    again.now_s = s.now_s
    again.turn()
    assert again.blocked(*"xyabcdo") == "xo", "nor does a restart"
    assert (level(again.view, "y"), level(again.view, "a")) == (THROTTLE, WATCH)
    for one in (s, again):
        one.store.put(
            "breaker", "", "", operator_entries.packed(operator_entries.Reset("someone", int(s.now_s), "looked at"))
        )
        one.store.entries[-1] = one.store.entries[-1]._replace(key="reset")
        one.turn()
        assert (one.blocked(*"xyabcdo"), one.view.held) == ("xyabcdo", False)
        one.turn()
        assert not one.view.held, "what came back is not new"
    s.now_s += 1
    s.detect("e", "f", "g")
    assert s.blocked(*"aefg") == "aefg"
    s.detect("h")
    assert s.blocked(*"aefgh") == "a", "counted anew"


def test_nobody_gets_out_of_a_block_by_a_storm() -> None:
    """The attack: 4 throw-away accounts that are flagged, so that the thief's own block falls."""
    s = Stormy()
    s.store.detect("oldthief", "block", until_s=9000)
    s.turn()
    s.now_s += 601
    s.detect("t1", "t2", "t3", "t4")
    assert (s.view.held, level(s.view, "oldthief"), level(s.view, "t1")) == (True, BLOCK, WATCH)
    s.store.forgets = True  # everything is read anew
    s.turn()
    assert level(s.view, "oldthief") == BLOCK
    s.store.detect("oldthief", "block", until_s=9500)
    s.turn()
    assert level(s.view, "oldthief", now_s=9400) == BLOCK, "one that is renewed in time goes on"
    s.now_s = 9600
    s.store.detect("oldthief", "block", until_s=20_000)
    s.turn()
    assert level(s.view, "oldthief", now_s=9600) == WATCH, "a new one is held like others"


def test_a_restart_in_a_storm_lifts_nothing_for_longer_than_the_store_is_away() -> None:
    s = Stormy()
    s.store.detect("x", "block")
    s.turn()
    s.detect("a", "b", "c", "d")
    s.store.histories = {"x": [[300, "block", "", 0.99]]}
    again = Stormy(s.store)
    asked = again.store.decided
    again.store.decided = lambda clients: again.store.nowhere()  # type: ignore[method-assign]
    again.turn()
    assert again.blocked(*"xabcd") == "", "not known yet"
    again.store.decided = asked  # type: ignore[method-assign]
    again.turn()
    assert again.blocked(*"xabcd") == "x"


def test_a_storm_larger_than_what_is_remembered_of_changes_is_noticed() -> None:
    s = Stormy()
    s.store.detect("x", "block")
    s.turn()
    s.store.feed += [Restriction(ClientKey(TENANT, "m", f"c{n}"), "block", "block", 0) for n in range(KEPT_CHANGES + 5)]
    s.turn()
    assert (s.view.held, s.blocked("x", "c0", f"c{KEPT_CHANGES}")) == (True, "x")


def test_slow_restrictions_are_no_storm() -> None:
    s = Stormy()
    s.turn()
    for n in range(20):
        s.detect(f"c{n}")
        s.now_s += 201
    assert not s.view.held
    for n in range(20):
        s.store.detect("same", ("block", "clear")[n % 2])
        s.turn()
    assert not s.view.held, "a client counts once"


def test_entries_of_other_kinds_are_none_of_ours() -> None:
    view = Restrictions("block")
    store = RememberedStore()
    store.say("c", "block")
    view.learn([], [store.entries[0]._replace(kind="note")], 0)
    assert level(view) == CLEAR


def test_detect_decides_by_the_models_own_mode_too() -> None:
    detect = Detect({}, Secrets.draw(), Policy(0.01, "observe"), {"m": "block"})
    assert (detect.policy_of("m"), detect.policy_of("n")) == (Policy(0.01, "block"), Policy(0.01, "observe"))
