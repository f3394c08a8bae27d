"""Push responders: against targets that fail as networks do, and against the real HAProxy and the real CrowdSec."""

from __future__ import annotations

import base64
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gateway_peers import Crowdsec, Haproxy, ask
from support.remembered_store import TENANT, RememberedStore, read
from support.servers import NewServer, free_port, started, wait_until

from consumers.enforcement.restrictions import BLOCK, THROTTLE, Restrictions, Standing
from consumers.errors import Unavailable, WrongUse
from consumers.responders import Responder, Target
from consumers.responders.crowdsec import CrowdsecApi, _seconds
from consumers.responders.haproxy import HaproxyMap
from consumers.secrets import Secrets
from consumers.telemetry.metrics import Metrics
from detector.policy import STATES, State

SECRETS = Secrets.draw()


def hashed(client: str) -> str:
    return SECRETS.client_hash(TENANT, client)


class Remembered:
    """A target in memory that may fail before or after it did what it was told."""

    name = "remembered"

    def __init__(self) -> None:
        self.has: dict[str, Standing] = {}
        self.fails: Callable[[], bool] = lambda: False
        self.calls = 0

    def held(self) -> dict[str, Standing]:
        self._maybe()
        return dict(self.has)

    def same(self, wanted: Standing, held: Standing) -> bool:
        return wanted == held

    def change(self, put: Any, drop: list[str]) -> None:
        self._maybe()
        self.calls += 1
        for client in drop:
            self.has.pop(client, None)
            self._maybe()
        self.has.update(put)
        self._maybe()

    def close(self) -> None:
        pass

    def _maybe(self) -> None:
        if self.fails():
            raise Unavailable("lost")


def test_whatever_is_lost_on_the_way_the_target_ends_up_as_the_view() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        store, view, target = RememberedStore(), Restrictions("block"), Remembered()
        now_s = [1000.0]
        responder = Responder(target, view, TENANT, Metrics(), verify_s=30, clock=lambda now_s=now_s: now_s[0])  # type: ignore[misc]
        target.fails = lambda rng=rng: rng.random() < 0.2  # type: ignore[misc]
        for _ in range(60):
            client, model, state = rng.choice("abcde"), rng.choice("mn"), rng.choice(STATES)
            store.detect(client, state, model=model)
            view.learn([store.feed[-1]], [], now_s[0])
            view.synced = True
            if rng.random() < 0.1:
                target.has.pop(rng.choice("abcde"), None)  # somebody else at the target
            responder.turn()
            now_s[0] += 0.5
        target.fails = lambda: False
        now_s[0] += 31
        assert responder.turn()
        expected = {c: s for c in "abcde" if (s := view.standing(TENANT, c, None, now_s[0])).strictness >= THROTTLE}
        assert target.has == expected, seed
        calls = target.calls
        assert responder.turn()
        assert target.calls == calls, "nothing to tell, nothing told"


def test_nothing_is_pushed_before_the_store_was_read() -> None:
    target, view = Remembered(), Restrictions("block")
    target.has = {"a": Standing(BLOCK)}
    responder = Responder(target, view, TENANT, Metrics())
    assert responder.turn()
    assert target.has
    read(RememberedStore(), view)
    assert responder.turn()
    assert not target.has


def test_what_ended_is_lifted_and_other_tenants_are_none_of_this_target() -> None:
    store, view, target, now_s = RememberedStore(), Restrictions("block"), Remembered(), [10.0]
    store.detect("a", "block", until_s=20)
    store.detect("b", "block")
    read(store, view, 10)
    assert Responder(target, view, "another", Metrics(), clock=lambda: now_s[0]).turn()
    assert not target.has
    responder = Responder(target, view, TENANT, Metrics(), clock=lambda: now_s[0])
    assert responder.turn()
    assert set(target.has) == {"a", "b"}
    now_s[0] = 20.5
    view.expire(20.5)
    assert responder.turn()
    assert set(target.has) == {"b"}


def test_failures_are_counted_and_do_not_raise() -> None:
    view, target, metrics = Restrictions("block"), Remembered(), Metrics()
    read(RememberedStore(), view)
    target.fails = lambda: True
    assert not Responder(target, view, TENANT, metrics).turn()
    assert 'querywarden_responder_pushes_total{outcome="failed",target="remembered"} 1.0' in metrics.text().decode()


# ------------------------------------------------------------------------------------------------ the real HAProxy


@pytest.fixture
def haproxy(model_port: int, new_server: NewServer) -> Iterator[Haproxy]:
    key = base64.b64encode(SECRETS.edge_key(TENANT)).decode()
    with started(new_server(Haproxy, model_port, free_port(), free_port(), "", edge_key=key)) as server:
        yield server


