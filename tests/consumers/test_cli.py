"""The console command as people and scripts meet it: statuses, one-line errors, files of every format, services on real servers."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import queue
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from kafka import KafkaConsumer, TopicPartition
from support import victims
from support.forked_command import COLUMNS, CONSOLE, querywarden
from support.kafka_producer import produce

from consumers import cli
from consumers.commands.groups import PANELS
from consumers.secrets import Secrets
from consumers.store.layout import DECISION_TTL_S
from detector.baseline_file import pack_baseline

SKEWED = Path(__file__).parents[1] / "skewed"
COMMANDS = ["fit", "replay", "ingest", "detect", "run", "clients", "alerts", "simulate", "config", "config show",
            "config check", "config schema", "serve", "doctor", "decisions list", "decisions block", "decisions throttle",
            "decisions release", "decisions reference", "allowlist list", "allowlist add", "allowlist remove",
            "keys create", "keys list", "keys revoke",
            "audit verify", "secrets create"]  # fmt: skip
ATTACKS = [("noise_uniform", "plain"), ("jbda", "plain")]
DRAIN_S = 20
Topics = Callable[..., str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with reference, baseline and log."""
    folder = tmp_path_factory.mktemp("cli")
    victims.reference_file(folder / "reference.jsonl")
    (folder / "loans.baseline").write_bytes(pack_baseline(victims.baseline()))
    victims.log_of(
        folder / "log.jsonl", victims.streams(20, ATTACKS, seed=23, kinds=["regular", "light"], queries=(700, 900))
    )
    return folder


def environment(state: Path, **more: str) -> dict[str, str]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_")}
    return (
        mine
        | {
            "QUERYWARDEN_STATE_DIR": str(state),
            "QUERYWARDEN_HTTP__BIND": "127.0.0.1:0",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": COLUMNS,
        }
        | more
    )


def run(*arguments: str | Path, state: Path, stdin: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
    return run_with(more, *arguments, state=state, stdin=stdin)


def run_with(
    settings: Mapping[str, str], *arguments: str | Path, state: Path, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(querywarden()), *map(str, arguments)], env=environment(state, **settings), input=stdin, capture_output=True,
        timeout=120, check=False,
    )  # fmt: skip


def installed(*arguments: str, state: Path) -> subprocess.CompletedProcess[bytes]:
    """`run` with the command as it is installed."""
    return subprocess.run(
        [str(CONSOLE), *arguments], env=environment(state), capture_output=True, timeout=120, check=False
    )


