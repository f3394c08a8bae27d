"""What a blocked client may try, through every real gateway: `TRICKS` × Envoy (HTTP, gRPC), nginx, Caddy, HAProxy.

Each trick is sent as bytes; the table says what the model server saw, or why a trick does not apply to a gateway. `UNFIXED` are the same
configurations without what closes a hole: through these the tricks must get, or the table could not fail.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

import pytest
from support.gateway_backend import TENANT, Backend, Service
from support.gateway_peers import Caddy, Envoy, EnvoyGrpc, Haproxy, Nginx, Peer
from support.servers import NewServer, Redis, Server, free_port, started, wait_until

from consumers.operators.references import References, Refusal

REFUSED = "refused"
OPEN = "saw nobody, clear"
ASKS_NOBODY = MappingProxyType({"haproxy": "it asks nobody: the map knows no routes"})
ONE_IS_PASSED_ON = MappingProxyType({"nginx": "saw junk, clear"})  # the value that was asked about, and no other

SETTINGS = """\
throttle_per_s = 3.0
[gateway.routes]
"/" = "open"
"/v1/models/closed" = "closed"
"/inference.GRPCInferenceService" = "closed"
[breaker]
most = 3
[responders]
haproxy_socket = "{socket}"
haproxy_map = "{map}"
"""


@dataclass(frozen=True)
class Trick:
    """A request, and what the model server sees of it.

    head   header lines; ``{gateway}`` is the gateway's name
    saw    where it isn't `expected`: gateway → what; not_for: gateway → why the trick does not apply
    before header lines of requests that are sent first
    times  how often it is tried; what gets through once got through
    """

    name: str
    head: str = ""
    path: str = "/predict"
    expected: str = REFUSED
    saw: Mapping[str, str] = field(default_factory=dict)
    not_for: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    times: int = 1


THIEF = "X-Api-Key: thief\r\n"
JUNK = "X-Api-Key: junk\r\n"
CLAIMS = f"X-QueryWarden-Degrade: none\r\nX-QueryWarden-Client: {'0' * 32}\r\n"
DROPS_THE_DECISION = "Connection: close, X-QueryWarden-Decision, X-QueryWarden-Degrade\r\n"


def closed(name: str, path: str) -> Trick:
    return Trick(f"closed route: {name}", path=path, not_for=ASKS_NOBODY)


TRICKS = (
    Trick("control: an honest client", "X-Api-Key: honest\r\n", expected="saw honest, clear"),
    Trick("control: no identity, an open route", expected=OPEN),
    Trick("control: the plain thief", THIEF),
    # --- identity headers
    Trick("the header twice, junk last", THIEF + JUNK),
    Trick("the header twice, junk first", JUNK + THIEF, saw=ONE_IS_PASSED_ON),
    Trick("joined by a comma", "X-Api-Key: thief,junk\r\n"),
    Trick("joined by a comma and white space", "X-Api-Key: junk ,\tthief\t\r\n"),
    Trick("among many", f"X-Api-Key: {'x,' * 200}thief\r\n"),
    Trick("white space behind", "X-Api-Key: thief \t\r\n"),
    Trick("white space before", "X-Api-Key: \t thief\r\n"),
    Trick("another white space behind", "X-Api-Key: thief\xa0\r\n"),
    Trick("a control byte behind", "X-Api-Key: thief\x1f\r\n"),
    Trick("an underscore in the name", "X_Api_Key: thief\r\n", expected=OPEN),
    Trick("a bearer token beside a junk key", f"{JUNK}Authorization: Bearer thief\r\n"),
    Trick("a bearer token behind a tab", "Authorization: Bearer\tthief\r\n"),
    Trick("a bearer token and a word", "Authorization: Bearer thief junk\r\n"),
    Trick("two bearer tokens", "Authorization: Bearer junk\r\nAuthorization: Bearer thief\r\n"),
    Trick("its own words for the model server", f"{JUNK}{CLAIMS}", expected="saw junk, clear"),
    Trick("a name that only gateways may say", f"{JUNK}X-Consumer-ID: thief\r\n", expected="saw junk, clear"),
    # --- what makes a gateway's question fail, or its answer disappear
    Trick("a control byte in another header", f"{THIEF}X-Foo: a\x01b\r\n", times=3),
    Trick("a delete byte in another header", f"{THIEF}X-Foo: a\x7fb\r\n", times=3),
    Trick("a large head", THIEF + "".join(f"X-F{n}: {'a' * 14_000}\r\n" for n in range(60)), times=20),
    Trick("a large identity", f"X-Api-Key: thief{' ' * 40_000}\r\n", times=5),
    Trick("Connection names the decision", f"X-Api-Key: honest\r\n{DROPS_THE_DECISION}", expected="saw honest, clear"),
    Trick("Connection names the identity", f"{THIEF}Connection: close, X-Api-Key\r\n", saw={"envoy": OPEN, "envoy-grpc": OPEN}),
    # --- closed routes, without an identity
    closed("plain", "/v1/models/closed"),
    closed("a verb", "/v1/models/closed:predict"),
    closed("a parameter", "/v1/models/closed;a=b/predict"),
    closed("an extension", "/v1/models/closed.json"),
    closed("percent-encoded", "/v1/models/%63losed"),
    closed("an encoded slash", "/v1%2fmodels/closed"),
    closed("encoded twice", "/v1/models/%2563losed"),
    closed("dot segments", "/v1/models/x/../closed/predict"),
    closed("encoded dot segments", "/v1/models/x/..%2fclosed"),
    closed("dot segments with a parameter", "/v1/models/x/..;/closed"),
    closed("case", "/V1/Models/closed/predict"),
    closed("a zero byte", "/v1/models/closed%00"),
    closed("a blank", "/v1/models/closed%20"),
    closed("a backslash", "/v1/models%5cclosed"),
    closed("gRPC", "/inference.GRPCInferenceService/ModelInfer"),
    closed("gRPC, percent-encoded", "/inference%2eGRPCInferenceService/ModelInfer"),
    # --- what others do to a client's standing
    Trick(
        "a drained allowance",
        "X-Api-Key: victim-{gateway}\r\n",
        expected="saw victim-{gateway}, throttle",
        before=("X-Api-Key: attacker\r\nAuthorization: Bearer victim-{gateway}\r\n", "X-Api-Key: attacker,victim-{gateway}\r\n") * 8,
        not_for={"haproxy": "the map has no allowances: a throttled client is refused"},
    ),
    Trick("a storm: who was blocked before", "X-Api-Key: oldthief\r\n"),
    Trick("a storm: who is flagged in it", "X-Api-Key: t0\r\n", expected="saw t0, watch", saw={"haproxy": "saw t0, clear"}),
)  # fmt: skip


class NginxUnfixed(Nginx):
    def adapted(self) -> Mapping[str, str]:
        return {
            **super().adapted(),
            "proxy_pass_request_headers off;": "",
            "error_page 400 413 414 429 431": "error_page 429",
        }


class CaddyUnfixed(Caddy):
    def adapted(self) -> Mapping[str, str]:
        return {**super().adapted(), "request_header -Connection": ""}


class HaproxyUnfixed(Haproxy):
    def adapted(self) -> Mapping[str, str]:
        return {**super().adapted(), "http-request deny deny_status 400": "http-request set-var(txn.unfixed) int(1)"}


GATEWAYS: Mapping[str, type[Peer]] = {g.name: g for g in (Envoy, EnvoyGrpc, Nginx, Caddy, Haproxy)}
UNFIXED: Mapping[str, tuple[type[Peer], str, str]] = {
    "nginx": (NginxUnfixed, "a control byte in another header", "saw thief, undecided"),
    "caddy": (CaddyUnfixed, "Connection names the decision", "saw honest, undecided"),
    "haproxy": (HaproxyUnfixed, "the header twice, junk last", "saw thief+junk, clear"),
}


class Model:
    """A model server that remembers whom it saw, and with which decision."""

    def __init__(self) -> None:
        seen = self.seen = list[str]()

        class Answers(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                said = {name.lower().replace("_", "-"): value for name, value in self.headers.items()}
                keys = [
                    v
                    for n, v in self.headers.items()
                    if n.lower() in ("x-api-key", "x_api_key", "x-consumer-id", "authorization")
                ]
                decision = said.get("x-querywarden-decision") or "undecided"
                if said.get("x-querywarden-client") == "0" * 32:
                    decision += ", under a client of its own choice"
                seen.append(f"saw {'+'.join(keys).removeprefix('Bearer ') or 'nobody'}, {decision}")
                self.rfile.read(int(said.get("content-length", 0)))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", free_port()), Answers)
        self.server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # gateways cut connections
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def send(port: int, head: str, path: str) -> http.client.HTTPResponse | None:
    """The answer to a request of these bytes; None when the connection was cut."""
    text = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}Content-Length: 2\r\n\r\n{{}}"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(text.encode("latin-1"))
        answer = http.client.HTTPResponse(connection, method="POST")
        try:
            answer.begin()
            answer.content = answer.read()  # type: ignore[attr-defined]
        except (http.client.HTTPException, ConnectionResetError):
            return None
        return answer


class Arena:
    """QueryWarden with its gateways, and clients that were judged: thief, victim-…, oldthief; a flag storm goes on."""

    def __init__(
        self, backend: Backend, model: Model, gateways: Mapping[str, Peer], unfixed: Mapping[str, Peer]
    ) -> None:
        self.backend, self.model, self.gateways, self.unfixed = backend, model, gateways, unfixed

    def outcome(self, peer: Peer, trick: Trick, name: str = "") -> str:
        """What the model server saw. A machine that is too busy to answer a gateway in 200 ms lets pass: tried again."""
        for before in trick.before:
            send(peer.port, before.format(gateway=name), trick.path)
        found = set[str]()
        for _ in range(5):
            self.model.seen.clear()
            head = trick.head.format(gateway=name) if "{gateway}" in trick.head else trick.head
            answers = [send(peer.port, head, trick.path) for _ in range(trick.times)]
            assert all(a is None or a.status in (200, 400, 403, 429, 431) for a in answers), [
                a and a.status for a in answers
            ]
            found = set(self.model.seen) or {REFUSED}
            if len(found) == 1 and "undecided" not in next(iter(found)):
                break
        return " | ".join(sorted(found))

    def is_ready(self) -> bool:
        """Whether every gateway knows the block and the storm."""
        ready = [t for t in TRICKS if t.name in ("control: the plain thief", "a storm: who is flagged in it")]
        return all(self.outcome(g, t) == t.saw.get(n, t.expected) for n, g in self.gateways.items() for t in ready)


@pytest.fixture(scope="module")
def arena(new_server: NewServer) -> Iterator[Arena]:
    model = Model()
    with contextlib.ExitStack() as stack:
        stack.callback(model.server.server_close)
        stack.callback(model.server.shutdown)
        redis = new_server(Redis)
        start(stack, redis)
        model_port, port, grpc_port = model.server.server_address[1], free_port(), free_port()
        haproxy = new_server(Haproxy, model_port, port, grpc_port, "", edge_key="")
        service = Service(redis.url, SETTINGS.format(socket=haproxy.socket, map=haproxy.map), (port, grpc_port))
        stack.callback(service.store.close)
        backend = Backend(redis, service, model_port)
        haproxy.edge_key = service.edge_key
        gateways: dict[str, Peer] = {
            n: new_server(kind, *backend.ports()) for n, kind in GATEWAYS.items() if n != "haproxy"
        }
        gateways["haproxy"] = haproxy
        control = new_server(HaproxyUnfixed, *backend.ports(), edge_key=service.edge_key)
        control.map.write_text(f"{service.secrets.client_hash(TENANT, 'thief')} block\n")
        unfixed: dict[str, Peer] = {
            n: new_server(kind, *backend.ports()) for n, (kind, *_) in UNFIXED.items() if n != "haproxy"
        }
        unfixed["haproxy"] = control
        backend.say("thief", "block", 3600)
        for name in GATEWAYS:
            backend.say(f"victim-{name}", "throttle", 3600)
        backend.detect("oldthief", "block", seconds=3600)
        start(stack, service, *gateways.values(), *unfixed.values())
        for n in range(4):
            backend.detect(f"t{n}", "block", seconds=3600)
        made = Arena(backend, model, gateways, unfixed)
        wait_until(made.is_ready, what="block and storm at every gateway")
        yield made


def start(stack: contextlib.ExitStack, *servers: Server) -> None:
    for server in servers:
        stack.enter_context(started(server))


@pytest.mark.parametrize("name", GATEWAYS)
def test_no_trick_gets_a_blocked_client_through(arena: Arena, name: str) -> None:
    tried = [trick for trick in TRICKS if name not in trick.not_for]
    wanted = {trick.name: trick.saw.get(name, trick.expected).format(gateway=name) for trick in tried}
    assert {trick.name: arena.outcome(arena.gateways[name], trick, name) for trick in tried} == wanted


@pytest.mark.parametrize("name", UNFIXED)
def test_without_the_fix_the_trick_gets_through(arena: Arena, name: str) -> None:
    _, trick, saw = UNFIXED[name]
    assert arena.outcome(arena.unfixed[name], next(t for t in TRICKS if t.name == trick)) == saw


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_refusal_carries_a_reference_that_operators_can_look_up(arena: Arena, name: str) -> None:
    service = arena.backend.service
    clients = [service.secrets.client_hash(TENANT, client) for client in ("honest", "thief")]
    answer = send(arena.gateways[name].port, THIEF, "/predict")
    assert answer is not None
    reference = answer.getheader("X-QueryWarden-Reference") or ""
    assert (answer.status, json.loads(answer.content)["reference"]) == (403, reference)  # type: ignore[attr-defined]
    assert answer.getheader("Content-Type") == "application/problem+json"
    found = References(service.secrets).find(TENANT, reference, clients)
    assert found is not None
    assert found == Refusal(found.day, "block", clients[1])
    assert "thief" not in f"{answer.headers}{answer.content}"  # type: ignore[attr-defined]
