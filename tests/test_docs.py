"""What the docs say is so: tables, links, commands, keys, and the quick start from its first line to its last.

Rules: a table that comes from the code is generated (`docs/generate.py`) and only its freshness is checked here; a shell
block of any page must parse as calls of the real command line; the blocks of the quick start are run for real.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import redis
import typer.main
from support.store_contract import failures

from consumers import cli, config
from consumers.log import formats
from consumers.log.dead_letter_topic import letter_body
from consumers.records.frameworks import FRAMEWORKS
from consumers.store import DECISION_CELLS, DeadLetter, Store
from consumers.store.redis import connect
from consumers.telemetry.metrics import METRICS
from detector import calibration, fold_arrays, policy, steps
from detector.features import BITS, MEASURES
from detector.kernels import HASH_BITS
from detector.signals import SIGNAL_NAMES

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "notebooks").glob("*.md"),
        ROOT / "helm" / "README.md",
    ]
)
QUICKSTART = ROOT / "docs" / "quickstart.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def everything() -> str:
    return "\n".join(text_of(page) for page in PAGES)


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, made as Git hosts make them."""
    headings = HEADING.findall(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", h)).strip().lower().replace(" ", "-") for h in headings}


# --- generated tables


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_tables_are_what_the_code_says(page: Path, generate: ModuleType) -> None:
    assert generate.render(text_of(page)) == text_of(page), "run `make docs`"


def test_every_table_is_shown_somewhere(generate: ModuleType) -> None:
    assert set(re.findall(r"<!-- generated: ([a-z-]+) -->", everything())) == set(generate.TABLES)


def test_a_stale_table_is_noticed(generate: ModuleType) -> None:
    page = text_of(ROOT / "docs" / "settings.md")
    stale = page.replace("| `mode` |", "| `mood` |")
    assert stale != page
    assert generate.render(stale) == page


# --- nothing is left out


def test_every_setting_metric_signal_and_reason_is_documented() -> None:
    text = everything()
    names = [name for toml, variable, _, _ in config.rows() for name in (toml, variable)]
    names += [
        *METRICS,
        *SIGNAL_NAMES,
        *MEASURES,
        *BITS,
        *formats.REASONS,
        *policy.REASONS,
        *policy.STATES,
        *policy.MODES,
    ]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_no_page_names_a_metric_or_a_variable_that_does_not_exist() -> None:
    text = everything()
    variables = {variable for _, variable, _, _ in config.rows()}
    assert set(re.findall(r"`(querywarden_[a-z_]+)", text)) <= set(METRICS)
    named_variables = set(re.findall(r"QUERYWARDEN_[A-Z_]+[A-Z]", text))
    sections = {variable.partition("__")[0] for variable in variables}
    known = variables | sections | {"QUERYWARDEN_CACHE"}
    assert {v for v in named_variables if not v.startswith("QUERYWARDEN_TEST_")} <= known


def all_commands() -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}

    def walk(path: tuple[str, ...], command: Any) -> None:
        children = getattr(command, "commands", None) or {}
        if not children:
            found[path] = command
        for name, child in children.items():
            walk((*path, name), child)

    walk((), typer.main.get_command(cli.app))
    return found


def test_every_command_and_option_is_documented_and_has_help() -> None:
    page = text_of(ROOT / "docs" / "commands.md")
    for path, command in all_commands().items():
        _, found, section = page.partition(f"## querywarden {' '.join(path)}\n")
        assert found, path
        section = section.partition("\n### ")[0]
        assert command.help
        for parameter in command.params:
            assert parameter.help, (path, parameter.name)
            assert parameter.opts[0].lstrip("-").upper() in section.upper()