def lines_of(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# --------------------------------------------------------------------------------------------------------- calls


@pytest.fixture
def called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: status, output, errors. Not for services, which take over logging and signals."""

    def call(*arguments: str | Path, **more: str) -> tuple[int, str, str]:
        for name in [name for name in os.environ if name.startswith("QUERYWARDEN_")]:
            monkeypatch.delenv(name)
        for name, value in environment(tmp_path, **more).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            cli.main([str(one) for one in arguments])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_the_installed_command_has_help(tmp_path: Path) -> None:
    done = installed("--help", state=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Usage: querywarden")
    assert {c.split()[0] for c in COMMANDS} <= set(done.stdout.decode().split())


def test_the_help_groups_every_command_with_a_whole_sentence(called: Callable[..., tuple[int, str, str]]) -> None:
    _, out, _ = called("--help")
    titles = [line.rstrip(":") for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Options", *PANELS]
    assert (
        out.index("  fit ")
        < out.index("  replay ")
        < out.index("  run ")
        < out.index("  decisions ")
        < out.index("  doctor ")
    )
    assert "..." not in out.partition("Options:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, called: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = called(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.lstrip().startswith("Usage: ")
    assert f" {command} " in out.replace("\n", " ")


def test_version_is_that_of_the_distribution(tmp_path: Path) -> None:
    done = installed("--version", state=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch(rb"querywarden \d+\.\d+\.\d+\n", done.stdout)


def test_no_arguments_print_the_help_and_are_a_wrong_call(tmp_path: Path) -> None:
    done = installed(state=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"Usage: querywarden")
    assert len(done.stderr.splitlines()) > 10


def flipped(whole: bytes, at: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :]


REFUSED: list[tuple[str, int, str, list[str], dict[str, str]]] = [
    ("no such command", 2, "No such command", ["nonsense"], {}),
    ("no such option", 2, "No such option", ["replay", "LOG", "--nonsense"], {}),
    ("no log", 2, "Missing argument", ["replay", "--baseline", "BASE"], {}),
    ("log is missing", 2, "no such log file", ["replay", "missing.jsonl", "--baseline", "BASE"], {}),
    ("log is a folder", 2, "is a folder", ["replay", "/tmp", "--baseline", "BASE"], {}),
    ("no baseline", 2, "no baseline", ["replay", "LOG"], {}),
    ("baseline is missing", 1, "No such file", ["replay", "LOG", "--baseline", "missing"], {}),
    ("baseline is none", 1, "not a QueryWarden baseline", ["replay", "LOG", "--baseline", "LOG"], {}),
    ("baseline is damaged", 1, "damaged", ["replay", "LOG", "--baseline", "DAMAGED"], {}),
    ("baseline is cut", 1, "damaged", ["replay", "LOG", "--baseline", "CUT"], {}),
    ("baseline of another version", 1, "format version 99", ["replay", "LOG", "--baseline", "LATER"], {}),
    ("two of one model", 1, "a second baseline", ["replay", "LOG", "--baseline", "BASE", "--baseline", "BASE"], {}),
    ("budget of nothing", 2, "false_alarm_budget",
     ["replay", "LOG", "--baseline", "BASE", "--false-alarm-budget", "0"], {}),
    ("budget of all", 2, "false_alarm_budget",
     ["replay", "LOG", "--baseline", "BASE", "--false-alarm-budget", "1"], {}),
    ("budget below nothing", 2, "false_alarm_budget",
     ["replay", "LOG", "--baseline", "BASE", "--false-alarm-budget=-0.1"], {}),
    ("budget that is no number", 2, "--false-alarm-budget",
     ["replay", "LOG", "--baseline", "BASE", "--false-alarm-budget", "few"], {}),
    ("budget not a number", 2, "false_alarm_budget",
     ["replay", "LOG", "--baseline", "BASE", "--false-alarm-budget", "nan"], {}),
    ("mode that is none", 2, "mode", ["replay", "LOG", "--baseline", "BASE", "--mode", "shout"], {}),
    ("nowhere to write scores", 2, "no such folder",
     ["replay", "LOG", "--baseline", "BASE", "--scores", "/nowhere/scores"], {}),
    ("nowhere to write a baseline", 2, "no such folder",
     ["fit", "--model-id", "m", "--reference", "LOG", "--out", "/nowhere/x.baseline"], {}),
    ("store is something else", 1, "not a SQLite file", ["replay", "LOG", "--baseline", "BASE", "--store", "REF"], {}),
    ("unknown variable", 2, "QUERYWARDEN_NONSENSE", ["config", "check"], {"QUERYWARDEN_NONSENSE": "1"}),
    ("wrong variable", 2, "horizon_days", ["config", "check"], {"QUERYWARDEN_HORIZON_DAYS": "long"}),
    ("settings are missing", 2, "No such file", ["config", "check", "--config", "missing.toml"], {}),
    ("unknown setting", 2, "kafka.topc", ["config", "check", "--config", "TOPC"], {}),
    ("settings are no TOML", 2, "broken.toml", ["config", "check", "--config", "BROKEN"], {}),
    ("store of an unknown kind", 2, "unknown scheme", ["clients"], {"QUERYWARDEN_STORE__URL": "ftp://host/x"}),
    ("store that is no address", 2, "store.url", ["clients"], {"QUERYWARDEN_STORE__URL": "rediss://:hunter2@[::bad"}),
    ("store with an unknown option", 2, "store.url", ["clients"],
     {"QUERYWARDEN_STORE__URL": "redis://:hunter2@127.0.0.1:1/0?foo=bar"}),
    ("store with a port that is none", 2, "store.url", ["clients"], {"QUERYWARDEN_STORE__URL": "redis://:hunter2@host:x/0"}),
    ("store where nothing can be made", 1, "/proc/x", ["clients"], {"QUERYWARDEN_STORE__URL": "sqlite:////proc/x/y"}),
    ("store without a file", 2, "store.url", ["clients"], {"QUERYWARDEN_STORE__URL": "sqlite:///"}),
    ("store with two slashes", 2, "store.url", ["clients"], {"QUERYWARDEN_STORE__URL": "sqlite://x"}),
    ("store that is a FIFO", 1, "a FIFO", ["clients"], {"QUERYWARDEN_STORE__URL": "sqlite:///FIFO"}),
    ("store with a FIFO for certificates", 1, "a FIFO", ["clients"],
     {"QUERYWARDEN_STORE__URL": "rediss://127.0.0.1:1/0?ssl_ca_certs=FIFO"}),
    ("state where nothing can be made", 1, "/proc/x", ["clients"], {"QUERYWARDEN_STATE_DIR": "/proc/x"}),
    ("a NUL in a setting", 2, "secrets.file", ["clients", "--config", "NUL"], {}),
    ("an address of keys that is none", 2, "http.oidc_jwks", ["config", "check"],
     {"QUERYWARDEN_HTTP__OIDC_JWKS": "https://u:hunter2@[::bad/"}),
    ("an address of alerts that is none", 2, "alerts.splunk.url", ["config", "check"],
     {"QUERYWARDEN_ALERTS__SPLUNK__URL": "https://u:hunter2@host:x/"}),
    ("log of an unknown kind with a password", 2, "log.url", ["ingest"],
     {"QUERYWARDEN_LOG__URL": "s3://u:hunter2@bucket?x=hunter2", "QUERYWARDEN_BASELINES": "BASE"}),
    ("secrets that are a FIFO", 1, "a FIFO", ["clients"], {"QUERYWARDEN_SECRETS__FILE": "FIFO"}),
    ("baseline that is a FIFO", 1, "a FIFO", ["replay", "LOG", "--baseline", "FIFO"], {}),
    ("personas that are a FIFO", 1, "a FIFO", ["fit", "--model-id", "m", "--out", "OUT", "--persona", "FIFO"], {}),
    ("exclusions that are a FIFO", 1, "a FIFO", ["fit", "--model-id", "m", "--out", "OUT", "--exclude", "FIFO"], {}),
    ("schema that is a FIFO", 1, "a FIFO", ["fit", "--model-id", "m", "--out", "OUT", "--schema", "FIFO"], {}),
    ("settings that are a FIFO", 2, "a FIFO", ["clients", "--config", "FIFO"], {}),
    ("settings that are a device", 2, "a device", ["clients", "--config", "/dev/zero"], {}),
    ("snapshot that is a FIFO", 1, "a FIFO", ["restore", "FIFO"], {}),
    ("bundle that is a FIFO", 1, "a FIFO", ["verify-evidence", "FIFO"], {}),
    ("reference that is a FIFO", 1, "a FIFO", ["simulate", "--reference", "FIFO", "--out", "OUT"], {}),
    ("certificate that is a FIFO", 1, "a FIFO", ["serve"],
     {"QUERYWARDEN_HTTP__TLS_CERTFILE": "FIFO", "QUERYWARDEN_HTTP__TLS_KEYFILE": "FIFO"}),
    ("log to follow that is a FIFO", 1, "a FIFO", ["ingest", "--until-end"],
     {"QUERYWARDEN_LOG__URL": "file://FIFO", "QUERYWARDEN_BASELINES": "BASE"}),
    ("schema without an end", 1, "not JSON",
     ["fit", "--model-id", "m", "--out", "OUT", "--schema", "DEEP"], {}),
    ("personas without an end", 1, "personas", ["fit", "--model-id", "m", "--out", "OUT", "--persona", "DEEP"], {}),
    ("store that is away", 1, "redis", ["clients"], {"QUERYWARDEN_STORE__URL": "redis://:hunter2@127.0.0.1:1/0"}),
    ("service without baselines", 2, "no baselines", ["ingest"], {}),
    ("log of an unknown kind", 2, "log.url", ["ingest"],
     {"QUERYWARDEN_LOG__URL": "s3://bucket", "QUERYWARDEN_BASELINES": "BASE"}),
    ("brokers far away without protocol", 1, "security_protocol", ["ingest"],
     {"QUERYWARDEN_KAFKA__BOOTSTRAP_SERVERS": "192.0.2.1:9092", "QUERYWARDEN_BASELINES": "BASE"}),
    ("metrics nowhere", 2, "metrics.bind", ["ingest", "--until-end"],
     {"QUERYWARDEN_METRICS__BIND": "nowhere", "QUERYWARDEN_LOG__URL": "file://LOG", "QUERYWARDEN_BASELINES": "BASE"}),
    ("fit without anything", 2, "--reference", ["fit", "--model-id", "m", "--out", "OUT"], {}),
    ("fit of another model", 1, "no usable event (unknown_model",
     ["fit", "--model-id", "m", "--reference", "REF", "--out", "OUT"], {}),
    ("fit of nonsense", 1, "wrong_type", ["fit", "--model-id", "m", "--reference", "NONSENSE", "--out", "OUT"], {}),
    ("schema is no JSON", 1, "not JSON",
     ["fit", "--model-id", victims.MODEL, "--reference", "REF", "--schema", "BROKEN", "--out", "OUT"], {}),
    ("schema is a list", 1, "schema: Expected",
     ["fit", "--model-id", victims.MODEL, "--reference", "REF", "--schema", "LIST", "--out", "OUT"], {}),
    ("schema of another table", 1, "columns that the reference lacks: age",
     ["fit", "--model-id", victims.MODEL, "--reference", "REF", "--schema", "AGE", "--out", "OUT"], {}),
    ("attack that is none", 2, "unknown attack",
     ["simulate", "--reference", "REF", "--out", "OUT", "--attack", "nonsense"], {}),
]  # fmt: skip


@pytest.fixture(scope="module")
def odd_files(files: Path) -> dict[str, str]:
    """Name in `REFUSED` → path."""
    whole = (files / "loans.baseline").read_bytes()
    made: dict[str, tuple[str, bytes]] = {
        "DAMAGED": ("damaged.baseline", flipped(whole, len(whole) // 2)),
        "CUT": ("cut.baseline", whole[:-100]),
        "LATER": ("later.baseline", whole[:4] + (99).to_bytes(2, "little") + whole[6:]),
        "TOPC": ("topc.toml", b'[kafka]\ntopc = "x"\n'),
        "BROKEN": ("broken.toml", b"[kafka\n"),
        "NONSENSE": ("nonsense.jsonl", b'{"features": "abc", "prediction": [1]}\n' * 60),
        "LIST": ("list.json", b"[1, 2]"),
        "NUL": ("nul.toml", b'secrets.file = "a\\u0000b"\n'),
        "DEEP": ("deep.json", b"[" * 100_000),
        "AGE": ("age.json", b'{"columns": [{"name": "age", "kind": "numeric"}]}'),
    }
    folder = files / "odd"
    folder.mkdir()
    for file, content in made.values():
        (folder / file).write_bytes(content)
    os.mkfifo(folder / "fifo")
    return {name: str(folder / file) for name, (file, _) in made.items()} | {
        "LOG": str(files / "log.jsonl"),
        "REF": str(files / "reference.jsonl"),
        "BASE": str(files / "loans.baseline"),
        "FIFO": str(folder / "fifo"),
    }


@pytest.mark.parametrize(
    ("status", "words", "call", "variables"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_a_failure_is_one_clear_line_and_the_right_status(
    status: int,
    words: str,
    call: Sequence[str],
    variables: Mapping[str, str],
    odd_files: dict[str, str],
    tmp_path: Path,
    called: Callable[..., tuple[int, str, str]],
) -> None:
    names = odd_files | {"OUT": str(tmp_path / "out")}

    def filled(text: str) -> str:
        for name in ("LOG", "FIFO"):  # in an address
            text = re.sub(rf"(?<=[/=]){name}$", names[name].replace("\\", r"\\"), text)
        return names.get(text, text)

    settings = {k: filled(v) for k, v in variables.items()}
    if call[0] in ("ingest", "detect", "run", "serve"):  # they take over the process' logging and signals
        done = run_with(settings, *map(filled, call), state=tmp_path)
        code, text = done.returncode, done.stderr.decode()
    else:
        code, _, text = called(*map(filled, call), **settings)
    told = [line for line in text.splitlines() if line.startswith("querywarden: ")]
    assert code == status, text
    assert len(told) == 1, text
    assert words in told[0]
    assert "Traceback" not in text
    assert "hunter2" not in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", [0.0, 0.01, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_a_baseline_with_one_flipped_bit_is_refused(
    where: float, files: Path, tmp_path: Path, called: Callable[..., tuple[int, str, str]]
) -> None:
    whole = (files / "loans.baseline").read_bytes()
    (tmp_path / "x.baseline").write_bytes(flipped(whole, int(where * len(whole))))
    code, _, text = called("replay", files / "log.jsonl", "--baseline", tmp_path / "x.baseline")
    assert code == 1
    assert len(text.splitlines()) == 1
    assert "x.baseline: " in text


def test_other_secrets_than_the_store_was_written_with_are_refused(files: Path, tmp_path: Path) -> None:
    base: list[str | Path] = ["replay", files / "log.jsonl", "--baseline", files / "loans.baseline"]
    base += ["--store", tmp_path / "s.sqlite"]
    assert run(*base, state=tmp_path / "one").returncode == 0
    done = run(*base, state=tmp_path / "two")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert b"secrets" in done.stderr
    listed = run("clients", state=tmp_path / "two", QUERYWARDEN_STORE__URL=f"sqlite:///{tmp_path / 's.sqlite'}")
    assert (listed.returncode, listed.stdout) == (1, b"")


def test_secrets_create_makes_a_file_once_and_shows_none(
    tmp_path: Path, called: Callable[..., tuple[int, str, str]]
) -> None:
    file = tmp_path / "new" / "secrets.json"
    code, out, err = called("secrets", "create", "--secrets", file)
    made = Secrets.load(file)
    assert (code, out) == (0, f"{file}: secrets {made.key_id}\n")
    assert "every process" in err
    assert "Back it up" in err
    assert file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    keys = [value for value in json.loads(file.read_text()).values() if isinstance(value, str)]
    assert keys
    assert not any(key in out + err for key in keys)
    before = file.read_bytes()
    code, out, err = called("secrets", "create", QUERYWARDEN_SECRETS__FILE=str(file))
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert file.read_bytes() == before


# ------------------------------------------------------------------------------------------------------- settings


def test_config_show_masks_secrets_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "q.toml").write_text(
        'mode = "alert"\nfalse_alarm_budget = 0.02\nbaselines = ["a", "b"]\n'
        '[store]\nurl = "redis://:hunter2@host/0"\n[kafka]\nsasl_password = "hunter3"\ntopic = "t"\n'
    )
    done = run("config", "show", "--config", tmp_path / "q.toml", state=tmp_path, QUERYWARDEN_MODE="block",
               QUERYWARDEN_BASELINES="c:d")  # fmt: skip
    shown = json.loads(done.stdout)
    assert b"hunter" not in done.stdout
    assert (shown["mode"], shown["false_alarm_budget"], shown["baselines"]) == ("block", 0.02, ["c", "d"])
    assert shown["kafka"]["topic"] == "t"
    assert set(shown["store"]["url"]) == {"*"}
    assert set(shown["kafka"]["sasl_password"]) == {"*"}


def test_config_schema_lists_what_acceptance_relies_on(tmp_path: Path) -> None:
    text = run("config", "schema", state=tmp_path).stdout.decode()
    for name in ("STORE__URL", "KAFKA__BOOTSTRAP_SERVERS", "KAFKA__TOPIC", "KAFKA__GROUP_ID", "BASELINES", "METRICS__BIND",
                 "MODE", "FALSE_ALARM_BUDGET", "STATE_DIR", "HTTP__BIND"):  # fmt: skip
        assert f"QUERYWARDEN_{name} " in text
    assert run("config", "check", state=tmp_path).returncode == 0


# ----------------------------------------------------------------------------------------------------- fit, replay


def replayed(files: Path, state: Path, *logs: str | Path, stdin: bytes = b"", **more: str) -> list[dict[str, Any]]:
    scores = state / "scores.jsonl"
    done = run(
        "replay", *logs, "--baseline", files / "loans.baseline", "--scores", scores, state=state, stdin=stdin, **more
    )
    assert done.returncode == 0, done.stderr.decode()
    return lines_of(scores.read_bytes())


@pytest.fixture(scope="module")
def expected(files: Path) -> list[dict[str, Any]]:
    """What a replay of the log gives to everybody who has the secrets of `state`."""
    (files / "state").mkdir()
    return replayed(files, files / "state", files / "log.jsonl")


@pytest.fixture
def state(files: Path, expected: list[dict[str, Any]], tmp_path: Path) -> Path:
    """A state folder with the secrets of `expected`, and nothing else."""
    shutil.copy(files / "state" / "secrets.json", tmp_path)
    return tmp_path


def test_a_log_gives_the_same_scores_in_every_format(files: Path, state: Path, expected: list[dict[str, Any]]) -> None:
    """Compressed in two ways in two files, as a table, and through a pipe."""
    assert len(expected) == 22
    content = (files / "log.jsonl").read_bytes()
    half = content.index(b"\n", len(content) // 2) + 1
    (state / "a.jsonl.gz").write_bytes(gzip.compress(content[:half], 1))
    (state / "b.jsonl.zst").write_bytes(zstandard.ZstdCompressor(1).compress(content[half:]))
    pq.write_table(pa.Table.from_pylist(lines_of(content)), state / "log.parquet")
    for logs in (["a.jsonl.gz", "b.jsonl.zst"], ["log.parquet"]):
        assert replayed(files, state, *(state / log for log in logs)) == expected, logs
    assert replayed(files, state, "-", stdin=gzip.compress(content, 1)) == expected


def test_a_replay_prints_who_and_why_and_flags_the_thieves(files: Path, tmp_path: Path) -> None:
    alerts, report = tmp_path / "alerts.jsonl", tmp_path / "report.html"
    done = run("replay", files / "log.jsonl", "--baseline", files / "loans.baseline", "--alerts", alerts, "--report", report,
               state=tmp_path)  # fmt: skip
    assert done.returncode == 0
    told = lines_of(alerts.read_bytes())
    assert len(told) >= 2
    assert [a["time"] for a in told] == sorted(a["time"] for a in told)
    text = done.stdout.decode()
    for alert in told:
        assert alert["client_id"] in text
        assert alert["client_id"] in report.read_text()
    assert re.search(rf"\d of 22 clients shown; {len(told)} flagged", text)
    percents = [json.loads(line)["percent"] for line in done.stderr.decode().splitlines() if line.startswith("{")]
    assert percents[-1] == 100


def test_a_replay_with_a_store_resumes_and_says_so(files: Path, tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "querywarden.sqlite")]
    base = ["replay", str(files / "log.jsonl"), "--baseline", str(files / "loans.baseline"), *store]
    scores = [tmp_path / f"{n}.jsonl" for n in range(2)]
    first = run(*base, "--scores", scores[0], state=tmp_path)
    assert b"resumed" not in first.stderr
    again = run(*base, "--scores", scores[1], state=tmp_path)
    assert b"resumed at line" in again.stderr
    assert scores[0].read_bytes() == scores[1].read_bytes()
    listed = run("clients", "--json", state=tmp_path)
    assert lines_of(listed.stdout) == lines_of(scores[0].read_bytes())
    top = run("clients", "--json", "--limit", "3", "--model", victims.MODEL, state=tmp_path)
    assert lines_of(top.stdout) == lines_of(scores[0].read_bytes())[:3]
    assert top.stderr == b"3 of 22 clients shown\n"
    assert b"\n3 of 22 clients shown; --limit N shows more; " in run("clients", "--limit", "3", state=tmp_path).stdout
    assert b" of 22 clients shown; " in run("clients", state=tmp_path).stdout
    assert b"\n1 of 2 alerts shown; " in run("alerts", "--limit", "1", state=tmp_path).stdout
    assert all(row["family"] == "unknown" for row in lines_of(listed.stdout) if row["state"] == "clear")
    assert {row["family"] for row in lines_of(listed.stdout) if row["state"] != "clear"} - {"unknown"}


def test_fit_without_traffic_says_uncalibrated_and_the_scores_are_marked(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain.baseline"
    done = run(
        "fit", "--model-id", victims.MODEL, "--reference", files / "reference.jsonl", "--out", out, state=tmp_path
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"UNCALIBRATED" in done.stderr
    assert b"schema: 10 numeric; classification into 3 classes" in done.stderr
    scores = tmp_path / "scores.jsonl"
    done = run("replay", files / "log.jsonl", "--baseline", out, "--scores", scores, state=tmp_path)
    assert done.returncode == 0
    assert b"UNCALIBRATED" in done.stderr
    rows = lines_of(scores.read_bytes())
    assert {row["calibrated"] for row in rows} == {False}
    assert "block" not in {row["state"] for row in rows}
    assert b"(uncalibrated)" in done.stdout


SHORT = victims.event([1.0] * 10) | {"features": [1.0], "client_id": "short"}
"""A query whose input has another number of columns than the model's."""


def test_fit_on_traffic_alone_derives_a_reference_and_says_so(files: Path, tmp_path: Path) -> None:
    traffic = tmp_path / "traffic.jsonl"
    victims.log_of(traffic, victims.streams(40, seed=77, kinds=["regular", "light"]))
    with traffic.open("ab") as more:
        broken = (b'{"client_id": "x"', victims.line([1.0] * 10, client_id=None), victims.encoded(SHORT))
        more.write(b"".join(line + b"\n" for line in broken))
    done = run(
        "fit", "--model-id", victims.MODEL, "--traffic", traffic, "--out", tmp_path / "x.baseline", state=tmp_path
    )
    assert done.returncode == 0, done.stderr.decode()
    said = done.stderr.decode()
    assert "no reference given: derived from the traffic" in said
    assert "traffic: 2 refused (not_json 1, missing_client 1; first traffic.jsonl:" in said
    assert "reference: 1 refused (wrong_dimension 1;" in said  # it counts for its client all the same
    assert "calibrated on 41 real clients" in said


def test_simulate_writes_a_log_that_replay_reads(files: Path, tmp_path: Path) -> None:
    log = tmp_path / "made.jsonl.zst"
    done = run("simulate", "--reference", files / "reference.jsonl", "--out", log, "--clients", "5", "--attack", "jbda",
               "--seed", "3", state=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert len(replayed(files, tmp_path, log)) == 6


def test_what_came_from_a_log_is_shown_as_text(files: Path, tmp_path: Path) -> None:
    names = ["[bold red]x[/]", "<script>alert(1)</script>", "abc\u202edef", "x" * 256]
    rows = victims.items(4, np.random.default_rng(0))
    log = victims.write_lines(
        tmp_path / "log.jsonl", [victims.line(row, client_id=name) for row, name in zip(rows, names, strict=True)]
    )
    report = tmp_path / "r.html"
    done = run("replay", log, "--baseline", files / "loans.baseline", "--report", report, state=tmp_path)
    text = done.stdout.decode()
    assert "[bold red]x[/]" in text
    assert "abc⟨U+202E⟩def" in text
    page = report.read_text()
    assert "abc⟨U+202E⟩def" in page
    assert "\u202e" not in text + page
    assert "<script>alert(1)" not in page


# -------------------------------------------------------------------------------------------------------- service


def test_run_until_end_on_a_followed_file_gives_what_replay_gives(
    files: Path, state: Path, expected: list[dict[str, Any]]
) -> None:
    alerts = state / "alerts.jsonl"
    done = run("run", "--until-end", state=state, QUERYWARDEN_LOG__URL=f"file://{files / 'log.jsonl'}",
               QUERYWARDEN_BASELINES=str(files / "loans.baseline"), QUERYWARDEN_ALERTS__FILE=str(alerts))  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert [json.loads(line) for line in done.stderr.splitlines()], "every line of a service's log is JSON"
    listed = lines_of(run("clients", "--json", state=state).stdout)
    assert listed == expected
    stored = {a["alert_id"]: a for a in lines_of(run("alerts", "--json", state=state).stdout)}
    sent = {a["alert_id"]: a for a in lines_of(alerts.read_bytes()) if a["update"] == 0}
    assert stored == sent
    assert len(sent) >= 2


def test_ingest_and_detect_by_themselves_on_a_followed_file(files: Path, tmp_path: Path) -> None:
    more = {"QUERYWARDEN_LOG__URL": f"file://{files / 'log.jsonl'}", "QUERYWARDEN_BASELINES": str(files)}
    assert run_with(more, "ingest", "--until-end", state=tmp_path).returncode == 0
    assert lines_of(run("clients", "--json", state=tmp_path).stdout) == []
    assert run_with(more, "detect", "--until-idle", state=tmp_path).returncode == 0
    assert len(lines_of(run("clients", "--json", state=tmp_path).stdout)) == 22


@pytest.mark.parametrize("days", [-31, 31])
def test_a_service_whose_clock_is_a_month_off_says_the_same_of_everybody(
    days: int, files: Path, state: Path, expected: list[dict[str, Any]]
) -> None:
    more = {"QUERYWARDEN_LOG__URL": f"file://{files / 'log.jsonl'}", "QUERYWARDEN_BASELINES": str(files)}
    skewed = {"PYTHONPATH": str(SKEWED), "SKEWED_DAYS": str(days)}
    done = run_with(more | skewed, "run", "--until-end", state=state)
    assert done.returncode == 0, done.stderr.decode()
    with contextlib.closing(sqlite3.connect(state / "querywarden.sqlite")) as db:
        ends_s = [end_s for (end_s,) in db.execute("SELECT expires_s FROM decisions")]
    off = [(end_s - DECISION_TTL_S - time.time()) / 86_400 for end_s in ends_s]
    assert off == pytest.approx([days] * 22, abs=0.01), "the control: its clock is off"
    listed = lines_of(run_with(skewed, "clients", "--json", state=state).stdout)
    assert listed == expected


class Service:
    """A service process, as it is installed; what it says on standard error is read as it comes."""

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        self.process = subprocess.Popen([str(CONSOLE), *arguments], env=env, stderr=subprocess.PIPE)
        self.said: list[dict[str, Any]] = []
        self._heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._heard.put(line)
        self._heard.put(b"")

    def wait_for(self, event: str, within_s: float = 30.0) -> dict[str, Any]:
        deadline = time.monotonic() + within_s
        while not any(line["event"] == event for line in self.said):
            line = self._heard.get(timeout=max(0.01, deadline - time.monotonic()))
            assert line, f"ended with {self.process.wait()}: {self.said[-3:]}"
            self.said.append(json.loads(line))
        return next(line for line in self.said if line["event"] == event)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(DRAIN_S)
        self._listener.join(5)
        while line := self._heard.get(timeout=1):
            self.said.append(json.loads(line))
        return status

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def get(address: str) -> tuple[int, str]:
    with urllib.request.urlopen(address, timeout=5) as answer:
        return answer.status, answer.read().decode()


@pytest.mark.parametrize("command", ["run", "ingest", "detect"])
def test_a_service_drains_and_exits_0_on_sigterm(
    command: str, files: Path, state: Path, expected: list[dict[str, Any]]
) -> None:
    env = environment(state, QUERYWARDEN_LOG__URL=f"file://{files / 'log.jsonl'}", QUERYWARDEN_METRICS__BIND="127.0.0.1:0",
                      QUERYWARDEN_BASELINES=str(files / "loans.baseline"))  # fmt: skip
    service = Service(command, env=env)
    try:
        bind = service.wait_for("metrics")["bind"]
        service.wait_for("detect started" if command == "detect" else "cell claimed")
        assert get(f"http://{bind}/healthz") == (200, "ok\n")
        status, text = get(f"http://{bind}/metrics")
        assert status == 200
        assert "acct-" not in text
        assert service.end() == 0
    finally:
        service.kill()
    assert service.said[-1]["event"].endswith("stopped")
    # what was left is taken up by the next one, and nothing was counted twice
    more = {k: v for k, v in env.items() if k.startswith("QUERYWARDEN_") and "METRICS" not in k and "STATE" not in k}
    assert run_with(more, "run", "--until-end", state=state).returncode == 0
    listed = lines_of(run("clients", "--json", state=state).stdout)
    assert listed == expected


def consumed(bootstrap: str, topic: str) -> list[tuple[bytes, bytes]]:
    """(key, value) of everything on a topic."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, allow_auto_create_topics=False)
    try:
        partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        found: list[tuple[bytes, bytes]] = []
        while any(consumer.position(tp) < ends[tp] for tp in partitions):
            for records in consumer.poll(500).values():
                found += [(r.key, r.value) for r in records]
        return found
    finally:
        consumer.close()


@pytest.fixture
def on_kafka(files: Path, tmp_path: Path, kafka_bootstrap: str, topic: Topics, redis_url: str) -> dict[str, str]:
    """Settings of a service on real servers, its topic filled with the log and three bad records."""
    name = topic(partitions=3)
    lines = (files / "log.jsonl").read_bytes().splitlines()
    bad = [b"no JSON", victims.line([1.0] * 10, model_id="another"), victims.line([1.0] * 10, client_id="a\nb")]
    keys = [json.loads(line)["client_id"].encode() for line in lines]
    produce(kafka_bootstrap, name, [*lines, *bad], [*keys, b"x", b"y", b"z"])
    return {
        "QUERYWARDEN_KAFKA__BOOTSTRAP_SERVERS": kafka_bootstrap,
        "QUERYWARDEN_KAFKA__TOPIC": name,
        "QUERYWARDEN_KAFKA__GROUP_ID": name,
        "QUERYWARDEN_KAFKA__ALERTS_TOPIC": topic(partitions=1),
        "QUERYWARDEN_KAFKA__DEAD_LETTER_TOPIC": topic(partitions=1),
        "QUERYWARDEN_STORE__URL": redis_url,
        "QUERYWARDEN_BASELINES": str(files / "loans.baseline"),
    }


def test_run_until_end_on_kafka_and_redis(
    on_kafka: dict[str, str], files: Path, state: Path, expected: list[dict[str, Any]], kafka_bootstrap: str
) -> None:
    done = run_with(on_kafka, "run", "--until-end", state=state)
    assert done.returncode == 0, done.stderr.decode()
    scores = {row["client_id"]: row for row in expected}
    listed = {row["client_id"]: row for row in lines_of(run_with(on_kafka, "clients", "--json", state=state).stdout)}
    assert listed.keys() == scores.keys()
    for client, row in scores.items():
        assert listed[client]["suspicion"] == pytest.approx(row["suspicion"], abs=1e-6)
        assert listed[client]["state"] == row["state"]
    # alerts: the very objects that `alerts --json` shows, keyed by their id
    sent = consumed(kafka_bootstrap, on_kafka["QUERYWARDEN_KAFKA__ALERTS_TOPIC"])
    stored = lines_of(run_with(on_kafka, "alerts", "--json", "--updates", state=state).stdout)
    assert sorted(json.dumps(json.loads(v), sort_keys=True) for _, v in sent) == sorted(
        json.dumps(a, sort_keys=True) for a in stored
    )
    assert {key.decode() for key, _ in sent} == {a["alert_id"] for a in stored}
    assert len(stored) >= 2
    # dead letters: position and reason
    dead = [
        json.loads(value) for _, value in consumed(kafka_bootstrap, on_kafka["QUERYWARDEN_KAFKA__DEAD_LETTER_TOPIC"])
    ]
    assert sorted(d["reason"] for d in dead) == ["malformed_client", "not_json", "unknown_model"]
    assert all(d["place"].startswith(on_kafka["QUERYWARDEN_KAFKA__TOPIC"] + ":") for d in dead)
    # once more: nothing is left to do, nothing is sent again
    assert run_with(on_kafka, "run", "--until-end", state=state).returncode == 0
    assert len(consumed(kafka_bootstrap, on_kafka["QUERYWARDEN_KAFKA__ALERTS_TOPIC"])) == len(sent)


def test_a_stopped_ingest_on_kafka_leaves_the_rest_to_the_next(
    on_kafka: dict[str, str], files: Path, state: Path, expected: list[dict[str, Any]]
) -> None:
    service = Service("ingest", env=environment(state, QUERYWARDEN_KAFKA__MAX_POLL_RECORDS="200", **on_kafka))
    try:
        service.wait_for("cell claimed")
        assert service.end() == 0
    finally:
        service.kill()
    assert run_with(on_kafka, "run", "--until-end", state=state).returncode == 0
    listed = {row["client_id"]: row for row in lines_of(run_with(on_kafka, "clients", "--json", state=state).stdout)}
    for row in expected:
        assert (listed[row["client_id"]]["queries"], listed[row["client_id"]]["state"]) == (
            row["queries"],
            row["state"],
        )


def test_a_replica_beyond_the_partitions_is_ready(on_kafka: dict[str, str], tmp_path: Path) -> None:
    """Three partitions, four processes: the fourth owns nothing and is ready all the same."""
    services: list[Service] = []
    ready: set[str] = set()
    try:
        env = environment(tmp_path, QUERYWARDEN_METRICS__BIND="127.0.0.1:0", **on_kafka)
        services += [Service("ingest", env=env) for _ in range(4)]
        binds = [service.wait_for("metrics")["bind"] for service in services]
        deadline = time.monotonic() + 60
        while len(ready) < 4 and time.monotonic() < deadline:
            for bind in binds:
                try:
                    if get(f"http://{bind}/readyz")[0] == 200:
                        ready.add(bind)
                except OSError:
                    time.sleep(0.1)
        assert len(ready) == 4
        assert [service.end() for service in services] == [0] * 4
    finally:
        for service in services:
            service.kill()
