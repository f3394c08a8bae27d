"""The rules of the house that no linter knows.

Names and sizes of modules, what may be imported at run time, that the import contracts can fail at all, and that the
lock is the one that `pyproject.toml` asks for.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sys.executable).parent
PACKAGES = ("detector", "consumers")
BANNED_NAMES = frozenset(
    "utils util common helpers helper base core manager service data info process handle engine misc shared".split()
)
MOST_LINES = 500
LONGEST_TEST_NAME = 80
WHOLE_SYSTEM = ("crash", "gateways", "simulation")
"""Suites of the whole that have machinery of their own; the other tests of the whole lie at the root of `tests`."""
INVENTED = {
    "tests/test_house.py: tests/attic/test_x.py", "tests/test_guarantees.py: tests/nowhere.py", "tests/test_house.py: tests/nowhere.py",
    "tests/test_house.py: tests/detector/__init__.py",
}  # fmt: skip
TWO_HALVES = {
    "OperatorCell": "the operator cell in Redis and in SQLite: halves of one port",
    "Upkeep": "erasing, snapshots and restoring in Redis and in SQLite: halves of one port",
    "_Restoring": "the state of a restore in Redis and in SQLite: halves of one port",
}
"""Class names that may be defined twice."""
SERVICE = (
    "consumers.ingest.loop",
    "consumers.detect.loop",
    "consumers.wiring.processes",
    "consumers.wiring.serve",
    "consumers.cli",
)

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
OTHERS = sorted(
    path for folder in ("tests", "examples", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


# --- tests


def rooms(package: str) -> set[Path]:
    """The folders of a package that hold modules, below it; `.` is the package itself."""
    return {path.parent.relative_to(ROOT / package) for path in (ROOT / package).rglob("*.py")}


def strangers(test_files: Iterable[Path]) -> list[str]:
    """The test files whose folder is neither the root of `tests` nor that of a room nor a whole-system suite."""
    homes = {Path(), Path("consumers"), Path("benchmarks"), *map(Path, WHOLE_SYSTEM)}
    homes |= rooms("consumers") | {Path("detector") / room for room in rooms("detector")}
    return [name_of(path) for path in test_files if path.parent.relative_to(ROOT / "tests") not in homes]


def test_the_folders_of_tests_are_the_rooms_of_the_source() -> None:
    assert strangers((ROOT / "tests").rglob("test_*.py")) == []
    assert strangers([ROOT / "tests" / "attic" / "test_x.py"]) == ["tests/attic/test_x.py"]


def test_what_needs_both_cores_is_where_make_looks_for_it() -> None:
    (folders,) = re.findall(r'-m "alone and not soak" ([\w/ ]+) \|\|', (ROOT / "Makefile").read_text())
    marked = [path for path in OTHERS if "@pytest.mark.alone" in path.read_text() and path != Path(__file__).resolve()]
    assert len(marked) >= 2
    for path in marked:
        assert any(path.is_relative_to(ROOT / folder) for folder in folders.split()), name_of(path)


def test_names_of_tests_can_be_read() -> None:
    names = [
        node.name
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert [name for name in names if len(name) > LONGEST_TEST_NAME] == []


def test_every_file_of_tests_that_a_text_names_exists() -> None:
    named = {
        f"{name_of(path)}: {file}"
        for path in [
            *SOURCES,
            *OTHERS,
            *sorted((ROOT / "docs").rglob("*.md")),
            *ROOT.glob("*.md"),
            *(ROOT / "consumers").rglob("*.css"),
            ROOT / "Makefile",
        ]
        for file in re.findall(r"tests/[\w/-]+\.(?:py|md|sh)", path.read_text())
        if not (ROOT / file).exists()
    }
    assert named == INVENTED


# --- modules


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_come_from_this_checkout(package: str) -> None:
    """`detector` and `consumers` are names that something else could have too."""
    assert importlib.import_module(package).__file__ == str(ROOT / package / "__init__.py")


def test_every_module_opens_with_a_docstring() -> None:
    headers = {name_of(path): ast.get_docstring(tree_of(path)) or "" for path in [*SOURCES, *OTHERS]}
    assert {name for name, header in headers.items() if len(header.partition("\n")[0]) < 10} == set()


def test_every_module_of_the_product_states_its_rules() -> None:
    silent = {name_of(path) for path in SOURCES if "Rules:" not in (ast.get_docstring(tree_of(path)) or "")}
    assert silent == {"consumers/__main__.py"}


def test_modules_are_named_after_something_of_the_field() -> None:
    def words(path: Path) -> set[str]:
        return {word for part in path.relative_to(ROOT).with_suffix("").parts for word in [part, *part.split("_")]}

    assert {name_of(path): words(path) & BANNED_NAMES for path in SOURCES if words(path) & BANNED_NAMES} == {}


def test_modules_are_short_enough_to_be_read() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_class_name_means_two_things() -> None:
    """Who searches for a class finds one. `TWO_HALVES` says which names stand for the same thing in two places, and why."""
    places: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, set()).add(name_of(path))
    twice = {name: sorted(files) for name, files in places.items() if len(files) > 1}
    assert {name: files for name, files in twice.items() if name not in TWO_HALVES} == {}
    assert TWO_HALVES.keys() <= twice.keys(), "an exception that nothing needs any more"


def test_test_folders_have_no_init() -> None:
    """One would shadow the real package: ``tests/detector/__init__.py`` is ``detector`` to a careless importer."""
    assert [name_of(path) for path in (ROOT / "tests").rglob("__init__.py")] == []


def test_only_wiring_imports_inside_functions() -> None:
    """Elsewhere a module's needs stand at its top; what is imported late is late for a reason that wiring knows."""
    late = {
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        if "wiring" not in path.parts
        for function in ast.walk(tree_of(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for imported in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if imported.split(".")[0] in PACKAGES
    }
    assert late == set()


def test_nothing_unpickles() -> None:
    """Ruff's S301 sees calls; this sees the import, in tests too."""
    importers = {
        name_of(path)
        for path in [*SOURCES, *OTHERS]
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for imported in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if imported.split(".")[0] in {"pickle", "cloudpickle", "joblib", "shelve", "marshal", "dill"}
    }
    assert importers == set()


# --- who may import whom


def run_contracts(root: Path) -> subprocess.CompletedProcess[str]:
    """The import contracts of `root` on the packages in `root`."""
    command = [str(SCRIPTS / "lint-imports"), "--no-cache", "--config", str(root / "pyproject.toml")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The two packages and the contracts, to be spoilt."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_contracts_hold(copied: Path) -> None:
    checked = run_contracts(copied)
    assert checked.returncode == 0, checked.stdout
    assert re.search(r"Contracts: [12][0-9] kept, 0 broken", checked.stdout)


FORBIDDEN = [
    ("detector.query", "consumers.errors", "The shell imports the core"),
    ("detector.query", "time", "no I/O, clock"),
    ("detector.query", "logging", "no I/O, clock"),
    ("detector.query", "redis", "no I/O, clock"),
    ("detector.query", "detector.features", "The floors of the core"),
    ("detector.features", "sklearn", "scikit-learn only where models are trained"),
    ("consumers.errors", "consumers.store", "The floors of the shell"),
    ("consumers.ingest.loop", "consumers.detect.loop", "The floors of the shell"),
    ("consumers.ingest.loop", "consumers.store.redis", "Only wiring names adapters"),
    ("consumers.detect.loop", "consumers.config", "Only commands and wiring read settings"),
    ("consumers.commands.replay", "consumers.store.embedded", "Only wiring names adapters"),
    ("consumers.records.ledger", "consumers.ingest.step", "The floors of the shell"),
    ("consumers.records.ledger", "consumers.records.heartbeat", "The floors of the room records"),
    ("consumers.ingest.poison", "consumers.ingest.step", "The floors of the room ingest"),
    ("consumers.log.mappings.shapes", "consumers.log.mappings.records", "The floors of the room mappings"),
]
"""Imports that a contract forbids: module, what it imports, a part of the contract's name."""
UNPLACED = [
    ("consumers.anything", "The floors of the shell"),
    ("consumers.readers.anything", "The floors of the room readers"),
    ("detector.anything", "The floors of the core"),
]
"""Modules without a floor."""


def reported(stdout: str) -> dict[str, str]:
    """The broken contracts, each with what is said of it."""
    details = stdout.partition("Broken contracts")[2]
    broken = [line.partition(" BROKEN")[0].strip() for line in stdout.splitlines() if " BROKEN" in line]
    starts = sorted((details.index(f"\n{name}\n"), name) for name in broken)
    ends = [at for at, _ in starts[1:]] + [len(details)]
    return {name: details[at:end] for (at, name), end in zip(starts, ends, strict=True)}


def test_the_import_contracts_can_fail(copied: Path) -> None:
    """All forbidden imports at once: each is named under its contract."""
    for module, imported, _ in FORBIDDEN:
        with (copied / module.replace(".", "/")).with_suffix(".py").open("a") as spoilt:
            spoilt.write(f"\nimport {imported}\n")
    found = reported(run_contracts(copied).stdout)
    unseen = [
        (module, imported, contract)
        for module, imported, contract in FORBIDDEN
        if not any(contract in name and f"{module} -> {imported} (l." in said for name, said in found.items())
    ]
    assert unseen == [], found


def test_a_module_without_a_floor_breaks_a_contract(copied: Path) -> None:
    for module, _ in UNPLACED:
        (copied / module.replace(".", "/")).with_suffix(".py").write_text("")
    checked = run_contracts(copied)
    broken = [line for line in checked.stdout.splitlines() if " BROKEN" in line]
    assert [contract for _, contract in UNPLACED if not any(contract in line for line in broken)] == [], checked.stdout


def test_the_service_never_loads_scikit_learn() -> None:
    """It would cost each process 70 MB and a second; only `fit`, `simulate` and the benchmark pay for it."""
    code = f"import sys, {', '.join(SERVICE)}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert "consumers" in ran.stdout.split()
    assert not set(ran.stdout.split()) & {"sklearn", "joblib", "matplotlib"}


# --- the distribution


def test_the_command_is_installed_and_answers() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="querywarden")
    assert script.value == "consumers.__main__:main"
    assert callable(script.load())
    command = [str(SCRIPTS / "querywarden"), "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "replay" in ran.stdout


def test_everything_that_is_not_python_ships_too(tmp_path: Path) -> None:
    """Lua scripts, templates and type markers are in the wheel, tests are not."""
    import zipfile

    from hatchling.builders.wheel import WheelBuilder

    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {name_of(path) for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    assert shipped == {name for name in here if "__pycache__" not in name}
    assert any(name.endswith(".lua") for name in shipped)


def pins(lock: str) -> dict[str, list[Version]]:
    found: dict[str, list[Version]] = {}
    for name, version in re.findall(
        r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", (ROOT / "requirements" / lock).read_text(), flags=re.MULTILINE
    ):
        found.setdefault(canonicalize_name(name), []).append(Version(version))
    return found


def asked(*groups: str) -> list[Requirement]:
    """What `pyproject.toml` asks for: the service's dependencies, or those of some groups."""
    if not groups:
        return [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    lines = [line for group in groups for line in PROJECT["dependency-groups"][group] if isinstance(line, str)]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [("run.txt", asked()), ("dev.txt", [*asked(), *asked("test", "lint", "build")]), ("build.txt", asked("build"))],
    ids=["run.txt", "dev.txt", "build.txt"],
)
def test_the_lock_has_what_the_project_asks_for(lock: str, wanted: list[Requirement]) -> None:
    pinned = pins(lock)
    stale = [
        str(r)
        for r in wanted
        if not all(v in r.specifier for v in pinned.get(canonicalize_name(r.name), [Version("0")]))
    ]
    assert stale == [], "run `make lock`"


@pytest.mark.parametrize("lock", ["run.txt", "dev.txt", "build.txt", "uv.txt"])
def test_every_pin_has_its_hashes_and_no_index(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    entries = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == sum(len(versions) for versions in pins(lock).values())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"https?://|--(extra-)?index|--find-links", text)


def test_run_and_dev_agree() -> None:
    run, dev = pins("run.txt"), pins("dev.txt")
    assert {name: versions for name, versions in run.items() if dev.get(name) != versions} == {}


def test_the_service_runs_at_least_the_oldest_python_it_claims() -> None:
    assert sys.version_info >= (3, 11)
    assert PROJECT["project"]["requires-python"] == ">=3.11"


# --- the targets


def test_help_prints_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (\S+)$", text, flags=re.MULTILINE))
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"^  make (\S+)", printed.stdout, flags=re.MULTILINE)) == phony


def test_every_script_that_a_target_calls_exists() -> None:
    text = (ROOT / "Makefile").read_text()
    called = set(
        re.findall(r"(?<![\w./-])((?:examples|tests|requirements|benchmarks|docs)/[\w./-]+\.(?:py|sh|txt))", text)
    )
    assert called >= {"examples/demo.py", "tests/install-servers.sh"}
    assert sorted(path for path in called if not (ROOT / path).exists()) == []


def test_scripts_can_be_run_and_stop_at_errors() -> None:
    for path in [ROOT / ".ci" / "run", *(ROOT / "requirements").glob("*.sh"), *(ROOT / "tests").glob("*.sh")]:
        assert os.access(path, os.X_OK), path
        assert "set -euo pipefail" in path.read_text(), path


def test_the_image_copies_what_exists_and_installs_nothing_unpinned() -> None:
    """It can't be built where the tests run (no container engine), so what can go stale is checked by reading."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    copied = [
        source for line in re.findall(r"^COPY (?!--)(.+)$", text, flags=re.MULTILINE) for source in line.split()[:-1]
    ]
    assert {"detector", "consumers"} < set(copied)
    assert [source for source in copied if not (ROOT / source).exists()] == []
    installs = re.findall(r"pip install ([^&\n]+)", text)
    assert len(installs) == 4
    assert all("--require-hashes" in options or "--no-index" in options for options in installs)
    assert re.findall(r"^USER (.+)$", stages[-1], flags=re.MULTILINE) == ["10001:10001"]
    assert 'ENTRYPOINT ["start"]' in stages[-1]


def test_two_paths_through_the_tree_stay_short() -> None:
    """How often a reader enters another room on the way; before the rooms were sorted it was 14 and 51 times (docs/rooms.py)."""
    done = subprocess.run([sys.executable, "docs/rooms.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    entered = [int(match) for match in re.findall(r"(\d+) rooms entered", done.stdout)]
    assert len(entered) == 2, done.stdout
    detect, start = entered
    assert detect <= 5, done.stdout
    assert start <= 25, done.stdout
