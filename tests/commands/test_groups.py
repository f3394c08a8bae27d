"""The table of commands: every row leads to its command, and says the first sentence of its help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from consumers import cli
from consumers.commands.groups import COMMANDS, Commands, loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_a_row_says_the_first_sentence_of_the_help(name: str) -> None:
    paragraph = " ".join(str(loaded(name).help).split("\n\n")[0].split())
    assert COMMANDS[name].line == paragraph.partition(". ")[0].removesuffix(".") + "."


def test_the_root_has_the_commands_of_the_table() -> None:
    root = typer.main.get_command(cli.app)
    assert list(root.commands) == list(COMMANDS)  # type: ignore[attr-defined]


def test_a_name_that_is_none_is_no_command() -> None:
    assert "fly" not in Commands()
    with pytest.raises(KeyError):
        Commands()["fly"]


def test_help_imports_no_command() -> None:
    code = "import sys; from consumers.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sorted(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    ours = {name for name in ran.stdout.split() if name.startswith(("consumers", "detector"))}
    assert not {name for name in ours if name.startswith(("consumers.wiring", "consumers.store", "consumers.config"))}
    assert {name for name in ours if name.startswith("consumers.commands.")} == {"consumers.commands.groups"}
