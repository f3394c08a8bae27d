"""QueryWarden's gateway alone, as a program: ``python service.py STORE_URL SECRETS PORT GRPC_PORT KEY``.

Everything is the service's own – store, refresher, route, gRPC – but for the credential, which is one key from the command line.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

from consumers.http.ext_authz import serve_ext_authz
from consumers.http.gateway import Gateway, Rules
from consumers.http.identities import Identities
from consumers.metrics import Metrics
from consumers.refresher import Refresher
from consumers.restrictions import Restrictions
from consumers.secrets import Secrets
from consumers.store.redis import connect


def main(store_url: str, secrets_file: str, port: str, grpc_port: str, key: str) -> None:
    def caller(scope: dict[str, Any]) -> str | None:
        return "default" if (b"x-querywarden-key", key.encode()) in scope["headers"] else None

    secrets = Secrets.load(secrets_file)
    store, view, metrics = connect(store_url, timeout_s=1.0), Restrictions("block"), Metrics()
    store.prepare(secrets.key_id)
    identities = Identities(("x-api-key",), secrets)
    rules = Rules(degrade={"watch": "round=1", "clear": "round=6"})
    gateway = Gateway(view, identities, caller, metrics, rules)
    Refresher(store, view, metrics, each_turn=(gateway.flush,)).start()
    grpc_server = serve_ext_authz(f"127.0.0.1:{grpc_port}", gateway)[0]
    uvicorn.run(
        gateway, host="127.0.0.1", port=int(port), log_level="warning", loop="uvloop", http="httptools", lifespan="off"
    )
    grpc_server.stop(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
