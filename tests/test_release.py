"""What a release consists of: the same bytes twice, a command that runs where only it was installed, a bill of all that is pinned."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"


def ran(*words: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    own = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    }  # else the caller's code is found first
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=own | environment, capture_output=True, text=True, timeout=580, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("release")
    ran("requirements/release.sh", out)
    return out


def of(release: Path, ending: str) -> Path:
    (found,) = release.glob(f"*{ending}")
    return found


def test_a_second_build_has_the_same_bytes(release: Path, tmp_path: Path) -> None:
    """Built from the source archive, in another folder, at another time, the wheel is the same."""
    with tarfile.open(of(release, ".tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    epoch = str(int((source / "pyproject.toml").stat().st_mtime))
    ran(BIN / "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again", cwd=source, SOURCE_DATE_EPOCH=epoch)
    assert of(tmp_path / "again", ".whl").read_bytes() == of(release, ".whl").read_bytes()
    (source / "detector" / "errors.py").write_text("# changed\n")  # the control
    ran(BIN / "hatchling", "build", "-t", "wheel", "-d", tmp_path / "other", cwd=source, SOURCE_DATE_EPOCH=epoch)
    assert of(tmp_path / "other", ".whl").read_bytes() != of(release, ".whl").read_bytes()


def test_the_source_archive_is_the_same_twice(release: Path, tmp_path: Path) -> None:
    sums = (release / "SHA256SUMS").read_text()
    assert ran("requirements/release.sh", tmp_path / "second") == sums
    assert len(sums.splitlines()) == 3


def installed(release: Path, folder: Path, *, whole: bool) -> Path:
    """A new environment that holds the wheel, and with `whole` what it needs, from the lock."""
    uv = BIN / "uv"
    python = folder / "bin" / "python"
    ran(uv, "venv", "-q", "--python", sys.executable, folder)
    if whole:
        ran(uv, "pip", "install", "-q", "--python", python, "--require-hashes", "-r", "requirements/run.txt")
    ran(uv, "pip", "install", "-q", "--python", python, "--no-deps", "--no-index", of(release, ".whl"))
    return folder / "bin"


def test_the_command_runs_from_the_wheel_alone(release: Path, tmp_path: Path) -> None:
    """As pipx installs it, but for the packages that it needs: those are ours."""
    command = installed(release, tmp_path / "env", whole=False) / "querywarden"
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    (packages,) = (ROOT / ".venv" / "lib").glob("python3*/site-packages")
    needed = tmp_path / "needed"
    needed.mkdir()
    for one in packages.iterdir():  # without the editable install of this checkout
        if not one.name.startswith(("querywarden", "_editable", "__editable", "_querywarden")) and one.suffix != ".pth":
            (needed / one.name).symlink_to(one)
    assert version[1] in ran(command, "--version", cwd=tmp_path, PYTHONPATH=str(needed))
    where = ran(tmp_path / "env" / "bin" / "python", "-c", "import consumers; print(consumers.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path / "env"))


@pytest.mark.soak
def test_the_release_installs_as_locked_and_works(release: Path, tmp_path: Path) -> None:
    command = installed(release, tmp_path / "env", whole=True) / "querywarden"
    shutil.copy(ROOT / "tests" / "support" / "victims.py", tmp_path)
    assert "Find clients that copy a model" in ran(command, "--help", cwd=tmp_path)
    assert "bind" in ran(command, "config", "show", cwd=tmp_path, QUERYWARDEN_STATE_DIR=str(tmp_path / "state"))


def test_the_bill_of_materials_lists_what_is_pinned(release: Path) -> None:
    bill = json.loads(of(release, ".cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {f"{one['name']}=={one['version']}" for one in bill["components"]}
    lock = re.findall(r"^([a-z0-9._-]+==[^\s;\\]+)", (ROOT / "requirements" / "run.txt").read_text(), re.MULTILINE)
    assert listed == set(lock)
    assert all(any(p["name"] == "querywarden:pip:sha256" for p in one["properties"]) for one in bill["components"])
    (own,) = bill["dependencies"]
    assert set(own["dependsOn"]) == {one["purl"] for one in bill["components"]}


def test_the_workflow_calls_targets_that_exist() -> None:
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    lines = [step["run"] for job in flow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {word for line in lines for word in re.findall(r"make ([a-z-]+)", line)}
    assert called
    assert called <= targets
    assert "bash .ci/run" in lines
    assert flow["permissions"] == {"contents": "read"}
