"""The whole service on one machine: Kafka, Redis, ingest, detect and serve, each a process of its own.

    make up                 starts everything, says where it is, and stays until Ctrl-C or `make down`
    make up TRAFFIC=1       and plays the demo's log of honest clients and thieves on the topic, as if its two weeks ended now
    make down               from elsewhere: stops exactly what `make up` started

Rules of the file:

* All state is in one folder (``--state``): data of Kafka and Redis, settings, baseline, logs. The next `make up` goes on with it.
* Who holds the lock on ``up.lock`` is up; the kernel takes the lock away from the dead. A process is only stopped if its start time is the
  noted one: a pid that somebody else got since is left alone.
* Every child dies with this process. One that ends by itself ends all, with the end of its log.
* Ports are the usual ones where they are free, others otherwise, always the same for the same folder; ``--port kafka=19092`` states one.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from consumers.config import user_state_dir
from consumers.log.kafka import connection
from consumers.log.topics import ensure_topics
from examples.servers import Kafka, MissingServer, Redis, Server, Valkey, free_port, listens

ROOT = Path(__file__).resolve().parent.parent
USUAL_PORTS = {"kafka": 9092, "redis": 6379, "http": 8080, "ingest": 9464, "detect": 9465}
TOPIC = "prediction-queries"
OURS = ("BASELINES", "STORE__URL", "KAFKA__", "LOG__URL", "HTTP__BIND", "METRICS__BIND", "STATE_DIR", "SECRETS__FILE")
"""Variables of the environment that would lead the processes elsewhere; they are not handed on."""
STOP_S = 25.0


class Failed(Exception):
    """What stops the start, in one line or with the end of a log."""


class Part(Server):
    """One of the service's processes, ready when it says so over HTTP."""

    own_session = True
    ready_within_s = 180.0

    def __init__(self, name: str, folder: Path, port: int, arguments: Sequence[str], ready: bool = True) -> None:
        self.name = name
        super().__init__(folder, port)
        self.arguments = arguments
        self.answers = ready

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", *self.arguments]

    def launch(self) -> None:
        before = dict(os.environ)
        try:
            for variable in before:
                if variable.startswith("QUERYWARDEN_") and variable.removeprefix("QUERYWARDEN_").startswith(OURS):
                    del os.environ[variable]
            os.environ["QUERYWARDEN_METRICS__BIND"] = f"127.0.0.1:{self.port}"
            os.environ["PYTHONPATH"] = str(ROOT)
            super().launch()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def probe(self) -> bool:
        if not self.answers:
            return True
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def say(text: str) -> None:
    print(text, flush=True)


# ----------------------------------------------------------------------------------------------- who is up, and down