def test_the_figures_in_the_prose_are_those_of_the_code() -> None:
    phrases = {
        "docs/theory.md": (
            f"{1 / (fold_arrays.SAMPLE_KEPT - 2) ** 0.5:.1%}".replace(
                "%", f" % for the sample (k = {fold_arrays.SAMPLE_KEPT})"
            ),
            f"{1 / (fold_arrays.ODD_KEPT - 2) ** 0.5:.1%}".replace(
                "%", f" % for the odd set (k = {fold_arrays.ODD_KEPT})"
            ),
            f"cut to {HASH_BITS} bits",
            f"a prior of {calibration.TAIL_INDEX_PRIOR:g} with the weight of",
        ),
        "docs/detection.md": (f"At least {steps.STEP_BITS:g} bits and {steps.STEP_SHARE * 100:g} % of all worth",),
        "docs/operations.md": (f"fewer than {policy.MIN_ODD_TO_BLOCK} odd queries",),
        "docs/architecture.md": (f"the {DECISION_CELLS} decision cells",),
    }
    assert (calibration.TAIL_PRIOR_WEIGHT, calibration.TAIL_SHARE) == (10, 0.1)  # "ten clients", "the upper tenth"
    assert [(page, p) for page, those in phrases.items() for p in those if p not in text_of(ROOT / page)] == []


# --- links, pictures, names


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_and_anchor_works(page: Path) -> None:
    broken = []
    for target in LINK.findall(without_code(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(text_of(file))):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        links = [t.partition("#")[0] for t in LINK.findall(without_code(text_of(page))) if not re.match(r"[a-z]+:", t)]
        todo += [(page.parent / link).resolve() for link in links if link]
    assert [named(page) for page in PAGES if page not in reached and page.parent.name != "notebooks"] == []


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "img").glob("*.svg")), ids=named)
def test_a_picture_stands_alone_and_says_what_it_shows(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    _, _, width, height = (float(v) for v in root.attrib["viewBox"].split())
    assert root.findtext(f"{space}title")
    assert root.findtext(f"{space}desc")
    assert "href" not in text_of(picture).replace("xlink", "href")
    for words in root.iter(f"{space}text"):
        assert 0 <= float(words.attrib["x"]) <= width
        assert 0 <= float(words.attrib["y"]) <= height
    assert picture.name in everything()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_page_names_a_registry_or_a_machine(page: Path) -> None:
    hosts = r"pypi\.org|pythonhosted|npmjs|registry\.npm|crates\.io|maven\.org|repo1\.|proxy\.golang|quay\.io|ghcr\.io|docker\.io"
    assert re.findall(hosts, text_of(page)) == []
    assert re.findall(r"(?<![\w.])/(?:home|root|work|Users|mnt|tmp)/\S*", text_of(page)) == []


# --- commands in the text


def shell_lines() -> Iterator[tuple[str, str]]:
    """(page, one command line) of every shell block, heredocs left out, continuation lines joined."""
    for page in PAGES:
        for language, body in BLOCK.findall(text_of(page)):
            if language in ("bash", "sh", "console"):
                body = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)
                for line in body.replace("\\\n", " ").splitlines():
                    yield named(page), line.strip()


def test_every_command_in_a_shell_block_parses() -> None:
    commands = all_commands()
    parsed = 0
    for page, line in shell_lines():
        for part in re.split(r"\||&&|;|\(|\)", line):
            words = shlex.split(part.split(" > ")[0].split(" #")[0], comments=True) if "querywarden" in part else []
            at = next((i for i, word in enumerate(words) if word.rpartition("/")[2] == "querywarden"), None)
            rest = words[at + 1 :] if at is not None else []
            path = next((p for p in commands if p == tuple(rest[: len(p)])), None)
            if at is None or words[0] in ("kubectl", "helm", "docker") or "…" in rest:
                continue
            assert path is not None, f"{page}: no such command: {part}"
            commands[path].make_context(" ".join(path), rest[len(path) :])
            parsed += 1
    assert parsed >= 12


def test_a_wrong_command_in_a_shell_block_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        all_commands()["replay",].make_context("replay", ["log.jsonl", "--basline", "x"])


def test_every_make_target_in_the_docs_exists() -> None:
    targets = set(re.findall(r"^\.PHONY: (\S+)$", text_of(ROOT / "Makefile"), flags=re.MULTILINE))
    named_targets = {
        name
        for page in PAGES
        for code in [*re.findall(r"`([^`\n]+)`", text_of(page)), *(b for _, b in BLOCK.findall(text_of(page)))]
        for name in re.findall(r"(?:^|\s)make ([a-z-]+)", code)
    }
    assert named_targets >= {"demo", "test", "install", "docs"}
    assert named_targets - targets == set()


