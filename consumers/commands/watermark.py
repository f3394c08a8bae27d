"""The watermark from the terminal: make its key, look after the registry, question a suspected copy.

Rules: a suspect is questioned only after everything that the registry holds stands in the audit log, so that no canary can be added
afterwards to fit a suspect; every verification is an audit row itself. What model servers do is in `consumers.watermark`.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from consumers import config, paths, terminal
from consumers.commands.options import AsJson, Client, ConfigFile, check_folders
from consumers.errors import Missing, Refused, WrongUse
from consumers.watermark.answers import Answer
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.registry import lines_of
from consumers.watermark.selection import digest_of, quantised
from consumers.watermark.suspects import HttpSuspect, answers_in, request_of
from consumers.watermark.verification import ClientResult, Questions, judged, questions_of
from consumers.wiring.operators import open_for_operator
from consumers.wiring.watermark import forget_canaries, record_canaries

app = typer.Typer(
    help="Make watermark keys, record canaries, and test whether a suspected model learned from marked answers.",
    no_args_is_help=True,
)
NAMED_AT = 1e-3

RegistryFile = Annotated[
    Path | None,
    typer.Option(
        "--registry", metavar="FILE", help="The registry of canaries; default: the setting watermark.registry."
    ),
]
KeyFile = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="The watermark key; default: that of the settings.")
]
OnModel = Annotated[str, typer.Option("--model", help="Only canaries of this model.")]


@app.command("create")
def create(
    out_path: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The key's file; default: that of the settings.")
    ] = None,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Create a watermark key in a new file, and record its key id in the audit log."""
    settings = config.load(config_file)
    path = out_path or settings.watermark_key_path
    check_folders(path)
    with open_for_operator(settings) as opened:
        key = WatermarkKey.create(path)
        opened.operations.record(opened.actor, "watermark.key", f"key:{key.key_id}")

    def say(_: object) -> None:
        terminal.out.print(Text(f"{path}: watermark key {key.key_id}"), soft_wrap=True)
        terminal.err.print(Text(f"gateways ask for it by the step canary={key.key_id}"), soft_wrap=True)

    terminal.show([{"file": str(path.absolute()), "key_id": key.key_id}], as_json, say)