def started_at(pid: int) -> int | None:
    """Start time of a process in ticks since boot; None when there is none (a zombie is none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@contextmanager
def lock(state: Path) -> Iterator[IO[str] | None]:
    """The lock of a state folder for as long as the block lasts; None when somebody else holds it."""
    with (state / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file


def noted(state: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((state / "up.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def note(state: Path, ports: Mapping[str, int], parts: Sequence[Server]) -> None:
    """Write down who runs, whole or not at all."""
    processes = {part.name: part.process.pid for part in parts if part.process is not None} | {"up": os.getpid()}
    known = {name: {"pid": pid, "started": started_at(pid)} for name, pid in processes.items()}
    draft = state / "up.json.draft"
    draft.write_text(json.dumps({"ports": dict(ports), "processes": known}, indent=1))
    draft.replace(state / "up.json")


def down(state: Path) -> int:
    """Stop exactly what was started from this folder."""
    known = noted(state).get("processes", {})
    alive = {name: p for name, p in known.items() if p["started"] is not None and started_at(p["pid"]) == p["started"]}
    if not alive:
        say(f"nothing is up (state folder {state})")
        return 0
    if "up" in alive:
        os.kill(alive["up"]["pid"], signal.SIGTERM)
    else:  # its children died with it, as good as always
        for p in alive.values():
            os.kill(p["pid"], signal.SIGTERM)
    left, changed_s = alive, time.monotonic()
    while left and time.monotonic() - changed_s < 2 * STOP_S:  # as long as they end one after another, it goes on
        time.sleep(0.1)
        still = {name: p for name, p in left.items() if started_at(p["pid"]) == p["started"]}
        left, changed_s = still, time.monotonic() if len(still) < len(left) else changed_s
    for name, p in left.items():
        say(f"{name} (pid {p['pid']}) does not stop: killed")
        os.kill(p["pid"], signal.SIGKILL)
    say(f"stopped: {', '.join(sorted(alive))}")
    return 0


# ------------------------------------------------------------------------------------------------------------- ports


def ports_of(state: Path, stated: Mapping[str, int]) -> dict[str, int]:
    """The ports of this folder: stated, kept from before, usual, or another one. Raises Failed for one that is taken."""
    try:
        kept = json.loads((state / "ports.json").read_text())
    except (OSError, ValueError):
        kept = {}
    ports: dict[str, int] = {}
    for name, usual in USUAL_PORTS.items():
        port = stated.get(name) or kept.get(name)
        if port is None:
            port = free_port() if listens(usual) else usual
            if port != usual:
                say(f"port {usual} is taken: {name} is on {port}")
        elif listens(port):
            raise Failed(
                f"port {port}, {name}'s, is taken: stop what listens there, or state another with --port {name}=N"
            )
        ports[name] = port
    (state / "ports.json").write_text(json.dumps(ports))
    return ports


def port_argument(text: str) -> tuple[str, int]:
    name, _, port = text.partition("=")
    if name not in USUAL_PORTS or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=N with NAME one of {', '.join(USUAL_PORTS)}")
    return name, int(port)


# ------------------------------------------------------------------------------------------------------------- start


def model(state: Path, baseline: Path | None, traffic: bool) -> tuple[Path, Path | None]:
    """The baseline to start with, and the log to play: the given one, or the demo's, made on first use."""
    if baseline is not None:
        return baseline.resolve(), None
    folder = state / "model"
    made, log = folder / "digits.baseline", folder / "test.jsonl.zst"
    if not made.exists() or (traffic and not log.exists()):
        import numpy as np

        from examples import demo

        say("model: fitting the demo's baseline (the first time only, a minute or two)")
        folder.mkdir(parents=True, exist_ok=True)
        demo.OUT = folder
        said: set[str] = set()

        def show(step: str, done: float, of: float, words: str) -> None:
            if step not in said:
                said.add(step)
                say(f"model: {step}")

        _, _, paths = demo.prepare(np.random.default_rng(demo.SEED), show)
        demo.learn(demo.MODEL, paths, show)
    return made, log if traffic else None


def write_settings(state: Path, ports: Mapping[str, int], baseline: Path) -> Path:
    where = state / "querywarden.toml"
    lines = (
        'mode = "observe"',
        f"state_dir = {json.dumps(str(state / 'service'))}",
        f"baselines = [{json.dumps(str(baseline))}]",
        f'store = {{ url = "redis://127.0.0.1:{ports["redis"]}/0" }}',
        f'kafka = {{ bootstrap_servers = "127.0.0.1:{ports["kafka"]}", topic = "{TOPIC}" }}',
        f'http = {{ bind = "127.0.0.1:{ports["http"]}" }}',
        f"alerts = {{ file = {json.dumps(str(state / 'alerts.jsonl'))} }}",
    )
    (state / "service").mkdir(exist_ok=True)
    where.write_text("\n".join(lines) + "\n")
    return where


def servers(state: Path, ports: Mapping[str, int]) -> list[Server]:
    """Kafka and Redis on their kept data. A machine without redis-server gets the Valkey of the wheel."""
    folders = {name: state / name for name in ("kafka", "redis")}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    durable = ["--appendonly", "yes", "--appendfsync", "everysec"]
    kind = Redis if shutil.which("redis-server") else Valkey
    found: list[Server] = [Kafka(folders["kafka"], ports["kafka"]), kind(folders["redis"], ports["redis"], durable)]
    for server in found:
        server.own_session = True
    return found


