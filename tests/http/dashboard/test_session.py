"""Who may do what on the dashboard, over plain HTTP: sessions, form tokens, origins, roles, tenants."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.dashboard_people import BLOCK, CLIENT, HOST, SUBJECT, World, token
from support.seeded_dashboard import MODEL, SECRETS, TENANT

from consumers.errors import Unavailable
from consumers.http.dashboard.session import COOKIE, HOURS, Session, Sessions
from consumers.http.middleware.stack import MiddlewareStack
from consumers.http.token_buckets import TokenBuckets
from consumers.operators.audited_write import Actor
from consumers.telemetry.metrics import Metrics
from detector.baseline import Baseline

READ = [
    "/",
    "/campaigns",
    "/models",
    "/decisions",
    "/alerts",
    "/health",
    "/live/queue",
    f"/client?client={CLIENT}&model={MODEL}",
]
FORMS: dict[str, dict[str, str]] = {
    "/act/decide": BLOCK,
    "/act/undo": {"kind": "decision", "client": SECRETS.client_hash(TENANT, "partner-eu-7f21"), "model": MODEL},
    "/act/verdict": SUBJECT | {"verdict": "true_positive", "alert": SECRETS.client_hash(TENANT, "alertacct-90114")},
    "/act/note": SUBJECT | {"text": "t"},
}
NEEDS = {"/act/decide": "operator", "/act/undo": "operator", "/act/verdict": "analyst", "/act/note": "analyst"}


def page_token(client: TestClient) -> str:
    return (
        token(client, f"/client?client={CLIENT}&model={MODEL}") if COOKIE in client.cookies else token(client, "/login")
    )


def test_nobody_reads_without_a_session_once_there_are_keys(world: World) -> None:
    client = world.browser()
    for path in READ:
        answer = client.get(path)
        if path.startswith("/live/"):
            assert answer.status_code == 401
        else:
            assert (answer.status_code, answer.headers["location"][:12]) == (303, "/login?next=")
        assert "acct-" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("role", ["viewer", "analyst", "operator"])
def test_every_role_does_what_it_may_and_nothing_else(world: World, role: str) -> None:
    order = ["viewer", "analyst", "operator"]
    client = world.browser(role)
    for path in READ:
        assert client.get(path).status_code == 200, path
    csrf = token(client, "/decisions") if role == "operator" else token(client, "/")
    for path, form in FORMS.items():
        before = world.store.audit_rows(0, 10_000)
        answer = client.post(path, data=form | {"csrf": csrf}, headers={"origin": f"http://{HOST}"})
        may = order.index(role) >= order.index(NEEDS[path])
        assert answer.status_code == (303 if may else 403), path
        assert len(world.store.audit_rows(0, 10_000)) == len(before) + (1 if may else 0), path
        if may:
            assert "said=refused" not in answer.headers["location"]


def test_a_gateways_key_opens_nothing(world: World) -> None:
    client = world.browser()
    answer = client.post("/login", data={"csrf": token(client, "/login"), "key": world.keys["gateway"], "next": "/"})
    assert answer.headers["location"] == "/login?said=wrong-key"
    assert client.get("/").status_code == 303


@pytest.mark.parametrize(
    ("form", "headers", "why"),
    [
        ({}, {}, "no token"),
        ({"csrf": ""}, {}, "an empty token"),
        ({"csrf": "A" * 44}, {}, "a made-up token"),
        ({"csrf": "other"}, {}, "the token of somebody else's session"),
        ({"csrf": "own"}, {"origin": "http://evil.example"}, "another origin"),
        ({"csrf": "own"}, {"origin": "null"}, "a sandboxed page"),
        ({"csrf": "own"}, {"origin": "http://127.0.0.1:8081"}, "another port of this machine"),
        ({"csrf": "own"}, {"origin": f"http://{HOST}.evil.example"}, "a name that begins like ours"),
        ({"csrf": "own"}, {"sec-fetch-site": "cross-site"}, "a cross-site post"),
        ({"csrf": "own"}, {"sec-fetch-site": "same-site"}, "a neighbour's post"),
        ({"csrf": "own"}, {"content-type": "text/plain"}, "a form of another type"),
    ],
)
def test_a_forged_post_changes_nothing(world: World, form: dict[str, str], headers: dict[str, str], why: str) -> None:
    client, before = world.browser("operator"), world.rulings()
    tokens = {"own": token(client), "other": token(world.browser("operator"))}
    sent = BLOCK | {name: tokens.get(value, value) for name, value in form.items()}
    assert client.post("/act/decide", data=sent, headers=headers).status_code == 403, why
    assert world.rulings() == before
    assert client.post("/act/decide", data=BLOCK | {"csrf": tokens["own"]}).status_code == 303, (
        "the same form, ours, is taken"
    )
    assert world.rulings() == before + 1


def test_a_form_that_is_sent_twice_has_one_effect(world: World) -> None:
    client = world.browser("operator")
    form = BLOCK | {"csrf": token(client), "once": "abc"}
    rows = len(world.store.audit_rows(0, 1000))
    for _ in range(3):
        assert client.post("/act/decide", data=form).headers["location"].endswith("said=block")
    assert len(world.store.audit_rows(0, 1000)) == rows + 1


def test_forged_and_altered_cookies_open_nothing(world: World) -> None:
    good = world.browser("operator").cookies[COOKIE]
    body, _, signature = good.partition(".")
    elsewhere = Sessions(b"x" * 32)
    key_id = world.keys["operator"].split("_")[2]
    forged = [
        "", ".", "a.b", body, f"{body}.", f"{body}.{signature[:-2]}==", f"{body[:-4]}AAAA.{signature}", f"{body}x.{signature}",
        elsewhere.cookie(Session(key_id, 2**40, "t")), good.upper(), good + "x", "ü.ü",
    ]  # fmt: skip
    for cookie in forged:
        client = world.browser()
        headers = {"cookie": f"{COOKIE}={cookie}".encode()}
        assert client.get("/", headers=headers).status_code == 303, cookie  # type: ignore[arg-type]
    assert world.browser().get("/", headers={"cookie": f"{COOKIE}={good}"}).status_code == 200


def test_a_session_ends_with_its_hours_and_with_its_key(world: World) -> None:
    client = world.browser("operator")
    assert client.get("/").status_code == 200
    world.now += HOURS * 3600 - 1
    assert client.get("/").status_code == 200
    world.now += 1
    assert client.get("/").status_code == 303
    client = world.browser("viewer")
    world.operations.revoke_key(Actor("a", "admin", TENANT), world.keys["viewer"].split("_")[2])
    world.ring.refresh(world.store)
    assert client.get("/").status_code == 303


def test_the_cookie_is_kept_from_scripts_and_other_sites(world: World) -> None:
    client = world.browser()
    csrf = token(client, "/login")
    answer = client.post("/login", data={"csrf": csrf, "key": world.keys["viewer"], "next": "//evil.example"})
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert world.keys["viewer"] not in answer.headers["set-cookie"]
    over_tls = TestClient(world.app, base_url=f"https://{HOST}", follow_redirects=False)
    assert "secure" in over_tls.get("/login").headers["set-cookie"].lower()


def test_signing_in_is_audited_and_signing_out_ends_it(world: World) -> None:
    client = world.browser("analyst")
    assert b'"dashboard.login"' in world.store.audit_rows(0, 1000)[-1][1]
    assert client.post("/logout", data={}).status_code == 403
    assert client.post("/logout", data={"csrf": token(client, "/")}).status_code == 303
    assert client.get("/").status_code == 303


def test_a_session_that_was_signed_out_is_over_everywhere(world: World) -> None:
    client, other = world.browser("analyst"), Sessions(b"k" * 32)
    kept = client.cookies[COOKIE].strip('"')
    thief = world.browser()
    thief.cookies.set(COOKIE, kept)
    assert thief.get("/").status_code == 200
    assert client.post("/logout", data={"csrf": token(client, "/")}).status_code == 303
    thief.cookies.clear()
    thief.cookies.set(COOKIE, kept)
    assert thief.get("/").status_code == 303
    assert other.read(kept, int(world.now)) is not None, "another service does not know yet"
    other.refresh(world.store, world.now)
    assert other.read(kept, int(world.now)) is None
    assert b'"dashboard.logout"' in world.store.audit_rows(0, 1000)[-1][1]


def test_strangers_do_not_use_up_what_signed_in_people_have(world: World) -> None:
    """They share an address, that of a proxy, and nothing else."""
    front = MiddlewareStack(world.app, world.dashboard.auth, Metrics(), lambda: None, holder=world.dashboard.holder)
    front.limits.known, front.limits.unknown = TokenBuckets(0.001, 5), TokenBuckets(0.001, 3)
    person = world.browser("operator")
    asked = TestClient(front, base_url=f"http://{HOST}", follow_redirects=False)
    wrong = {"Authorization": "Bearer qw_live_wrong"}
    assert [asked.get("/", headers=wrong).status_code for _ in range(4)][-1] == 429
    asked.cookies.set(COOKIE, person.cookies[COOKIE])
    assert [asked.get("/").status_code for _ in range(6)] == [200] * 5 + [429], "the key's own bucket"
    asked.cookies.set(COOKIE, person.cookies[COOKIE][:-3] + "AAA")
    assert asked.get("/").status_code == 429, "a forged one has none"


def test_without_any_key_this_machine_may_look_and_nobody_else(tmp_path: Path, baseline: Baseline) -> None:
    world = World(tmp_path, baseline, fill=False)
    for host in (HOST, "localhost:8080", "[::1]:8080"):
        assert world.browser(host=host).get("/").status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example:8080", "localhost.evil.example"):
        assert world.browser(host=host).get("/").status_code == 303, "a name that was rebound to this machine"
    client = world.browser()
    answer = client.post("/act/decide", data=BLOCK | {"csrf": token(client, "/login")})
    assert answer.status_code == 403
    world.store.close()


def test_another_tenants_clients_are_not_there(world: World) -> None:
    _, key = world.operations.create_key(Actor("a", "admin", "acme"), "acme-op", "operator")
    assert key is not None
    world.ring.refresh(world.store)
    world.keys["acme"] = key
    client = world.browser("acme")
    assert client.get("/?state=all").text.count("acct-") == 0
    assert client.get(f"/client?client={CLIENT}&model={MODEL}").status_code == 404
    answer = client.post("/act/decide", data=BLOCK | {"csrf": token(client, "/")})
    assert answer.headers["location"].endswith("said=gone")
    assert world.store.operator_entries("decision", "acme")[1] == []


@pytest.mark.parametrize(
    "change",
    [
        {"act": "destroy"}, {"reason": " "}, {"ttl_s": "-1"}, {"ttl_s": "9" * 40}, {"ttl_s": "٣"}, {"ttl_s": "2764800"}, {"model": "|"},
        {"client": "x" * 9000},
    ],
)  # fmt: skip
def test_a_form_that_asks_for_nonsense_is_refused_in_words(world: World, change: dict[str, str]) -> None:
    client, before = world.browser("operator"), world.rulings()
    answer = client.post("/act/decide", data=BLOCK | {"csrf": token(client)} | change)
    assert answer.status_code in (303, 403)
    assert world.rulings() == before


def test_a_silent_store_is_said_and_no_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = world.browser("operator")
    csrf = token(client)

    def silent(*arguments: Any, **named: Any) -> Any:
        raise Unavailable("gone")

    for name in ("decisions", "decided", "alerts", "operator_entries", "operate", "cells"):
        monkeypatch.setattr(world.store, name, silent)
    world.dashboard.reader._kept.clear()  # what it remembers for some seconds
    for path in READ:
        answer = client.get(path)
        assert answer.status_code == 503, path
        assert "does not answer" in answer.text
    assert client.post("/act/decide", data=BLOCK | {"csrf": csrf}).status_code == 503


def test_static_files_are_few_and_known_by_their_hash(world: World) -> None:
    client = world.browser()
    answer = client.get("/static/dashboard.js")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert client.get("/static/dashboard.js", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    for name in ("../session.py", "..%2fsession.py", "%2e%2e/session.py", "none.css"):
        assert client.get(f"/static/{name}").status_code == 404
    for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert banned not in answer.text


def test_the_dashboard_says_of_gateways_what_the_readings_say(world: World) -> None:
    analyst = world.browser("analyst")
    for state in ("", "throttle", "clear"):
        if state:
            actor = Actor("maria", "operator", TENANT)
            world.operations.decide(actor, world.operations.subject(TENANT, MODEL, "acct-90114"), state)
        one = world.dashboard.reader.client(MODEL, CLIENT)
        assert one is not None
        page = html.unescape(analyst.get(f"/client?client={CLIENT}&model={MODEL}").text)
        assert one.gateways.text in page
        assert page.count("Gateways let it through") + page.count("Gateways throttle it") == 1
        assert one.gateways.text in html.unescape(analyst.get("/decisions").text)