class Pushed:
    """A view that can be changed, and a responder that runs."""

    def __init__(self, target: Target, verify_s: float = 60.0) -> None:
        self.store, self.view, self.metrics = RememberedStore(), Restrictions("block"), Metrics()
        read(self.store, self.view, time.time())
        self.responder = Responder(target, self.view, TENANT, self.metrics, every_s=0.2, verify_s=verify_s)

    def detect(self, client: str, state: State, seconds: int = 0) -> None:
        self.store.detect(hashed(client), state, until_s=int(time.time()) + seconds if seconds else 0)
        self.view.learn([self.store.feed[-1]], [], time.time())


def through(haproxy: Haproxy, client: str) -> int:
    return ask(haproxy.port, {"X-API-Key": client, "X-QueryWarden-Decision": "block"}).status


def test_haproxy_map_follows_and_stays_while_we_are_gone(haproxy: Haproxy) -> None:
    pushed = Pushed(HaproxyMap(str(haproxy.socket), str(haproxy.map)))
    pushed.detect("before", "block")
    pushed.responder.start()
    try:
        wait_until(lambda: through(haproxy, "before") == 403, 2.0, "a block from before the start")
        honest = ask(haproxy.port, {"X-API-Key": "honest", "X-QueryWarden-Decision": "block"})
        assert (honest.status, honest.getheader("X-Seen-decision")) == (200, "clear")
        pushed.detect("slow", "throttle")
        wait_until(lambda: through(haproxy, "slow") == 429, 2.0, "a throttle")
        assert int(ask(haproxy.port, {"X-API-Key": "slow"}).getheader("Retry-After") or 0) > 0
        pushed.detect("slow", "block")
        wait_until(lambda: through(haproxy, "slow") == 403, 2.0, "from throttle to block")
        pushed.detect("slow", "clear")
        wait_until(lambda: through(haproxy, "slow") == 200, 2.0, "an undo")
    finally:
        pushed.responder.stop()
    assert through(haproxy, "before") == 403, "the map stays while nobody pushes"


def test_haproxy_a_thousand_at_once_and_repairs(haproxy: Haproxy) -> None:
    target = HaproxyMap(str(haproxy.socket), str(haproxy.map))
    wanted = {hashed(str(n)): Standing(BLOCK if n % 2 else THROTTLE) for n in range(1000)}
    target.change(wanted, [])
    target.change(wanted, ["f" * 32, "not a hash; del map #0"])
    assert target.held() == wanted, "putting twice and dropping what is not there changes nothing"
    target.change({}, [hashed("0")])
    target.change({hashed("1"): Standing(THROTTLE)}, [])
    assert target.held() == {k: v for k, v in wanted.items() if k != hashed("0")} | {hashed("1"): Standing(THROTTLE)}
    assert [through(haproxy, str(n)) for n in (0, 1, 2, 3, 1001)] == [200, 429, 429, 403, 200]
    pushed = Pushed(target, verify_s=0)
    pushed.detect("3", "block")
    assert pushed.responder.turn()
    assert target.held() == {hashed("3"): Standing(BLOCK)}, "what nobody wants any more is dropped"
    target.change({}, [hashed("3")])  # somebody else at the socket
    assert pushed.responder.turn()
    assert target.held() == {hashed("3"): Standing(BLOCK)}
    assert 'outcome="repaired"' in pushed.metrics.text().decode()


def test_haproxy_restarted_gets_everything_again(haproxy: Haproxy) -> None:
    pushed = Pushed(HaproxyMap(str(haproxy.socket), str(haproxy.map)), verify_s=1.0)
    pushed.detect("thief", "block")
    pushed.responder.start()
    try:
        wait_until(lambda: through(haproxy, "thief") == 403, 2.0)
        haproxy.stop()
        haproxy.start()
        wait_until(lambda: through(haproxy, "thief") == 403, 5.0, "the block after HAProxy's restart")
    finally:
        pushed.responder.stop()


def test_haproxy_that_is_not_there_or_refuses(tmp_path: Path) -> None:
    target = HaproxyMap(str(tmp_path / "none.sock"), "x.map")
    with pytest.raises(OSError):
        target.held()
    with pytest.raises(WrongUse, match="haproxy_map"):
        HaproxyMap("s", "x.map; shutdown")


def test_haproxy_complains_about_another_map(haproxy: Haproxy) -> None:
    target = HaproxyMap(str(haproxy.socket), "/no/such.map")
    with pytest.raises(Unavailable):
        target.held()
    with pytest.raises(Unavailable):
        target.change({hashed("x"): Standing(BLOCK)}, [])


# ----------------------------------------------------------------------------------------------- the real CrowdSec


@pytest.fixture(scope="module")
def crowdsec(new_server: NewServer) -> Iterator[Crowdsec]:
    with started(new_server(Crowdsec)) as server:
        yield server


def listed(crowdsec: Crowdsec, client: str) -> list[tuple[str, str, str]]:
    """What a bouncer is told about a client: (type, origin, duration)."""
    connection = http.client.HTTPConnection("127.0.0.1", crowdsec.port, timeout=5)
    path = f"/v1/decisions?scope=ApiKey&value={hashed(client)}"
    connection.request("GET", path, headers={"X-Api-Key": crowdsec.bouncer_key})
    found = json.loads(connection.getresponse().read())
    connection.close()
    return [(d["type"], d["origin"], d["duration"]) for d in found or []]


