"""The docs as a site, one folder a version: `make docs-site`.

Rules: the pages are the Markdown files of this repository as they are; a link that leads nowhere and a heading that is missing end the
build (-W). Files that are no pages but are linked, such as configurations of gateways, are offered for download.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "QueryWarden"
version = release = PROJECT["version"]
root_doc = "docs/site/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "changelog.d/README.md",
    "docs/*.md",
    "docs/decisions/*.md",
    "docs/site/index.md",
    "helm/README.md",
    "consumers/data/README.md",
    "notebooks/README.md",
]
exclude_patterns = ["**/.*"]
extensions = ["myst_parser"]
myst_heading_anchors = 5
# Not every page is in the sidebar: decisions are listed on a page of theirs. No lexer is known for CSV.
suppress_warnings = ["toc.not_included", "misc.highlighting_failure"]
html_theme = "furo"
html_title = f"QueryWarden {version}"
html_show_sourcelink = False
