"""Limits at the door: rates, bodies, slow callers, heads; what every answer carries; errors that say nothing."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.seeded_api import MODEL, OURS, World, on_a_port, world

from consumers.errors import CorruptState, Unavailable
from consumers.http import protocol
from consumers.http.middleware import limits, unread_bodies
from consumers.http.middleware.limits import MOST_BODY_BYTES, MOST_UNKNOWN_BODY_BYTES
from consumers.http.token_buckets import TokenBuckets

NDJSON = {"content-type": "application/x-ndjson"}


def test_buckets() -> None:
    now = [0.0]
    buckets: TokenBuckets[str] = TokenBuckets(2.0, 3, lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b") == 0, "each has its own"
    now[0] = 0.5
    assert [buckets.take("a") for _ in range(2)] == [0, 0.5]
    now[0] = 100.0
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5], "never more than the burst"
    unlimited: TokenBuckets[str] = TokenBuckets(0, 1)
    assert unlimited.take("a") == 0
    for i in range(70_000):
        buckets.take(str(i))
    assert len(buckets._buckets) <= 65_536


def test_too_many_requests(tmp_path: Path) -> None:
    with world(tmp_path, rate_per_s=0.001, burst=3) as served:
        viewer, gateway = served.client("viewer"), served.client(None)
        answers = [viewer.get("/v1/models") for _ in range(5)]
        assert [a.status_code for a in answers] == [200] * 3 + [429] * 2
        assert int(answers[-1].headers["retry-after"]) > 1
        assert answers[-1].headers["content-type"] == "application/problem+json"
        assert served.client("analyst").get("/v1/models").status_code == 200, "another credential has its own"
        assert [gateway.get("/v1/models").status_code for _ in range(4)] == [401] * 3 + [429], "guessing is slowed down"
        assert [gateway.get("/healthz").status_code for _ in range(9)] == [200] * 9
        headers = {"x-querywarden-key": served.keys[OURS, "gateway"], "x-api-key": "a"}
        assert [gateway.get("/v1/authz", headers=headers).status_code for _ in range(9)] == [200] * 9


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_up_to_a_mebibyte(served: World, chunked: bool) -> None:
    asked = served.client("ingest")

    def status(size: int) -> int:
        body = b" " * size
        content = iter([body[: size // 2], body[size // 2 :]]) if chunked else body
        return asked.post("/v1/queries", content=content, headers=NDJSON).status_code

    assert status(MOST_BODY_BYTES) == 400, "read, and empty"
    assert status(MOST_BODY_BYTES + 1) == 413
    stranger = served.client(None).post("/v1/queries", content=b" " * (MOST_UNKNOWN_BODY_BYTES + 1), headers=NDJSON)
    assert stranger.status_code == 413


def test_only_the_bridge_takes_large_bodies(served: World) -> None:
    asked = served.client("operator")
    small, large = json.dumps({"text": "x"}), json.dumps({"text": "x", "pad": " " * (64 << 10)})
    headers = {"content-type": "application/json"}
    for path in ("/v1/decisions", "/v1/allowlist", "/v1/nothing", f"/v1/models/{MODEL}/clients/thief/notes"):
        assert asked.post(path, content=small, headers=headers).status_code in (201, 404, 422)
        assert asked.post(path, content=large, headers=headers).status_code == 413


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_flood_of_names_is_refused_before_each_is_looked_at(served: World, encoding: str) -> None:
    """A list of errors would show that they were checked, which holds up everybody else."""
    flood = json.dumps({f"{i:x}": 0 for i in range(3_000)}).encode(encoding)
    asked, headers = served.client("operator"), {"content-type": "application/json"}
    answer = asked.post("/v1/decisions", content=flood, headers=headers)
    assert (answer.status_code, answer.json().get("errors")) == (422, None)
    many = asked.get("/v1/models?" + "&".join(["a=1"] * 3_000))
    assert (many.status_code, many.json()["detail"]) == (400, "at most 100 parameters")
    few = asked.post("/v1/decisions", content=json.dumps({"a": 0}).encode(encoding), headers=headers)
    assert (few.status_code, len(few.json()["errors"])) == (422, 2)


@pytest.mark.parametrize("path", ["/v1/queries", "/v1/decisions"])
def test_a_coded_body_is_refused_not_misread(served: World, path: str) -> None:
    asked = served.client("ingest" if path == "/v1/queries" else "operator")
    answer = asked.post(path, content=gzip.compress(b"{}"), headers=NDJSON | {"content-encoding": "gzip"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    plain = asked.post(path, content=b"{}", headers=NDJSON | {"content-encoding": "identity"})
    assert plain.status_code in (200, 422)


def test_every_answer_is_dressed(served: World) -> None:
    answers = [
        served.client("viewer").get("/v1/models"),
        served.client(None).get("/v1/models"),
        served.client("viewer").get("/v1/nothing"),
        served.client("viewer").put("/v1/models"),
        served.client(None).get("/healthz"),
        served.client(None).get("/openapi.json"),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])
        assert "server" not in answer.headers


def test_request_ids(served: World) -> None:
    asked = served.client("viewer")
    assert asked.get("/v1/nothing", headers={"x-request-id": "trace-12345"}).json()["request_id"] == "trace-12345"
    for harmful in ("short", "x" * 65, "a b c d e f g", 'quote"quote"', "x" * 20 + "\t"):
        said = asked.get("/v1/nothing", headers={"x-request-id": harmful}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{16}", said)


PROBLEMS = [
    ("GET", "/nothing", 404, "not-found"),
    ("GET", f"/v1/models/{MODEL}/clients/nobody", 404, "not-found"),
    ("PUT", "/v1/decisions", 405, "method-not-allowed"),
    ("GET", "/v1/models/x/clients?limit=1001", 422, "wrong-value"),
    ("GET", f"/v1/models/{MODEL}/clients?cursor=!!", 422, "wrong-value"),
    ("GET", f"/v1/models/{MODEL}/clients?sort=name", 422, "wrong-value"),
    ("DELETE", "/v1/decisions", 422, "wrong-value"),
]


@pytest.mark.parametrize(("method", "path", "status", "name"), PROBLEMS)
def test_every_error_is_a_problem(served: World, method: str, path: str, status: int, name: str) -> None:
    answer = served.client("admin").request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["type"], body["status"], body["request_id"]) == (
        f"urn:querywarden:{name}",
        status,
        answer.headers["x-request-id"],
    )


def test_allow_names_all_methods_of_a_path(served: World) -> None:
    answer = served.client("admin").patch("/v1/decisions")
    assert answer.headers["allow"] == "DELETE, GET, POST"
    assert served.client("admin").post("/healthz").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("error", "status"), [(Unavailable("redis://user:secret@host"), 503), (CorruptState("secret"), 500), (RuntimeError("secret"), 500)]
)  # fmt: skip
def test_what_went_wrong_is_not_told(
    served: World, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(type(served.store), "operator_entries", broken)
    answer = served.client("viewer").get("/v1/allowlist")
    assert answer.status_code == status
    assert "secret" not in answer.text
    assert answer.json()["request_id"]
    assert ("retry-after" in answer.headers) is (status == 503)


def test_what_was_sent_is_not_repeated(served: World) -> None:
    answer = served.client("operator").post(
        "/v1/decisions", json={"client_id": "x", "state": "<script>", "evil<script>": 1}
    )
    assert answer.status_code == 422
    assert "<script>" not in answer.text.replace("evil<script>", "")
    assert all(e.keys() == {"where", "what"} for e in answer.json()["errors"])


NO_JSON = [
    b"{", b"[1", b"\xff\xfe", b'{"a":' * 12_000, b'{"ttl_s": ' + b"9" * 5000 + b"}", b'{"client_id":"\\ud800","state":"block"}',
]  # fmt: skip


@pytest.mark.parametrize("body", NO_JSON)
def test_bodies_that_no_parser_likes(served: World, body: bytes) -> None:
    answer = served.client("operator").post("/v1/decisions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert json.loads(answer.content)["status"] == answer.status_code


_GOOD = {"client_id": "x", "state": "block"}
TO_THE_LETTER: list[dict[str, object]] = [
    {**_GOOD, "ttl_s": "60"}, {**_GOOD, "simulated": 1}, {**_GOOD, "client_id": 5}, {**_GOOD, "client_key": "0" * 32},
    {"state": "block"}, {**_GOOD, "more": 1},
]  # fmt: skip


@pytest.mark.parametrize("body", TO_THE_LETTER)
def test_bodies_are_taken_by_the_letter(served: World, body: dict[str, object]) -> None:
    assert served.client("operator").post("/v1/decisions", json=body).status_code == 422


# ------------------------------------------------------------------------------------------------- on the wire


@pytest.fixture
def port(served: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The service on a port, with short patience."""
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr(limits, "BODY_TIMEOUT_S", 0.5)
    with on_a_port(served.front) as found:
        yield found


