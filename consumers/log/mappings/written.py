"""A mapping written as TOML, to be edited.

Rules: keys at their default value are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from consumers.log.mappings.mapping import LogMapping

_BARE = re.compile(r"[A-Za-z0-9_-]+")
WIDEST = 100


def as_toml(mapping: LogMapping, comments: Sequence[str] = ()) -> str:
    """The text of a mapping file; reading it gives the mapping.

    Parameters
    ----------
    mapping
        What to write.
    comments
        Lines that stand before it.
    """
    content: dict[str, Any] = msgspec.to_builtins(mapping)
    lines = [f"# {line}".rstrip() for comment in comments for line in comment.splitlines()]
    lines += [_entry(name, value) for name, value in content.items() if not isinstance(value, dict)]
    for name, value in content.items():
        if isinstance(value, dict) and value:
            lines += ["", f"[{name}]", *(_entry(key, inner) for key, inner in value.items())]
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any) -> str:
    line = f"{_key(name)} = {_value(value)}"
    if len(line) <= WIDEST or not isinstance(value, list):
        return line
    return f"{_key(name)} = [\n" + "".join(f"    {_value(one)},\n" for one in value) + "]"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # a text that JSON writes in ASCII is one of TOML too, except for halves of a surrogate pair, which no mapping file holds
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)