def processes(state: Path, ports: Mapping[str, int], settings: Path, log: Path | None) -> list[Server]:
    def folder(name: str) -> Path:
        (state / name).mkdir(exist_ok=True)
        return state / name

    def part(name: str, port: str) -> Part:
        return Part(name, folder(name), ports[port], ["consumers", name, "--config", str(settings)])

    found: list[Server] = [part("ingest", "ingest"), part("detect", "detect"), part("serve", "http")]
    if log is not None:
        play = ["examples.traffic", str(log), f"127.0.0.1:{ports['kafka']}", TOPIC]
        found.append(Part("traffic", folder("traffic"), 0, play, ready=False))
    return found


def up(arguments: argparse.Namespace) -> int:
    state: Path = arguments.state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o700)
    with lock(state) as mine:
        if mine is None:
            known = noted(state)
            say(f"it is up (pid {known.get('processes', {}).get('up', {}).get('pid', '?')}); make down stops it")
            if known:
                say_where(state, known["ports"])
            return 0
        running: list[Server] = []
        stopping: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda got, _: stopping.append(got))
        try:
            baseline, log = model(state, arguments.baseline, arguments.traffic)
            ports = ports_of(state, dict(arguments.port))
            note(state, ports, running)
            settings = write_settings(state, ports, baseline)
            for group in (servers(state, ports), processes(state, ports, settings, log)):
                began = time.monotonic()
                for part in group:
                    part.launch()
                    running.append(part)
                    note(state, ports, running)
                for part in group:
                    if not stopping:
                        await_ready(part, began)
            if not stopping:
                say_where(state, ports)
            watch(running, stopping)
        except (Failed, MissingServer, RuntimeError) as error:
            say(f"up: {error}")
            return 1
        finally:
            for part in running:
                if isinstance(part, Part) and part.process is not None:
                    part.process.terminate()  # all at once; Kafka and Redis stay until these have committed
            for part in reversed(running):
                part.stop()
            (state / "up.json").unlink(missing_ok=True)
            if running:
                say("stopped")
    return 0


def await_ready(part: Server, began: float) -> None:
    part.wait_ready()
    say(f"{part.name}: ready after {time.monotonic() - began:.1f} s, log {part.log}")
    if isinstance(part, Kafka):  # the service reads the query topic and never creates it
        ensure_topics(connection(part.bootstrap), [TOPIC])


def watch(running: Sequence[Server], stopping: Sequence[int]) -> None:
    """Return when it is to stop. Raises Failed when a process ended by itself; traffic may."""
    played: set[str] = set()
    while not stopping:
        for part in running:
            status = part.process.poll() if part.process is not None and part.name not in played else None
            if status == 0 and part.name == "traffic":
                played.add(part.name)
                say(f"traffic: {part.log_tail(1)}")
            elif status is not None:
                raise Failed(
                    f"{part.name} ended by itself (status {status}); the end of {part.log}:\n{part.log_tail()}"
                )
        time.sleep(0.2)


def say_where(state: Path, ports: Mapping[str, int]) -> None:
    address = f"http://127.0.0.1:{ports['http']}"
    say(f"""
  dashboard   {address}/
  API         {address}/v1/models, open to look at from this machine; queries and decisions by HTTP need a key: querywarden keys create
  metrics     {address}/metrics, http://127.0.0.1:{ports["ingest"]}/metrics (ingest), http://127.0.0.1:{ports["detect"]}/metrics (detect)
  Kafka       127.0.0.1:{ports["kafka"]}: {TOPIC} in; {TOPIC}.dead-letter and extraction-alerts out
  Redis       redis://127.0.0.1:{ports["redis"]}/0
  state       {state} (settings, data, logs); the settings for commands: --config {state / "querywarden.toml"}

Ctrl-C here, or make down, stops all of it.""")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="up", description="The whole service on one machine.")
    parser.add_argument("--down", action="store_true", help="stop what was started from the state folder")
    parser.add_argument("--state", type=Path, default=user_state_dir() / "up", help="state folder")
    parser.add_argument("--traffic", action="store_true", help="play the demo's log on the topic")
    parser.add_argument("--baseline", type=Path, help="start with this baseline instead of the demo's")
    parser.add_argument(
        "--port", type=port_argument, action="append", default=[], metavar="NAME=N", help="state a port"
    )
    arguments = parser.parse_args(argv)
    if arguments.traffic and arguments.baseline is not None:
        parser.error("--traffic plays the demo's log, which another baseline does not know")
    return down(arguments.state.resolve()) if arguments.down else up(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"up: {error}")
