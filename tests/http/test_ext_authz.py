"""Who may ask over gRPC: gateways with a key, and this machine while there never was one; in clear or over TLS."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3 import external_auth_pb2 as messages
from envoy.service.auth.v3 import external_auth_pb2_grpc as stubs
from support.certificates import certificate, pem
from support.seeded_api import OURS, World, world

from consumers.errors import Refused
from consumers.http.ext_authz import serve_ext_authz
from consumers.http.gateway import Gateway

OK, UNAUTHENTICATED = 0, 16


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            found = str(probe.getsockname()[0])
        except OSError:
            found = "127.0.0.1"
    if found.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    return found


@contextmanager
def answering(served: World, bind: str, tls: tuple[str, str, str] | None = None) -> Iterator[int]:
    assert isinstance(served.front.gateway, Gateway)
    server, port = serve_ext_authz(bind, served.front.gateway, tls=tls)
    try:
        yield port
    finally:
        server.stop(None).wait()


def code(channel: grpc.Channel, key: str = "") -> int:
    """Status of the answer about some client."""
    request = messages.CheckRequest()
    request.attributes.request.http.headers["x-api-key"] = "acct-1"
    with channel:
        answer = stubs.AuthorizationStub(channel).Check(
            request, metadata=[("x-querywarden-key", key)] if key else [], timeout=10
        )
    return int(answer.status.code)


@pytest.mark.parametrize("bind", ["0.0.0.0", "[::]"])
def test_without_a_key_this_machine_may_ask_and_nobody_else(tmp_path: Path, bind: str) -> None:
    """The address that a question comes from counts, not the one that the service is bound to."""
    outside = own_address()
    with world(tmp_path, open_on_loopback=True, filled=False) as served, answering(served, f"{bind}:0") as port:
        assert code(grpc.insecure_channel(f"127.0.0.1:{port}")) == OK
        assert code(grpc.insecure_channel(f"{outside}:{port}")) == UNAUTHENTICATED
        key = served.key("gateway")
        assert code(grpc.insecure_channel(f"127.0.0.1:{port}")) == UNAUTHENTICATED
        assert code(grpc.insecure_channel(f"{outside}:{port}"), key) == OK


def test_gateways_ask_over_tls(tmp_path: Path) -> None:
    ca = certificate("our-ca", ca=True)
    ca_file, _ = pem(tmp_path, "ca", ca)
    files = pem(tmp_path, "server", certificate("localhost", ca))
    trusted = grpc.ssl_channel_credentials(Path(ca_file).read_bytes())
    with world(tmp_path) as served, answering(served, "127.0.0.1:0", (*files, "")) as port:
        key = served.keys[OURS, "gateway"]
        assert code(grpc.secure_channel(f"127.0.0.1:{port}", trusted), key) == OK
        with pytest.raises(grpc.RpcError):
            code(grpc.insecure_channel(f"127.0.0.1:{port}"), key)
        with pytest.raises(Refused, match=r"gateway\.grpc_keyfile"):
            serve_ext_authz("127.0.0.1:0", served.front.gateway, tls=(files[0], "nowhere.key", ""))  # type: ignore[arg-type]


def test_a_gateway_must_present_a_certificate_where_authorities_are_set(tmp_path: Path) -> None:
    ca, other = certificate("our-ca", ca=True), certificate("another-ca", ca=True)
    ca_file, _ = pem(tmp_path, "ca", ca)
    files = pem(tmp_path, "server", certificate("localhost", ca))

    def presenting(name: str, issuer: tuple[Any, Any]) -> grpc.ChannelCredentials:
        cert, key = (Path(file).read_bytes() for file in pem(tmp_path, name, certificate(name, issuer)))
        return grpc.ssl_channel_credentials(Path(ca_file).read_bytes(), key, cert)

    with world(tmp_path) as served, answering(served, "127.0.0.1:0", (*files, ca_file)) as port:
        key = served.keys[OURS, "gateway"]
        ours, theirs = presenting("gateway", ca), presenting("stranger", other)
        assert code(grpc.secure_channel(f"127.0.0.1:{port}", ours), key) == OK
        assert code(grpc.secure_channel(f"127.0.0.1:{port}", ours)) == UNAUTHENTICATED  # it needs its key all the same
        for refused in (theirs, grpc.ssl_channel_credentials(Path(ca_file).read_bytes())):
            with pytest.raises(grpc.RpcError):
                code(grpc.secure_channel(f"127.0.0.1:{port}", refused), key)