def test_the_readme_starts_in_two_commands() -> None:
    (first, *_) = [body for language, body in BLOCK.findall(text_of(ROOT / "README.md")) if language == "bash"]
    assert re.findall(r"^make (\w+)", first, flags=re.MULTILINE) == ["demo", "test"]
    assert "apt" in first


def test_the_frameworks_of_an_alert_are_explained() -> None:
    page = text_of(ROOT / "docs" / "owasp.md")
    assert [name for name in FRAMEWORKS if f"`{name}`" not in page] == []


def test_the_decisions_are_numbered_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(folder.glob("[0-9]*.md"))
    assert [page.name[:4] for page in pages] == [f"{i:04}" for i in range(1, len(pages) + 1)]
    for page in pages:
        title = text_of(page).splitlines()[0]
        assert f"| [{page.name[:4]}]({page.name}) | {title.removeprefix(f'# {page.name[:4]} ')} |" in text_of(
            folder / "README.md"
        )
        assert all(f"**{part}.**" in text_of(page) for part in ("Context", "Decision", "Consequences"))


# --- the quick start, run


def blocks_of(heading: str) -> list[str]:
    """bash blocks of a section of the quick start, up to the next heading of its level."""
    section = text_of(QUICKSTART).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [body for language, body in BLOCK.findall(section) if language == "bash"]


def run_blocks(blocks: list[str], folder: Path, state: Path) -> str:
    """Run them as one script that stops at the first error; returns what was printed. `state`: the user's state folder."""
    script = "\n".join(["set -euo pipefail", *blocks])
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_") or k == "QUERYWARDEN_CACHE"}
    environment = {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(state),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    ran = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert ran.returncode == 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The first half of the quick start, run; the folder it leaves, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "examples").symlink_to(ROOT / "examples")
    assert blocks_of("Before") == ["make install\nsource .venv/bin/activate\n"]  # what these tests have done already
    return folder / "demo-out" / "quickstart", run_blocks(blocks_of("A log in files"), folder, folder / "state")


def objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(path).splitlines()]


def test_the_quick_start_on_files_does_what_it_says(sampled: tuple[Path, str]) -> None:
    folder, printed = sampled
    assert "calibrated on 120 real clients" in printed
    truth = json.loads(text_of(folder / "log.truth.json"))["clients"]
    scores = objects(folder / "scores.jsonl")
    assert {row["client_id"] for row in scores} == set(truth)
    (noisy,) = [c for c, known in truth.items() if (known["kind"], known["variant"]) == ("noise_uniform", "plain")]
    alerts = objects(folder / "alerts.jsonl")
    assert noisy in {alert.get("client_id") for alert in alerts}
    (campaign,) = [alert["members"] for alert in alerts if alert["kind"] == "campaign"]
    assert set(campaign) == {client for client, known in truth.items() if known["variant"] == "sybil10"}
    page = text_of(folder / "report.html")
    assert page.lower().startswith("<!doctype html>")
    assert "Exposure: " in page
    (found,) = [alert["campaign_id"] for alert in alerts if alert["kind"] == "campaign"]
    assert found in page
    assert found in printed
    assert "refused, not_json: 1" in printed
    assert "refused, missing_model: 1" in printed
    assert "damaged.jsonl:2001: not_json" in printed
    assert "this log was read before" in printed
    assert "calibration clients are too few for a lifetime budget of 0.002" in printed


