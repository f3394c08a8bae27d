"""Every `querywarden` and `make` line that a page prints runs here, or is listed with the reason why not."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from support import victims
from test_docs import BLOCK, PAGES, ROOT, all_commands, named, text_of

from consumers import cli

MODEL, CLIENT = "fraud-v3", "acct-1"
Line = tuple[str, str]
"""(page, one line of a fenced block)"""

RUN: tuple[Line, ...] = (
    ("docs/operations.md", "querywarden fit --model-id fraud-v3 --reference reference.jsonl --out fraud-v3.baseline"),
    ("docs/dashboard.md", "querywarden backtest --baseline fraud-v3.baseline march.jsonl.zst"),
    ("docs/dashboard.md", "querywarden explain acct-1"),
    ("docs/dashboard.md", "querywarden evidence acct-1 --out case.zip"),
    ("docs/dashboard.md", "querywarden verify-evidence case.zip --baseline fraud-v3.baseline --signer FINGERPRINT"),
    ("docs/api.md", "querywarden keys create --role operator --name maria"),
    ("docs/gateways.md", "printf '%s\\n' \"$API_KEY\" | querywarden gateway hash"),
    ("docs/operations.md", "querywarden schema list"),
    ("docs/operations.md", "querywarden decisions list"),
    ("docs/operations.md", "querywarden secrets create --secrets secrets.json"),
    ("docs/upkeep.md", "querywarden snapshot store.snapshot"),
    ("docs/upkeep.md", "querywarden restore store.snapshot"),
    ("docs/upkeep.md", "querywarden export CLIENT"),
    ("docs/upkeep.md", "querywarden erase CLIENT"),
    ("docs/upkeep.md", "querywarden rebuild --from earliest"),
)
"""Run here, in this order, in one folder."""

QUICK_START = "tests/test_docs.py::test_the_quick_start_on_files_does_what_it_says"
QUICK_START_ON_SERVERS = "tests/test_docs.py::test_the_quick_start_on_kafka_and_redis_does_what_it_says"
ELSEWHERE: dict[Line, str] = {
    (
        "CONTRIBUTING.md",
        "make release",
    ): "writes into the checkout; tests/test_release.py::test_the_source_archive_is_the_same_twice",
    ("CONTRIBUTING.md", "make install"): "made the environment that this test runs in",
    ("CONTRIBUTING.md", "make test"): "is this suite",
    ("CONTRIBUTING.md", "make check"): "is a part of this suite and of `make lint`",
    ("CONTRIBUTING.md", "make soak"): "takes hours",
    ("CONTRIBUTING.md", "make mutation"): "takes hours",
    (
        "CONTRIBUTING.md",
        "make docs-site",
    ): "installs an environment of its own; tests/test_docs_site.py, in `make soak`",
    ("CONTRIBUTING.md", "make lint"): "minutes; CI runs it before the tests (.ci/run)",
    ("CONTRIBUTING.md", "make bench-ratios"): "CI runs it after the tests (.ci/run)",
    (
        "CONTRIBUTING.md",
        "make docs",
    ): "writes into the checkout; tests/test_docs.py::test_the_tables_are_what_the_code_says",
    (
        "README.md",
        "make demo",
    ): "serves until Ctrl-C; tests/test_demo.py::test_a_small_demo_ends_with_a_report_and_the_truth",
    ("README.md", "make test"): "is this suite",
    (
        "docs/dashboard.md",
        "querywarden evidence acct-1 --out case.zip --timestamp-request case.tsq",
    ): "tests/readers/test_evidence.py::test_a_bundle_in_clear_names_the_client",
    (
        "docs/dashboard.md",
        "querywarden verify-evidence case.zip --timestamp-response case.tsr --timestamp-ca authority.pem",
    ): "tests/readers/test_timestamps.py::test_a_service_is_asked_and_its_answer_is_checked_from_the_terminal",
    (
        "docs/dashboard.md",
        "querywarden verify-evidence case.zip --earlier other.zip --audit audit.jsonl --report case.html",
    ): "needs a second bundle; tests/readers/test_evidence.py::test_the_report_says_what_was_checked_and_what_was_not",
    (
        "docs/operations.md",
        "querywarden secrets rotate",
    ): "tests/commands/test_secrets.py::test_a_new_installation_is_sealed_a_key_is_replaced_and_a_tenant_erased",
    (
        "docs/operations.md",
        "querywarden secrets rotate --after-s 300",
    ): "tests/store/test_sealed.py::test_a_key_waits_for_its_time",
    (
        "docs/operations.md",
        "querywarden secrets status",
    ): "tests/commands/test_secrets.py::test_a_new_installation_is_sealed_a_key_is_replaced_and_a_tenant_erased",
    (
        "docs/operations.md",
        "querywarden secrets reseal --per-s 500",
    ): "tests/commands/test_secrets.py::test_a_new_installation_is_sealed_a_key_is_replaced_and_a_tenant_erased",
    (
        "docs/operations.md",
        "querywarden secrets drop KEY",
    ): "tests/commands/test_secrets.py::test_a_new_installation_is_sealed_a_key_is_replaced_and_a_tenant_erased",
    (
        "docs/operations.md",
        "querywarden secrets erase-tenant acme",
    ): "tests/commands/test_secrets.py::test_a_new_installation_is_sealed_a_key_is_replaced_and_a_tenant_erased",
    (
        "docs/operations.md",
        "querywarden recalibrate --config querywarden.toml --out fraud-v3.new",
    ): "needs a week; tests/consumers/test_recalibrate.py::test_the_command_writes_a_baseline_that_the_service_takes",
    **{
        ("docs/operations.md", line): "needs a second baseline; "
        "tests/commands/test_baseline.py::test_the_printed_commands_switch_and_switch_back"
        for line in (
            "querywarden baseline shadow fraud-v3.new",
            "querywarden baseline status",
            "querywarden baseline compare",
            "querywarden baseline promote",
            "querywarden baseline rollback",
            "querywarden baseline drop",
            "querywarden baseline status --out fraud-v3.live",
        )
    },
    **{
        (
            "docs/operations.md",
            line,
        ): "needs a column that is held; tests/detect/test_schema_holds.py::test_a_hold_lasts_until_an_operator_rules"
        for line in (
            'querywarden schema accept MODEL COLUMN --reason "app 4.2 leaves it out"',
            "querywarden schema dismiss MODEL COLUMN",
        )
    },
    **{
        ("docs/indicators.md", line): "needs a finding and a key; "
        "tests/commands/test_indicators.py::test_from_one_installation_to_another"
        for line in (
            "querywarden indicators create-key --out peers.json",
            "querywarden indicators export indicators.json",
            "querywarden indicators import indicators.json --from acme-bank",
        )
    },
    **{
        (
            "docs/operations.md",
            line,
        ): "needs a campaign; tests/commands/test_operators.py::test_a_campaign_is_decided_about_as_one"
        for line in (
            'querywarden decisions block --campaign ID --for 4h --reason "one theft over 40 accounts" --dry-run',
            'querywarden decisions block --campaign ID --for 4h --reason "one theft over 40 accounts"',
            "querywarden decisions release --campaign ID --withdraw",
        )
    },
    (
        "docs/detection.md",
        "querywarden evaluate --baseline fraud-v3.baseline --json",
    ): "simulates for a minute; tests/consumers/test_evaluate.py::test_each_family_has_a_row_and_the_run_says_its_limits",
    (
        "docs/detection.md",
        "querywarden evaluate --baseline fraud-v3.baseline --reference reference.jsonl --out evaluation.html",
    ): "simulates for a minute; tests/consumers/test_evaluate.py::test_with_a_reference_thieves_get_answers_and_the_page_stands_alone",
    **{
        (
            "docs/text.md",
            line,
        ): "needs a log of texts; tests/test_text_models.py::test_thieves_are_flagged_and_honest_clients_are_not"
        for line in (
            "querywarden fit --model-id assistant --reference reference.jsonl --traffic honest.jsonl --out assistant.baseline",
            "querywarden replay --baseline assistant.baseline log.jsonl --scores scores.jsonl --report report.html",
        )
    },
    (
        "docs/text.md",
        "querywarden fit --embeddings --model-id assistant --reference reference.jsonl --traffic honest.jsonl --out assistant.baseline",
    ): "embeds for minutes; tests/consumers/test_embeddings.py::test_a_file_gives_the_rows_that_fit_made",
    ("docs/gateways.md", "querywarden decisions reference 20260131-9f3ab2c4d5e6f708"): "needs a refusal of a service; "
    "tests/test_serving.py::test_what_the_terminal_decides_the_service_enforces",
    ("docs/watermark.md", "querywarden watermark create --out watermark.json"): "needs a model server beside it; "
    "tests/commands/test_watermark.py::test_a_copy_at_an_address_is_named_with_its_client",
    (
        "docs/watermark.md",
        "querywarden watermark verify --suspect https://suspect.example/predict --token-file token.txt",
    ): "asks a model of others; tests/commands/test_watermark.py::test_a_copy_at_an_address_is_named_with_its_client",
    **{
        ("docs/watermark.md", line): "tests/commands/test_watermark.py::test_a_copys_answers_in_a_file"
        for line in (
            "querywarden watermark questions --out questions.jsonl",
            "querywarden watermark verify --suspect answered.jsonl --json",
        )
    },
    ("docs/quickstart.md", "make install"): "made the environment that this test runs in",
    **{
        ("docs/quickstart.md", line): QUICK_START
        for line in (
            "querywarden fit --model-id tumour-v1 --reference reference.jsonl --traffic traffic.jsonl --out tumour.baseline",
            "querywarden replay --baseline tumour.baseline log.jsonl --alerts alerts.jsonl --scores scores.jsonl --report report.html",
            "cat log.jsonl | querywarden replay --baseline tumour.baseline --false-alarm-budget 0.002 -",
            "querywarden replay --baseline tumour.baseline damaged.jsonl",
            "querywarden replay --baseline tumour.baseline log.jsonl --store state.sqlite",
            "QUERYWARDEN_STORE__URL=sqlite:///state.sqlite querywarden clients --limit 5",
            "QUERYWARDEN_STORE__URL=sqlite:///state.sqlite querywarden alerts",
        )
    },
    **{
        ("docs/quickstart.md", line): QUICK_START_ON_SERVERS
        for line in (
            "querywarden config check --config querywarden.toml",
            "querywarden run --config querywarden.toml --until-end",
            "querywarden clients --config querywarden.toml --limit 5",
            "querywarden clients --config querywarden.toml --json > scores-from-kafka.jsonl",
            "querywarden alerts --config querywarden.toml",
            "querywarden ingest --config querywarden.toml --until-end",
            "querywarden detect --config querywarden.toml --until-idle",
        )
    },
}
"""Line → why it is not run here, with the test that runs it."""


WHOLE_PAGES = {"docs/connect.md": "tests/test_connect.py::test_the_commands_of_a_section_run_on_a_log_of_its_tool"}
"""Page → the test that runs every line of it."""


def ours(line: str) -> bool:
    """Whether a shell line calls `querywarden` or `make`: as the first word of one of its commands, after variables."""
    for part in re.split(r"\||&&|;", line):
        words = part.split()
        while words and re.match(r"\w+=", words[0]):
            del words[0]
        if words and words[0].rpartition("/")[2] in ("querywarden", "make"):
            return True
    return False


def printed() -> Iterator[Line]:
    """Every line of a fenced block that calls us, continuation lines joined, prompts and remarks left out."""
    for page in PAGES:
        for _, body in BLOCK.findall(text_of(page)):
            body = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)
            for line in body.replace("\\\n", " ").splitlines():
                plain = " ".join(re.sub(r"(^|\s)#.*", "", line).removeprefix("$ ").split())
                if ours(plain):
                    yield named(page), plain


def test_every_printed_line_runs_here_or_is_listed_with_a_reason() -> None:
    lines = {(page, line) for page, line in printed() if page not in WHOLE_PAGES}
    listed = {*RUN, *ELSEWHERE}
    assert lines - listed == set(), "run them, or say why not"
    assert listed - lines == set(), "no page prints these any more"
    assert not set(RUN) & set(ELSEWHERE)


@pytest.mark.parametrize("reason", sorted({*ELSEWHERE.values(), *WHOLE_PAGES.values()}))
def test_the_test_that_a_reason_names_exists(reason: str) -> None:
    assert reason
    for path, name in re.findall(r"(tests/\S+\.py)::(\w+)", reason):
        assert f"def {name}" in text_of(ROOT / path)


def test_every_command_in_the_running_text_exists() -> None:
    commands = all_commands()
    groups = {path[:1] for path in commands if len(path) > 1}
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
        for text in re.findall(r"`(?:\$ )?querywarden ([a-z][^`\n]*)`", prose):
            words = text.split()
            path = next((p for p in commands if p == tuple(words[: len(p)])), None)
            assert path or tuple(words[:1]) in groups, f"{named(page)}: querywarden {text}"
            known = (
                {o for p in commands[path].params for o in (*p.opts, *p.secondary_opts)} | {"--help"} if path else set()
            )
            unknown = [w for w in words if w.startswith("--") and path and w.partition("=")[0] not in known]
            assert unknown == [], f"{named(page)}: querywarden {text}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted: a reference, and a log in which `acct-1` is a thief."""
    made = tmp_path_factory.mktemp("printed")
    streams = victims.streams(4, [("noise_uniform", "plain")], seed=31, kinds=["light"], queries=(200, 300))
    victims.reference_file(made / "reference.jsonl")
    truth = victims.log_of(made / "log.jsonl", streams)
    (thief,) = [client for client, known in truth.items() if known["role"] == "attack"]
    for name, most in (("reference.jsonl", 300), ("log.jsonl", 5000)):
        text = (made / name).read_text().replace(victims.MODEL, MODEL).replace(thief, CLIENT)
        (made / name).write_text("".join(text.splitlines(keepends=True)[:most]))
    (made / "march.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress((made / "log.jsonl").read_bytes()))
    return made


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(folder / "state"))
    monkeypatch.setenv("QUERYWARDEN_BASELINES", str(folder / "fraud-v3.baseline"))
    monkeypatch.setenv("QUERYWARDEN_STORE__URL", f"sqlite:///{folder / 'store.sqlite'}")

    def called(*words: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return called


def test_the_lines_run(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "state").mkdir()
    signer = ""
    for page, line in RUN:
        words = shlex.split(line.rpartition("|")[2])[1:]
        words = [{"CLIENT": CLIENT, "FINGERPRINT": signer}.get(word, word) for word in words]
        if words[0] == "restore":  # into an empty store
            monkeypatch.setenv("QUERYWARDEN_STORE__URL", f"sqlite:///{folder / 'restored.sqlite'}")
        status, out, err = call(
            *words, stdin="y\n" if words[0] in ("erase", "rebuild") else "an-api-key\n" if "|" in line else ""
        )
        assert status == 0, f"{page}: {line}: {err}"
        if words[0] == "fit":  # what the service would have read since
            monkeypatch.setenv("QUERYWARDEN_STORE__URL", f"sqlite:///{folder / 'store.sqlite'}")
            assert call("replay", "log.jsonl", "--store", "store.sqlite")[0] == 0
        if words[0] == "evidence":
            signer = json.loads(call(*words, "--json")[1])["signer"]
        assert out or err, line