def api(crowdsec: Crowdsec, key: str | None = None) -> CrowdsecApi:
    return CrowdsecApi(crowdsec.url, crowdsec.machine, crowdsec.password, crowdsec.bouncer_key if key is None else key)


def test_crowdsec_decisions_come_change_and_go(crowdsec: Crowdsec) -> None:
    target = api(crowdsec)
    pushed = Pushed(target)
    pushed.detect("thief", "block", 3600)
    assert pushed.responder.turn()
    ((kind, origin, duration),) = listed(crowdsec, "thief")
    assert (kind, origin) == ("ban", "querywarden")
    assert 3500 < _seconds(duration) <= 3600
    assert pushed.responder.turn()
    pushed.detect("thief", "throttle", 7200)
    assert pushed.responder.turn()
    ((kind, _, duration),) = listed(crowdsec, "thief")
    assert kind == "throttle"
    assert 7100 < _seconds(duration) <= 7200
    pushed.detect("thief", "clear")
    assert pushed.responder.turn()
    assert listed(crowdsec, "thief") == []


def test_crowdsec_is_verified_and_repaired_and_others_are_left_alone(crowdsec: Crowdsec) -> None:
    target = api(crowdsec)
    crowdsec._cscli("decisions", "add", "--scope", "Ip", "--value", "192.0.2.7", "--duration", "4h")
    crowdsec._cscli("decisions", "add", "--scope", "ApiKey", "--value", hashed("theirs"), "--duration", "4h")
    pushed = Pushed(target, verify_s=0)
    for client in ("a", "b"):
        pushed.detect(client, "block", 3600)
    pushed.detect("for ever", "block")
    assert pushed.responder.turn()
    assert target.held().keys() == {hashed("a"), hashed("b"), hashed("for ever")}
    before = pushed.metrics.text()
    assert pushed.responder.turn()
    assert pushed.metrics.text() == before, "the same: nothing is told again"
    crowdsec._cscli("decisions", "delete", "--value", hashed("a"))
    target.change({hashed("stray"): Standing(BLOCK, int(time.time()) + 600)}, [])
    assert pushed.responder.turn()
    assert target.held().keys() == {hashed("a"), hashed("b"), hashed("for ever")}
    assert 'outcome="repaired"' in pushed.metrics.text().decode()
    assert [kind for kind, *_ in listed(crowdsec, "theirs")] == ["ban"]
    assert "192.0.2.7" in crowdsec._cscli("decisions", "list", "-o", "raw")
    target.change({}, list(target.held()))


def test_crowdsec_without_a_bouncer_key_begins_from_nothing(crowdsec: Crowdsec) -> None:
    api(crowdsec).change({hashed("old"): Standing(BLOCK, int(time.time()) + 600)}, [])
    crowdsec._cscli("decisions", "add", "--scope", "ApiKey", "--value", hashed("of others"), "--duration", "4h")
    pushed = Pushed(api(crowdsec, key=""))
    pushed.detect("new", "block", 600)
    assert pushed.responder.turn()
    assert (len(listed(crowdsec, "old")), len(listed(crowdsec, "new")), len(listed(crowdsec, "of others"))) == (0, 1, 1)
    api(crowdsec).change({}, [hashed("new")])


def test_crowdsec_wrong_password_or_down(crowdsec: Crowdsec) -> None:
    with pytest.raises(Unavailable, match="login answered"):
        CrowdsecApi(crowdsec.url, crowdsec.machine, "wrong").change({}, ["x"])
    with pytest.raises(OSError):
        CrowdsecApi(f"http://127.0.0.1:{free_port()}", "m", "p").change({}, ["x"])
    with pytest.raises(WrongUse, match="crowdsec_url"):
        CrowdsecApi("ftp://x", "m", "p")


def test_crowdsec_a_token_that_expired_is_renewed(crowdsec: Crowdsec) -> None:
    target = api(crowdsec)
    target._token = "expired"
    target.change({hashed("c"): Standing(BLOCK, int(time.time()) + 600)}, [])
    assert listed(crowdsec, "c")
    target.change({}, [hashed("c")])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h59m59.9s", 14399.9), ("-1s", -1.0), ("500ms", 0.5), ("1h", 3600), ("2m0s", 120), ("10µs", 1e-5), ("", 0)],
)
def test_durations_of_go(text: str, seconds: float) -> None:
    assert _seconds(text) == pytest.approx(seconds)


def test_threads_end() -> None:
    view, target = Restrictions("block"), Remembered()
    responder = Responder(target, view, TENANT, Metrics(), every_s=0.01)
    responder.start()
    responder.stop()
    assert not any(t.name == "push-remembered" for t in threading.enumerate())