def answer_to(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for part in parts:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(part)
            time.sleep(pause_s)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while block := connection.recv(65_536):
                found += block
        return found


def written_by(served: World, length: int) -> bytes:
    lines = [
        "POST /v1/queries HTTP/1.1", "Host: a", f"X-Api-Key: {served.keys[OURS, 'ingest']}", "Content-Type: application/x-ndjson",
        f"Content-Length: {length}", "Connection: close", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


def test_who_drips_a_head_is_cut_off(port: int) -> None:
    began = time.monotonic()
    answer = answer_to(port, b"GET /healthz HT", *[b"T"] * 8, pause_s=0.1)
    assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 400"))
    assert answer_to(port).startswith(b"HTTP/1.1 408"), "a connection that says nothing"
    assert time.monotonic() - began < 8


def test_who_drips_a_body_is_cut_off(port: int, served: World) -> None:
    head = written_by(served, 999)
    assert answer_to(port, head, *[b"x"] * 8, pause_s=0.1).startswith(b"HTTP/1.1 408")


def sent_slowly(connection: socket.socket, parts: list[bytes]) -> None:
    for part in parts:
        connection.sendall(part)
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("head", "status"),
    [("GET /v1/authz", 401), ("POST /v1/authz/any/path", 401), ("POST /healthz", 405), ("POST /v1/queries", 429)],
)
def test_a_body_that_nobody_waits_for_does_not_hold_the_connection(
    port: int, served: World, monkeypatch: pytest.MonkeyPatch, head: str, status: int
) -> None:
    monkeypatch.setattr(unread_bodies, "LINGER_S", 0.2)
    if status == 429:
        monkeypatch.setattr(served.front.limits, "unknown", TokenBuckets(0.001, 0))
    for framing in (b"Content-Length: 100000000", b"Transfer-Encoding: chunked"):
        drip = [b"1\r\nx\r\n"] * 30 if b"chunked" in framing else [b"x" * 10] * 30
        request = f"{head} HTTP/1.1\r\nHost: a\r\n".encode() + framing + b"\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(request)
            answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 %d" % status)
            assert b"connection: close" in answer.lower()
            with pytest.raises(OSError, match=r"reset|pipe"):
                sent_slowly(connection, drip)


def test_a_body_that_is_there_keeps_the_connection(port: int, served: World) -> None:
    key = served.keys[OURS, "gateway"]
    request = f"POST /v1/authz HTTP/1.1\r\nHost: a\r\nX-QueryWarden-Key: {key}\r\nContent-Length: 3\r\n\r\nabc"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for _ in range(3):
            connection.sendall(request.encode())
            answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"close" not in answer


def test_a_large_head_is_refused(port: int) -> None:
    answer = answer_to(port, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000)
    assert answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    ("beginning", "status"), [(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ", b"431"), (b"GET /healthz HTTP/1.1\r\nHost: a\x01\r\n", b"400")]
)  # fmt: skip
def test_who_is_refused_while_it_sends_reads_the_refusal(port: int, beginning: bytes, status: bytes) -> None:
    """A gateway that meets a reset instead takes the service for down."""
    answer = sent = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for _ in range(12):  # no send fails, though it was refused long ago
            sent = beginning if not sent else b"a" * 70_000
            connection.sendall(sent)
            time.sleep(0.02)
        connection.shutdown(socket.SHUT_WR)
        while block := connection.recv(65_536):
            answer += block
    assert answer.startswith(b"HTTP/1.1 " + status)


def test_who_never_ends_is_cut_off_in_the_end(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_BYTES", 100_000)
    cut_off = False
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection, contextlib.suppress(OSError):
        cut_off = True
        for _ in range(2000):
            connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000)
            time.sleep(0.001)
        cut_off = False
    assert cut_off


def test_a_body_may_come_with_its_head(port: int, served: World) -> None:
    body = b"\n" * 300_000
    head = written_by(served, len(body))
    assert answer_to(port, head + body).startswith(b"HTTP/1.1 400"), "read whole, and empty"


def test_one_connection_for_many_requests(port: int, served: World) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for path, status in (("/healthz", 200), ("/v1/models", 401), ("/v1/nothing", 404), ("/readyz", 200)) * 3:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
        time.sleep(0.06)
    time.sleep(0.7)  # idle longer than a head may take: no head was begun
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()


def test_slow_callers_hold_up_nobody(port: int, served: World) -> None:
    """300 connections that never finish their request; others are answered meanwhile."""
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    try:
        for connection in slow:
            connection.sendall(b"POST /v1/queries HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n")
        failed: list[object] = []

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/v1/models", headers={"X-Api-Key": served.keys[OURS, "viewer"]})
            if connection.getresponse().status != 200:
                failed.append("status")
            connection.close()

        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert failed == []
    finally:
        for connection in slow:
            connection.close()