def documented_keys(what: str) -> set[str]:
    table = text_of(ROOT / "docs" / "formats.md").partition(f"<!-- keys: {what} -->\n\n")[2].partition("\n\n")[0]
    return {key for line in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_the_keys_of_scores_and_alerts_are_documented(sampled: tuple[Path, str]) -> None:
    folder, _ = sampled
    assert documented_keys("score") == set(objects(folder / "scores.jsonl")[0])
    for alert in objects(folder / "alerts.jsonl"):
        of_other_kind = {"client_id"} if alert["kind"] == "campaign" else {"members", "links"}
        assert documented_keys("alert") - of_other_kind == set(alert) - {"observations"}  # only where there are any


def test_the_keys_of_a_dead_letter_are_documented() -> None:
    letter = json.loads(letter_body(DeadLetter("a:1", 1, "not_json", "", "0" * 64, b"head")))
    assert documented_keys("dead-letter") == set(letter)


def test_a_baseline_file_is_laid_out_as_documented(sampled: tuple[Path, str]) -> None:
    """Read by the words of docs/formats.md alone."""
    blob = (sampled[0] / "tumour.baseline").read_bytes()
    magic, version, length = struct.unpack_from("<4sHI", blob)
    assert (magic, version) == (b"QWBL", 6)
    header = json.loads(blob[10 : 10 + length])
    assert documented_keys("baseline") - {"columns"} == set(header)
    assert hashlib.sha256(blob[:-32]).digest() == blob[-32:]
    sizes = [np.dtype(kind).itemsize * int(np.prod(shape)) for _, kind, shape in header["arrays"]]
    assert 10 + length + sum(sizes) + 32 == len(blob)
    assert all(np.dtype(kind).newbyteorder("<") == np.dtype(kind) for _, kind, _ in header["arrays"])
    groups = {name.partition(".")[0] for name, _, _ in header["arrays"]}
    assert (
        {"map", "trees", "nulls", "tools"}
        <= groups
        <= {"map", "trees", "nulls", "tools", "final", "extraction", "persona"}
    )
    assert ("extraction" in groups) == header["estimator"]
    assert ("persona" in groups) == bool(header["personas"])
    assert set(header["schema"]) == {"columns", "input_form", "named", "task", "labels"}
    assert set(header["schema"]["columns"][0]) == {"name", "kind", "lower", "upper", "grain", "categories", "missing"}
    assert set(header["nulls"]) == {"distinct", "days", "calibrated", "simulated"}


def test_the_quick_start_on_kafka_and_redis_does_what_it_says(
    sampled: tuple[Path, str], kafka_bootstrap: str, redis_url: str
) -> None:
    folder, _ = sampled
    topic = f"prediction-queries-{uuid.uuid4().hex[:8]}"
    blocks = [
        block.replace("127.0.0.1:9092", kafka_bootstrap)
        .replace("redis://127.0.0.1:6379/0", redis_url)
        .replace("prediction-queries", topic)
        for block in blocks_of("Kafka and Redis on one machine")
    ]
    printed = run_blocks(blocks, folder, folder.parents[1] / "state")
    assert "settings are well-formed" in printed
    replayed = {alert.get("client_id"): alert for alert in objects(folder / "alerts.jsonl")}
    served = {alert.get("client_id"): alert for alert in objects(folder / "alerts-from-kafka.jsonl")}
    assert set(served) == set(replayed)
    scores = {row["client_id"]: row["suspicion"] for row in objects(folder / "scores.jsonl")}
    again = {row["client_id"]: row["suspicion"] for row in objects(folder / "scores-from-kafka.jsonl")}
    assert again == pytest.approx(scores, abs=1e-6)


class _Limited:
    """A database seen by an account that may do what the docs say, emptied by another one."""

    def __init__(self, url: str, admin: redis.Redis) -> None:
        self._url = url
        self._admin = admin
        self._admin.flushdb()

    def open(self) -> Store:
        return connect(self._url)

    def dump(self) -> object:
        return sorted((key, self._admin.dump(key)) for key in self._admin.scan_iter())

    def wipe(self) -> None:
        self._admin.flushdb()


def test_the_redis_account_of_the_docs_is_enough(redis_url: str) -> None:
    """The whole contract of the store holds for an account with the rights of docs/operations.md, and without warnings."""
    page = text_of(ROOT / "docs" / "operations.md")
    (rule,) = re.findall(r"^ACL SETUSER querywarden (.+)$", page, flags=re.MULTILINE)
    name = f"qw-{uuid.uuid4().hex[:8]}"
    url = redis_url.replace("redis://", f"redis://{name}:secret@")
    admin: Any = redis.Redis.from_url(redis_url)
    try:
        admin.execute_command("ACL", "SETUSER", name, *rule.replace("PASSWORD", "secret").split())
        limited = connect(url)
        limited.prepare("some-secrets")
        assert limited.warnings == []
        limited.close()
        with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.NoPermissionError):
            client.flushdb()
        assert failures(lambda: _Limited(url, admin)) == []
    finally:
        admin.execute_command("ACL", "DELUSER", name)
        admin.close()
