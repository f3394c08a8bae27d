"""Envoy's gRPC authorization service (``envoy.service.auth.v3``), with the same answers as ``/v1/authz``. Extra ``[grpc]``.

Rules:
* The request's headers and path are those of the checked request, the path undecoded as over HTTP. Headers are read from the map
  (Envoy joins repeated ones with commas) and from `header_map` (``encode_raw_headers``: each as it came).
* The gateway's own credential comes in the metadata of the call (`initial_metadata` of Envoy's `grpc_service`).
* Status OK lets the request pass and sets both headers for the model server, overwriting headers that a client forged. Any other request is
  refused with the status and headers of the HTTP answer.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from consumers import paths
from consumers.errors import ConfigError
from consumers.http.gateway import Gateway, GatewayAnswer

if TYPE_CHECKING:
    import grpc

THREADS = 4
"""An answer waits for nothing, so a few are enough."""
_OK, _PERMISSION_DENIED, _UNAUTHENTICATED = 0, 7, 16


def serve_ext_authz(bind: str, gateway: Gateway, tls: tuple[str, str, str] | None = None) -> tuple[grpc.Server, int]:
    """Start the service on ``host:port``; port 0 picks one. Returns the server and its port.

    tls  files of certificate and key, and of the authorities whose certificates callers must present (empty: none is asked for)

    The server ends with its last reference: keep it, `stop` it.

    Raises ConfigError when the extra is not installed or the address can't be had.
    """
    try:
        import grpc
        from envoy.service.auth.v3 import external_auth_pb2 as messages
        from envoy.service.auth.v3 import external_auth_pb2_grpc as stubs
    except ImportError as error:
        raise ConfigError(f"gateway.grpc_bind: install querywarden[grpc] ({error})") from error

    class Authorization(stubs.AuthorizationServicer):  # type: ignore[misc]  # the stubs have no types
        def Check(self, request: Any, context: Any) -> Any:
            asked = request.attributes.request.http
            answer = gateway.call(_scope(context), _headers(asked), asked.path.partition("?")[0])
            return _response(messages, answer)

    server = grpc.server(
        ThreadPoolExecutor(THREADS, thread_name_prefix="ext-authz"), options=[("grpc.so_reuseport", 0)]
    )
    stubs.add_AuthorizationServicer_to_server(Authorization(), server)
    try:
        proof = _credentials(grpc, *tls) if tls else None
        port = server.add_secure_port(bind, proof) if proof else server.add_insecure_port(bind)
    except RuntimeError as error:
        raise ConfigError(f"gateway.grpc_bind: {bind}: {error}") from error
    server.start()
    return server, port


def _headers(asked: Any) -> list[tuple[bytes, bytes]]:
    found = [(name.lower().encode(), value.encode()) for name, value in asked.headers.items()]
    raw = asked.header_map.headers
    return found + [(one.key.lower().encode(), one.raw_value or one.value.encode()) for one in raw]


def _credentials(grpc: Any, certfile: str, keyfile: str, client_ca: str) -> Any:
    """What gRPC shows of itself and asks of callers. Raises Refused."""
    pair = paths.read(keyfile, "gateway.grpc_keyfile"), paths.read(certfile, "gateway.grpc_certfile")
    if not client_ca:
        return grpc.ssl_server_credentials([pair])
    return grpc.ssl_server_credentials(
        [pair], paths.read(client_ca, "gateway.grpc_client_ca"), require_client_auth=True
    )


def _scope(context: Any) -> dict[str, Any]:
    """The call as the credential check sees a request."""
    metadata = context.invocation_metadata()
    headers = [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in metadata]
    host, _, port = context.peer().removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")
    client = (host.strip("[]").replace("%5B", "").replace("%5D", ""), int(port)) if port.isdecimal() else None
    return {"type": "http", "method": "POST", "path": "/v1/authz", "headers": headers, "client": client}


def _response(messages: Any, answer: GatewayAnswer) -> Any:
    response = messages.CheckResponse()
    if answer.status == 200:
        response.status.code = _OK
        target = response.ok_response
    else:
        response.status.code = _UNAUTHENTICATED if answer.status == 401 else _PERMISSION_DENIED
        target = response.denied_response
        target.status.code = answer.status
        target.body = answer.body().decode()
        _add(target, "content-type", "application/problem+json")
    for name, value in answer.headers():
        _add(target, name, value)
    return response


def _add(target: Any, name: str, value: str) -> None:
    option = target.headers.add()
    option.header.key, option.header.value = name, value
    option.append_action = option.OVERWRITE_IF_EXISTS_OR_ADD
