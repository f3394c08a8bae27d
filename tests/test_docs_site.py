"""The docs as a site: every page is in its list, and links that lead nowhere end the build."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "site" / "index.md"


def test_every_page_of_the_docs_is_in_the_list_of_the_site() -> None:
    listed = set(re.findall(r"^\.\./([\w-]+)$", INDEX.read_text(), re.MULTILINE))
    assert listed == {page.stem for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.soak
def test_the_site_is_built_and_a_link_that_leads_nowhere_ends_it(tmp_path: Path) -> None:
    """The control: the same build with one page more, whose link leads nowhere."""
    subprocess.run(["docs/site/build.sh", str(tmp_path / "site")], cwd=ROOT, check=True)
    (version,) = [path for path in (tmp_path / "site").iterdir() if path.is_dir()]
    assert f'href="{version.name}/"' in (tmp_path / "site" / "index.html").read_text()
    assert (version / "docs" / "detection.html").is_file()
    broken = ROOT / "docs" / "broken.md"
    try:
        broken.write_text("# Broken\n\n[nowhere](nowhere.md)\n")
        failed = subprocess.run(
            ["docs/site/build.sh", str(tmp_path / "site")], cwd=ROOT, check=False, capture_output=True
        )
    finally:
        broken.unlink()
    assert failed.returncode
    assert b"nowhere" in failed.stderr
