"""The words of the project: terms are explained in docs/glossary.md, and words on its list of avoided words are not used.

Rules:
* A term is what a page of the docs or the header of a module sets in italics (``*term*``). Titles of works are set with underscores.
* Text in backticks, code blocks and decision records are not checked: names in code and history stay as they are.
* Each check lists all offenders at once, and a control shows that it can fail.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from detector import policy

ROOT = Path(__file__).resolve().parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("consumers", "detector")
AVOIDED = "\n## Words that we avoid\n"

Texts = Mapping[str, str]
"""Name of a page or module → its prose."""


def prose(text: str) -> str:
    """A page or a header without code and addresses of links, and with bullets that cannot be taken for italics."""
    for code in (r"```.*?```", r"``.*?``", r"`[^`\n]*`", r"<[^>\n]+>", r"(?<=\])\([^)\n]*\)"):
        text = re.sub(code, " ", text, flags=re.DOTALL)
    return re.sub(r"^(\s*)\* ", r"\1- ", text, flags=re.MULTILINE)


def texts() -> dict[str, str]:
    """The prose of every page and of every module header."""
    found = {str(page.relative_to(ROOT)): prose(page.read_text(encoding="utf-8")) for page in PAGES}
    found[str(GLOSSARY.relative_to(ROOT))] = prose(GLOSSARY.read_text(encoding="utf-8").partition(AVOIDED)[0])
    for package in PACKAGES:
        for module in sorted((ROOT / package).rglob("*.py")):
            header = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
            found[str(module.relative_to(ROOT))] = prose(header)
    return found


def entries() -> dict[str, str]:
    """Term in lower case → what the glossary says about it."""
    body = GLOSSARY.read_text(encoding="utf-8").partition(AVOIDED)[0]
    parts = re.split(r"^### (.+)$", body, flags=re.MULTILINE)[1:]
    return {term.casefold(): " ".join(text.split()) for term, text in zip(parts[::2], parts[1::2], strict=True)}


def avoided() -> list[tuple[str, str]]:
    """(word to avoid, what to say instead)."""
    table = GLOSSARY.read_text(encoding="utf-8").partition(AVOIDED)[2]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", table, flags=re.MULTILINE)
    return [(old.strip(), new.strip()) for old, new in rows if old.strip() != "avoid"]


def italics(text: str) -> Iterator[str]:
    """What a text sets in italics; a single letter is a variable of mathematics."""
    yield from re.findall(r"(?<![*\w\\])\*(?![*\s])([^*]{2,}?)(?<![\s*])\*(?![*\w])", text)


def singulars(term: str) -> Iterator[str]:
    """A term, and what it may be the plural of."""
    yield term
    for ending, singular in (("ies", "y"), ("es", ""), ("s", ""), ("maxima", "maximum")):
        if term.endswith(ending):
            yield term.removesuffix(ending) + singular


def unexplained(pages: Texts, terms: Iterable[str]) -> list[str]:
    """``place: term`` for each term that has no entry."""
    known = set(terms)
    return [
        f"{place}: {term}"
        for place, text in pages.items()
        for term in dict.fromkeys(" ".join(found.split()) for found in italics(text))
        if not known & set(singulars(term.casefold()))
    ]


def used(pages: Texts, words: Iterable[tuple[str, str]]) -> list[str]:
    """``place: word → what to say`` for each avoided word. It may stand inside what is said instead, as letters in dead letters."""
    found = []
    for place, text in pages.items():
        flat = " ".join(text.split())
        for old, new in words:
            rest = flat
            for phrase in new.split(", "):
                rest = re.sub(rf"\b{re.escape(phrase)}\b", " ", rest, flags=re.IGNORECASE)
            if re.search(rf"\b{re.escape(old)}\b", rest, flags=re.IGNORECASE):
                found.append(f"{place}: {old} → {new}")
    return found


def test_every_term_is_explained() -> None:
    assert unexplained(texts(), entries()) == []


def test_no_avoided_word_is_used() -> None:
    assert used(texts(), avoided()) == []


def test_the_glossary_is_in_order_and_complete() -> None:
    terms = list(entries())
    assert len(terms) >= 60
    assert terms == sorted(set(terms))
    assert [term for term, text in entries().items() if not text.endswith(".")] == []
    assert [state for state in policy.STATES if state not in entries()["state"]] == []
    assert len(avoided()) >= 20


def test_the_checks_can_fail() -> None:
    """A page with a new term and an avoided word; and words that only look like them."""
    bad = {"x.md": prose("A *quantum cell* is new. The nulls of two letters, `nulls`,\nhave no say.")}
    assert unexplained(bad, entries()) == ["x.md: quantum cell"]
    assert [line.partition(" →")[0] for line in used(bad, avoided())] == ["x.md: nulls", "x.md: letters"]
    good = {
        "y.md": prose(
            "* *Dead letters* and *log cells*\n* the **nullity** of dead letters\n\n```text\nnulls *unknown*\n```\n"
        )
    }
    assert unexplained(good, entries()) == []
    assert used(good, avoided()) == []
