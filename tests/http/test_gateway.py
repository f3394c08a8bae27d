"""``/v1/authz``: who is meant, what is answered, what an answer says and what it does not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message
from support.remembered_store import TENANT, RememberedStore, read

from consumers.enforcement.restrictions import Restrictions
from consumers.errors import Refused
from consumers.http import ext_authz
from consumers.http.gateway import Gateway, Rules
from consumers.http.identities import MOST_VALUES, Found, Identities
from consumers.http.paths import LONGEST, Routes
from consumers.operators.references import References, Refusal
from consumers.secrets import Secrets
from consumers.telemetry.metrics import Metrics

SECRETS = Secrets.draw()
IDENTITY = ("x-api-key", "x-consumer-id", "authorization")


def hashed(client: str, tenant: str = TENANT) -> str:
    return SECRETS.client_hash(tenant, client)


class Asked:
    """A gateway over a remembered store."""

    def __init__(self, rules: Rules | None = None, map_file: Path | None = None, synced: bool = True) -> None:
        self.store, self.view, self.metrics, self.now_s = RememberedStore(), Restrictions("block"), Metrics(), 1000.0
        self.identities = Identities(IDENTITY, SECRETS, map_file)
        self.tenant: str | None = TENANT
        self.gateway = Gateway(
            self.view, self.identities, lambda scope: self.tenant, self.metrics, rules, clock=lambda: self.now_s
        )
        self.synced = synced

    def ask(
        self, *headers: tuple[str, str], path: str = "/v1/authz", method: str = "GET"
    ) -> tuple[int, dict[str, str], bytes]:
        if self.synced:
            read(self.store, self.view, self.now_s)
        sent: list[Message] = []

        async def receive() -> dict[str, Any]:
            raise AssertionError("an answer must not wait for the body")

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(n.lower().encode(), v.encode("latin-1")) for n, v in headers],
        }
        asyncio.run(self.gateway(scope, receive, send))
        start, body = sent
        found = {n.decode(): v.decode() for n, v in start["headers"]}
        assert found["x-querywarden-decision"] in ("clear", "watch", "degrade", "throttle", "block")
        assert found["content-length"] == str(len(body["body"]))
        return start["status"], found, body["body"]

    def decision(self, *headers: tuple[str, str]) -> str:
        return self.ask(*headers)[1]["x-querywarden-decision"]


def test_the_answers() -> None:
    asked = Asked()
    asked.store.detect(hashed("thief"), "block", until_s=1060)
    asked.store.detect(hashed("slow"), "throttle", until_s=1000 + 10 * 86_400)
    asked.store.detect(hashed("flagged"), "throttle", "clear")
    asked.store.detect(hashed("for ever"), "block")
    passed = {"x-querywarden-degrade": "none", "x-querywarden-client": "none", "content-length": "0"}
    assert asked.ask(("X-API-Key", "honest"))[:2] == (200, passed | {"x-querywarden-decision": "clear"})
    assert asked.ask(("X-API-Key", "flagged"))[:2] == (200, passed | {"x-querywarden-decision": "watch"})
    status, headers, body = asked.ask(("X-API-Key", "thief"))
    assert (status, headers["retry-after"], headers["x-querywarden-decision"]) == (403, "60", "block")
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(body)
    assert problem["status"] == 403
    assert set(problem) == {"type", "title", "status", "reference"}, "nothing of the detection"
    status, headers, body = asked.ask(("X-API-Key", "slow"), path="/v1/authz/v1/models/m:predict", method="POST")
    assert (status, headers["retry-after"], headers["x-querywarden-decision"]) == (429, "86400", "throttle")
    assert json.loads(body)["status"] == 429
    assert asked.ask(("X-API-Key", "for ever"))[1]["retry-after"] == "3600"


@pytest.mark.parametrize(
    ("header", "value", "found"),
    [
        ("X-API-Key", "thief", True),
        ("x-consumer-id", "thief", True),
        ("Authorization", "Bearer thief", True),
        ("Authorization", "bearer   thief ", True),
        ("Authorization", "Bearer\tthief", True),
        ("Authorization", "Basic x, Bearer thief", True),
        ("Authorization", "Bearer junk,thief", True),
        ("Authorization", "Bearer thief,Bearer junk", True),
        ("Authorization", "Bearer thief junk", True),
        ("X-API-Key", " \tthief\t ", True),
        ("X-API-Key", "thief\xa0", True),
        ("X-API-Key", "junk, thief", True),
        ("X-API-Key", "thief\t,junk", True),
        ("X-API-Key", ",".join(["x" * 300, "thief"]), True),
        ("X_API_Key", "thief", True),
        ("Authorization", "Basic thief", False),
        ("Authorization", "thief", False),
        ("X-Other", "thief", False),
        ("X-API-Key", "Thief", False),
    ],
)
def test_identity_comes_from_configured_headers_only(header: str, value: str, found: bool) -> None:
    asked = Asked()
    asked.store.detect(hashed("thief"), "block")
    assert asked.decision((header, value)) == ("block" if found else "clear")


def test_adding_a_header_cannot_lift_a_restriction() -> None:
    asked = Asked()
    asked.store.detect(hashed("thief"), "block")
    asked.store.allow(hashed("partner"))
    for other in ("honest", "partner", "", "x" * 300):
        assert asked.decision(("X-API-Key", "thief"), ("X-API-Key", other)) == "block"
        assert asked.decision(("X-API-Key", other), ("X-API-Key", "thief")) == "block"
        assert asked.decision(("X-Consumer-ID", other), ("X-API-Key", "thief")) == "block"
        assert asked.decision(("Authorization", f"Bearer {other}"), ("X-API-Key", "thief")) == "block"


def test_a_client_that_the_log_knows_by_an_odd_id_is_judged_by_it() -> None:
    asked = Asked()
    for client in ("a,b", "tail\t"):
        asked.store.detect(hashed(client), "block")
        assert asked.decision(("X-API-Key", client)) == "block"
    assert asked.decision(("X-API-Key", "a")) == "clear"


def test_no_identity_hides_behind_many_others() -> None:
    asked = Asked()
    asked.store.detect(hashed("thief"), "block")
    joined = ",".join(["x"] * MOST_VALUES)
    assert asked.decision(("X-API-Key", joined)) == "clear"
    assert asked.decision(("X-API-Key", f"{joined},thief")) == "block"
    assert asked.decision(("X-API-Key", f"thief,{joined}")) == "block"
    assert asked.decision(*[("X-API-Key", "x")] * MOST_VALUES, ("X-Consumer-ID", "thief")) == "block"


@pytest.mark.parametrize("joined", [True, False])
def test_a_request_with_too_many_identities_is_of_nobody(joined: bool) -> None:
    """However they are divided over headers: one header each, or one header with commas."""
    identities = Identities(IDENTITY, SECRETS)

    def found(n: int) -> Found:
        names = [b"x"] * n
        return identities.of(TENANT, [(b"x-api-key", value) for value in ([b",".join(names)] if joined else names)])

    assert not found(MOST_VALUES).crowded
    assert hashed("x") in found(MOST_VALUES).clients
    assert found(MOST_VALUES + 1) == Found((), None, crowded=True)


def test_every_reading_of_a_bearer_token_and_nothing_else() -> None:
    identities = Identities(IDENTITY, SECRETS)

    def read(value: bytes) -> set[str]:
        return set(identities.of(TENANT, [(b"authorization", value)]).clients)

    assert read(b"Bearer acct 7") == {hashed("acct 7"), hashed("acct")}
    assert read(b"Bearer one,,two") == {hashed(name) for name in ("one,,two", "one", "two")}
    assert read(b"Basic acct") == set()


def test_identities_are_remembered_within_a_bound_and_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.http.identities._REMEMBERED", 3)
    identities = Identities(IDENTITY, SECRETS)
    for i in range(20):
        assert identities.of(TENANT, [(b"x-api-key", b"acct-%d" % (i % 6))]).first == hashed(f"acct-{i % 6}")
        assert len(identities._known) <= 3


def test_a_header_of_many_parts_is_read_in_its_two_plain_spellings() -> None:
    name = "-".join("abcdefghijk")
    identities = Identities([name], SECRETS)
    for spelt in (name, name.replace("-", "_")):
        assert identities.of(TENANT, [(spelt.encode(), b"acct")]).first == hashed("acct")


def test_of_two_restricted_identities_the_worse_counts() -> None:
    asked = Asked()
    asked.store.detect(hashed("slow"), "throttle")
    asked.store.detect(hashed("thief"), "block")
    assert asked.decision(("X-API-Key", "slow"), ("X-Consumer-ID", "thief")) == "block"
    assert asked.decision(("X-API-Key", "thief"), ("X-Consumer-ID", "slow")) == "block"


def test_ids_beyond_ascii_are_those_of_the_log() -> None:
    asked = Asked()
    asked.store.detect(hashed("dieb-ä"), "block")
    asked.store.detect(hashed("caf\xe9"), "block")
    assert asked.decision(("X-API-Key", "dieb-ä".encode().decode("latin-1"))) == "block"
    assert asked.decision(("X-API-Key", "caf\xe9")) == "block"


def test_model_header_default_model_and_the_most_severe() -> None:
    asked = Asked()
    asked.store.detect(hashed("c"), "throttle", model="a")
    asked.store.detect(hashed("c"), "block", model="b")
    key = ("X-API-Key", "c")
    assert asked.decision(key) == "block"
    assert asked.decision(key, ("X-QueryWarden-Model", "a")) == "throttle"
    assert asked.decision(key, ("X-QueryWarden-Model", "other")) == "clear"
    assert asked.decision(key, ("X-QueryWarden-Model", "other"), ("X-QueryWarden-Model", "b")) == "block"
    assert asked.decision(key, ("X-QueryWarden-Model", "other, b")) == "block", "as a gateway joins them"
    asked = Asked(Rules(default_model="a", model_header="x-model"))
    asked.store.detect(hashed("c"), "throttle", model="a")
    asked.store.detect(hashed("c"), "block", model="b")
    assert asked.decision(key) == "throttle"
    assert asked.decision(key, ("X-Model", "b")) == "block"
    assert asked.decision(key, ("X-QueryWarden-Model", "b")) == "throttle"


def test_one_request_asks_for_a_bounded_number_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, looked_up = Asked(), []
    asked.store.detect(hashed("c"), "block", model="b")
    read(asked.store, asked.view, asked.now_s)
    asked.synced = False  # reading asks of every model too
    judge = asked.view._of_model

    def counted(*args: Any) -> Any:
        looked_up.append(args)
        return judge(*args)

    monkeypatch.setattr(asked.view, "_of_model", counted)
    key = ("X-API-Key", "c")
    assert asked.decision(key, ("X-QueryWarden-Model", "a")) == "clear"
    assert len(looked_up) == 1, "the control: look-ups are seen"
    many = ",".join(f"m{i}" for i in range(MOST_VALUES - 1))
    assert asked.decision(key, ("X-QueryWarden-Model", many)) == "clear"
    assert asked.decision(key, ("X-QueryWarden-Model", f"{many},b")) == "block", "32 are allowed"
    looked_up.clear()
    assert asked.decision(key, ("X-QueryWarden-Model", "a,a" + ", a" * (MOST_VALUES - 2))) == "clear"
    assert len(looked_up) == 2, "each once: the value as it came, and its part"
    looked_up.clear()
    for headers in (
        [("X-QueryWarden-Model", f"{many},x,x")],
        [("X-QueryWarden-Model", "a" + "," * 60_000)],
        [("X-QueryWarden-Model", "a")] * (MOST_VALUES + 1),
    ):
        assert asked.decision(key, *headers) == "block", "refused, as too many identities are"
    assert not looked_up
    assert asked.gateway._counted["block", "crowded"] == 3


def test_tenants_do_not_see_each_other() -> None:
    asked = Asked()
    asked.store.detect(hashed("thief"), "block")
    asked.store.detect(hashed("thief", "other"), "throttle")
    assert asked.decision(("X-API-Key", "thief")) == "block"
    asked.tenant = "other"
    assert asked.decision(("X-API-Key", "thief")) == "clear", "the restriction of another tenant"


def test_a_gateway_without_credential_learns_nothing() -> None:
    asked = Asked()
    asked.store.detect(hashed("thief"), "block")
    asked.tenant = None
    thief, honest = asked.ask(("X-API-Key", "thief")), asked.ask(("X-API-Key", "honest"))
    assert thief == honest
    assert thief[0] == 401


ROUTES = Rules(routes={"/": "open", "/v1/models/fraud": "closed", "/v1/models/fraud/health": "open"})


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("", 200),
        ("/", 200),
        ("/v1/models/other", 200),
        ("/v1/models/fraudulent", 200),
        ("/v1/models/fraud", 403),
        ("/v1/models/fraud/predict", 403),
        ("/v1//models/./fraud/predict", 403),
        ("/v1/models/other/../fraud/predict", 403),
        ("//v1/models/fraud/predict", 403),
        ("/v1/models/fraud/health", 200),
        ("/v1/models/fraud/health/../predict", 403),
    ],
)
def test_who_cannot_be_known_passes_or_not_by_route(path: str, status: int) -> None:
    unsynced, anonymous = Asked(ROUTES, synced=False), Asked(ROUTES)
    for asked, headers in ((unsynced, [("X-API-Key", "c")]), (anonymous, [])):
        found, said, _ = asked.ask(*headers, path=f"/v1/authz{path}")
        assert (found, said["x-querywarden-decision"]) == (status, "clear" if status == 200 else "block")
        if path:
            found, *_ = asked.ask(*headers, ("X-Original-URI", path.replace("fraud", "fr%61ud") + "?x=/"))
            assert found == status
            found, *_ = asked.ask(*headers, ("X-Original-URI", "/"), path=f"/v1/authz{path}")
            assert found == (200 if path == "/" else status), "the path in the address counts first"
            forged = [("X-Original-URI", "/"), ("X-Forwarded-Uri", path), ("X-Original-URI", "/v1")]
            assert asked.ask(*headers, *forged)[0] == status, "a forged header opens nothing"
    assert anonymous.ask(("X-API-Key", "c"), path=f"/v1/authz{path}")[0] == 200, "known to be clear"
    unsynced.gateway.flush()
    cause = f'cause="unsynced",decision="{"clear" if status == 200 else "block"}"'
    assert f"querywarden_authz_answers_total{{{cause}}}" in unsynced.metrics.text().decode()


CLOSED = Routes(
    {
        "/": "open",
        "/v1/models/fraud-v3": "closed",
        "/v1/models/fraud-v3/health": "open",
        "/v1/models/fraud-v3.1": "open",
    }
)
TRICKS = (
    ":predict", ";a=b/predict", ".json", "%00", "%20", "%3apredict", "\\x", "/health:x", "/health/../predict", "/Health",
    "/%2e%2e/fraud-v3/x", "%2f..%2fother", "/..;/..;/..;/open",
)  # fmt: skip
DISGUISES = (
    "/v1/models/fraud%2dv3", "/v1/models/fraud%252dv3", "/v1/models/%66raud-v3", "/v1/models/x/..%2ffraud-v3", "/v1%2fmodels/fraud-v3",
    "/V1/Models/fraud-v3", "/v1\\models\\fraud-v3", "/v1;x=1/models/fraud-v3", "/x/..;/v1/models/fraud-v3", "/v1/models./fraud-v3",
    "/v1/mo%09dels/fraud-v3", "http://h/v1/models/fraud-v3", "//h/v1/models/fraud-v3", "/v1/%25%36%64odels/fraud-v3",
    "/x/.. /v1/models/fraud-v3", "/x/..;/v1/models./fraud-v3", "/" + "x" * LONGEST, "/%" + "25" * 8 + "41",
)  # fmt: skip


def test_every_way_to_write_a_closed_path_is_closed() -> None:
    tricks = [f"/v1/models/fraud-v3{end}" for end in TRICKS]
    assert [path for path in (*tricks, *DISGUISES) if not CLOSED.closed(path)] == []


def test_other_paths_stay_open() -> None:
    others = ("/", "", "/v1/models/other:predict", "/v1/models/fraud-v30", "/v1/models/fraud-v3-b/predict", "/v1/models/fraud-v3.1/predict",
              "/v1/models/fraud-v3/health", "/v1/models/a%20b.json;c=d", "/v1/models/%e9", "/v1/models/fraud-v3_b",
              "/v1/modelsX/fraud-v3", "/Xv1/models/fraud-v3", "/" + "x" * (LONGEST - 1))  # fmt: skip
    assert [path for path in others if CLOSED.closed(path)] == []
    assert not Routes({"/": "open"}).closed("/" + "x" * LONGEST), "nothing is closed"
    assert not Routes({"/v1": "closed"}).closed("/v2"), "no route knows it"
    closed_but_one = Routes({"/": "closed", "/healthz": "open"})
    paths = ("/healthz", "/healthz/x", "/healthz:x", "/healthz/../x", "/x", "")
    assert [closed_but_one.closed(path) for path in paths] == [False, False, True, True, True, True]


def test_counters_are_handed_over_once() -> None:
    asked = Asked()
    asked.store.detect(hashed("thief"), "block")
    for _ in range(3):
        asked.ask(("X-API-Key", "thief"))
    asked.gateway.flush()
    asked.gateway.flush()
    asked.ask(("X-API-Key", "thief"))
    asked.gateway.flush()
    text = asked.metrics.text().decode()
    assert 'querywarden_authz_answers_total{cause="known",decision="block"} 4.0' in text
    assert hashed("thief") not in text


def test_a_throttled_client_gets_its_rate_through() -> None:
    asked = Asked(Rules(throttle_per_s=2.0, degrade={"throttle": "round=1", "watch": "round=2"}))
    for client in ("a", "b"):
        asked.store.detect(hashed(client), "throttle")
    answers = []
    for _ in range(80):
        answers.append(asked.ask(("X-API-Key", "a")))
        asked.now_s += 0.125
    passed = [headers for status, headers, _ in answers if status == 200]
    refused = [headers for status, headers, _ in answers if status == 429]
    assert len(passed) + len(refused) == 80
    assert 20 <= len(passed) <= 22, "10 s at 2/s, and the first burst"
    assert all(h["x-querywarden-degrade"] == "round=1" for h in passed)
    assert all(h["x-querywarden-decision"] == "throttle" for h in passed + refused)
    assert all(h["retry-after"] == "1" and "x-querywarden-degrade" not in h for h in refused)
    assert asked.ask(("X-API-Key", "b"))[0] == 200, "a bucket each"
    asked.now_s -= 500
    assert asked.ask(("X-API-Key", "b"))[0] in (200, 429), "a clock set back"


def test_whoever_adds_a_throttled_clients_name_uses_up_nothing_of_it() -> None:
    asked = Asked(Rules(throttle_per_s=1.0))
    asked.store.detect(hashed("victim"), "throttle")
    victim = ("X-API-Key", "victim")
    attacks = [
        [("X-API-Key", "attacker"), ("X-Consumer-ID", "victim")],
        [("X-Consumer-ID", "victim"), ("X-API-Key", "attacker")],
        [victim, ("X-API-Key", "attacker")],
        [("X-API-Key", "victim,attacker")],
        [("X-API-Key", "victim," + "x" * 300)],
    ]
    for _ in range(5):
        for attack in attacks:
            asked.ask(*attack)
        assert asked.ask(victim)[0] == 200
        assert asked.ask(victim)[0] == 429
        asked.now_s += 1


def test_a_throttled_client_gains_no_allowance_by_other_names() -> None:
    asked = Asked(Rules(throttle_per_s=1.0))
    asked.store.detect(hashed("thief"), "throttle")
    passed = 0
    for n in range(100):
        passed += asked.ask(("X-API-Key", f"junk-{n}"), ("X-Consumer-ID", "thief"))[0] == 200
        passed += asked.ask(("X-API-Key", f"thief,{n}"))[0] == 200
        passed += asked.ask(("X-API-Key", "thief"))[0] == 200
        asked.now_s += 0.1
    assert 10 <= passed <= 22, "10 s at 1/s, twice at most"


def test_a_refusal_has_a_reference_that_operators_find() -> None:
    asked = Asked(Rules(routes={"/": "closed"}))
    asked.now_s = 1_764_374_399.0  # 2025-11-28, a second before midnight
    asked.store.detect(hashed("thief"), "block")
    asked.store.detect(hashed("slow"), "throttle")
    clients = [hashed("honest"), hashed("slow"), hashed("thief")]
    references = References(SECRETS)
    wanted = {"thief": ("block", hashed("thief")), "slow": ("throttle", hashed("slow")), "": ("block", "anonymous")}
    found = {}
    for client, (answer, about) in wanted.items():
        _, headers, body = asked.ask(("X-API-Key", client))
        reference = found[client] = headers["x-querywarden-reference"]
        assert json.loads(body)["reference"] == reference
        assert references.find(TENANT, f" {reference.upper()}\n", clients) == Refusal("2025-11-28", answer, about)
        assert references.find("other", reference, clients) is None
    assert asked.ask(("X-API-Key", "thief"))[1]["x-querywarden-reference"] == found["thief"], "the same all day"
    asked.now_s += 1
    assert asked.ask(("X-API-Key", "thief"))[1]["x-querywarden-reference"] not in found.values()
    assert "x-querywarden-reference" not in asked.ask(("X-API-Key", "honest"))[1]
    assert [
        references.find(TENANT, text, clients) for text in ("", "20251128-0", "x" * 25, f"20251128-{'0' * 16}")
    ] == [None] * 4


CANARY = "canary=0123456789abcdef"


def steps(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str, str | None, str | None]:
    """Status, decision, steps and client of an answer."""
    status, headers, _ = answer
    return status, *(headers.get(f"x-querywarden-{name}") for name in ("decision", "degrade", "client"))  # type: ignore[return-value]


def test_an_operators_degrade_passes_and_asks_for_less_detail() -> None:
    for rules, expected in (({}, "top1"), ({"degrade": "round=1,label"}, "round=1,label")):
        asked = Asked(Rules(degrade=rules))
        asked.store.say(hashed("suspect"), "degrade")
        assert steps(asked.ask(("X-API-Key", "suspect"))) == (200, "degrade", expected, "none")
        asked.store.detect(hashed("suspect"), "block")
        assert steps(asked.ask(("X-API-Key", "suspect")))[1] == "degrade", "an operator's decision beats detection"
        asked.store.allow(hashed("suspect"))
        assert steps(asked.ask(("X-API-Key", "suspect"))) == (200, "clear", "none", "none")


def test_marks_are_asked_for_throttled_and_degraded_clients_only() -> None:
    everywhere = dict.fromkeys(("clear", "watch", "degrade", "throttle"), f"round=2,{CANARY}")
    asked = Asked(Rules(throttle_per_s=5.0, degrade=everywhere))
    asked.store.detect(hashed("slow"), "throttle")
    asked.store.say(hashed("named"), "degrade")
    asked.store.detect(hashed("flagged"), "throttle", "clear")
    asked.store.detect(hashed("listed"), "throttle")
    asked.store.allow(hashed("listed"))
    marked = f"round=2,{CANARY}"
    assert steps(asked.ask(("X-API-Key", "slow"))) == (200, "throttle", marked, hashed("slow"))
    assert steps(asked.ask(("X-API-Key", "named"))) == (200, "degrade", marked, hashed("named"))
    assert steps(asked.ask(("X-API-Key", "flagged"))) == (200, "watch", "round=2", "none")
    for name in ("honest", "listed"):
        assert steps(asked.ask(("X-API-Key", name))) == (200, "clear", "round=2", "none")
    assert steps(asked.ask()) == (200, "clear", "none", "none")


def test_nobody_gets_another_client_marked_by_adding_its_name() -> None:
    asked = Asked(Rules(degrade={"degrade": CANARY}))
    asked.store.say(hashed("victim"), "degrade")
    assert steps(asked.ask(("X-API-Key", "victim")))[3] == hashed("victim")
    for headers in (
        [("X-API-Key", "attacker"), ("Authorization", "Bearer victim")],
        [("X-API-Key", "attacker,victim")],
        [("X-API-Key", "victim"), ("X-API-Key", "attacker")],
    ):
        assert steps(asked.ask(*headers)) == (200, "degrade", "none", "none")


def test_a_refusal_names_neither_steps_nor_client() -> None:
    asked = Asked(Rules(degrade={"throttle": CANARY}))
    asked.store.detect(hashed("slow"), "throttle")
    assert steps(asked.ask(("X-API-Key", "slow"))) == (429, "throttle", None, None)


def test_degrade_hints_by_decision() -> None:
    asked = Asked(Rules(degrade={"watch": "top1"}))
    asked.store.detect(hashed("flagged"), "block", "clear")
    assert asked.ask(("X-API-Key", "flagged"))[1]["x-querywarden-degrade"] == "top1"
    assert asked.ask(("X-API-Key", "honest"))[1]["x-querywarden-degrade"] == "none"


def test_the_client_map(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "clients.json"
    with pytest.raises(Refused, match="client_map"):
        Asked(map_file=file)
    file.write_text(json.dumps({hashed("sk-1"): "acct-1"}))
    asked = Asked(map_file=file)
    asked.store.detect(hashed("acct-1"), "block")
    asked.store.detect(hashed("acct-2"), "throttle")
    keys = [("X-API-Key", "sk-1"), ("X-API-Key", "sk-2"), ("X-API-Key", "acct-1")]
    assert [asked.decision(k) for k in keys] == ["block", "clear", "block"]
    file.write_text(json.dumps({hashed("sk-1"): "acct-3", hashed("sk-2"): "acct-2"}))
    asked.identities.refresh()
    assert [asked.decision(k) for k in keys] == ["clear", "throttle", "block"]
    file.write_text('{"damaged')
    asked.identities.refresh()
    assert [asked.decision(k) for k in keys] == ["clear", "throttle", "block"], "the last good one"
    (told,) = (one for one in caplog.records if "last good one" in one.message)
    assert told.message == "client map: the last good one stays in use"
    assert "not JSON" in vars(told)["error"]


def test_matches() -> None:
    assert Gateway.matches("/v1/authz")
    assert Gateway.matches("/v1/authz/")
    assert Gateway.matches("/v1/authz/any/path")
    assert not Gateway.matches("/v1/authzx")
    assert not Gateway.matches("/v1")


def test_grpc_reads_headers_as_text_and_as_bytes() -> None:
    messages = pytest.importorskip("envoy.service.auth.v3.attribute_context_pb2")
    asked = messages.AttributeContext.HttpRequest(headers={"X-Api-Key": "a,b"})
    for value in (b"thief\xa0", b"junk"):
        asked.header_map.headers.add(key="x-api-key", raw_value=value)
    wanted = [(b"x-api-key", value) for value in (b"a,b", b"thief\xa0", b"junk")]
    assert ext_authz._headers(asked) == wanted