@app.command("record")
def record(registry: RegistryFile = None, as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Record the new canaries of the registry in the audit log, one row for each batch of them."""
    settings = config.load(config_file)
    path = _registry(settings, registry)
    with open_for_operator(settings) as opened:
        gained = record_canaries(settings, opened.operations, opened.actor, path)
    terminal.show(
        [{"registry": str(path), "lines": gained}], as_json, lambda _: terminal.out.print(f"{gained:,} lines recorded")
    )


@app.command("questions")
def questions(
    out_path: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write the inputs (JSON lines).")],
    registry: RegistryFile = None,
    key_file: KeyFile = None,
    model: OnModel = "",
    config_file: ConfigFile = None,
) -> None:
    """Write the inputs that a suspected model must be asked, if it has no address that `verify` can ask."""
    settings = config.load(config_file)
    check_folders(out_path)
    asked = _questions(_registry(settings, registry), _key(settings, key_file), model)
    with out_path.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(request_of(question.input)) + "\n" for question in asked.asked)
    terminal.out.print(f"{out_path}: {len(asked.asked):,} inputs; add the suspect's answer to each line as prediction")


@app.command("verify")
def verify(
    suspect: Annotated[
        str,
        typer.Option(
            help="Address that takes inputs by POST, or a file of JSON lines with inputs and the suspect's predictions."
        ),
    ],
    registry: RegistryFile = None,
    key_file: KeyFile = None,
    model: OnModel = "",
    labels: Annotated[
        str,
        typer.Option(
            help="The suspect's labels in the order of its classes, separated by commas; default: as the model's."
        ),
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with a bearer token for the suspect.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
    config_file: ConfigFile = None,
) -> None:
    """Test whether a suspected model learned from marked answers, and from which client's."""
    settings = config.load(config_file)
    path, key = _registry(settings, registry), _key(settings, key_file)
    asked = _questions(path, key, model)
    with open_for_operator(settings) as opened:
        record_canaries(settings, opened.operations, opened.actor, path)
        answers = _answers(suspect, asked, key, token_file)
        results = _judged(asked, answers, labels)
        answered = sum(answer is not None for answer in answers)
        named = [result.client for result in results if result.p_value <= NAMED_AT]
        about = f"key:{key.key_id} asked:{len(answers)} answered:{answered} named:{len(named)} {','.join(named[:20])}"
        opened.operations.record(opened.actor, "watermark.verify", about.strip())
        models = {question.client: question.model for question in asked.asked}
        rows = [_row(result, opened.reader.named(models[result.client], result.client)) for result in results]
    if as_json:
        terminal.out.print(Text(json.dumps(rows)), soft_wrap=True)
        return
    terminal.err.print(f"{len(answers):,} inputs asked, {answered:,} answered")
    terminal.print_table(
        ("client", "p-value", "canaries shown", "controls shown", "left out", ""),
        [
            (
                row["client_id"], f"{row['p_value']:.2g}", f"{row['shown']} of {row['canaries']}",
                f"{row['controls_shown']} of {row['controls']}", str(row["shared"]),
                "learned from its answers" if row["p_value"] <= NAMED_AT else "",
            )
            for row in rows
        ],
        "the registry holds nothing that the suspect answered",
    )  # fmt: skip


@app.command("forget")
def forget(client: Client, registry: RegistryFile = None, config_file: ConfigFile = None) -> None:
    """Blank a client's sealed inputs in the registry. Hashes, times and the chain stay."""
    settings = config.load(config_file)
    path = _registry(settings, registry)
    with open_for_operator(settings) as opened:
        hashed = opened.reader.key_of("*", client).client
        removed = forget_canaries(settings, opened.operations, opened.actor, path, hashed)
    if not removed:
        raise Missing("the registry holds no sealed input of this client")
    terminal.out.print(f"{removed:,} sealed inputs removed")


def _registry(settings: config.Settings, given: Path | None) -> Path:
    path = given or (Path(settings.watermark.registry) if settings.watermark.registry else None)
    if path is None:
        raise WrongUse("no registry: give --registry FILE, or set watermark.registry")
    return path


def _key(settings: config.Settings, given: Path | None) -> WatermarkKey:
    return WatermarkKey.load(given or settings.watermark_key_path)


def _questions(path: Path, key: WatermarkKey, model: str) -> Questions:
    found = questions_of(lines_of(path), key, model)
    if not found.asked:
        raise Refused(f"{path}: no record that speaks for one client alone was sealed with key {key.key_id}")
    return found


def _answers(suspect: str, asked: Questions, key: WatermarkKey, token_file: Path | None) -> list[Answer | None]:
    """The suspect's answer to every question."""
    if "://" not in suspect:
        of_model = {question.model for question in asked.asked}
        found: dict[str, Answer] = {}
        for model in of_model:

            def named(value: Any, model: str = model) -> str:
                return digest_of(key, model, quantised(value))

            found |= answers_in(Path(suspect), named)
        return [found.get(question.digest) for question in asked.asked]
    token = paths.read_text(token_file, "--token-file").strip() if token_file else ""
    with contextlib.closing(HttpSuspect(suspect, token)) as questioned, terminal.spinner() as say:
        say(f"asking {len(asked.asked):,} inputs")
        return [questioned.ask(question.input) for question in asked.asked]


def _judged(asked: Questions, answers: list[Answer | None], labels: str) -> list[ClientResult]:
    return judged(asked, answers, tuple(labels.split(",")) if labels else ())


def _row(result: ClientResult, client_id: str | None) -> dict[str, Any]:
    """One client as `--json` prints it."""
    return {
        "client_id": client_id or result.client,
        "p_value": result.p_value,
        "canaries": result.canaries,
        "shown": result.shown,
        "controls": result.controls,
        "controls_shown": result.controls_shown,
        "shared": result.shared,
        "p_value_alone": result.alone,
        "kinds": {
            kind: {
                "p_value": c.p_value,
                "marked": [c.marked_shown, c.marked],
                "controls": [c.controls_shown, c.controls],
            }
            for kind, c in sorted(result.kinds.items())
        },
    }
