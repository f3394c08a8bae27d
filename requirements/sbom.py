"""Print the bill of materials of the service, CycloneDX 1.6, from the lock.

Rules: everything comes from the lock and from the metadata of what is installed, nothing from a network. The same lock gives the same
bytes: no time, and a serial number that is a hash. A package for other platforms only is listed with its marker.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?:\s*;\s*([^\\]+?))?\s*\\?$")


def pins(lock: str) -> list[tuple[str, str, str, list[str]]]:
    """(name, version, marker, SHA-256 of its files) of each package."""
    found: list[tuple[str, str, str, list[str]]] = []
    for line in lock.splitlines():
        if (pin := PIN.match(line)) is not None:
            found.append((re.sub(r"[-_.]+", "-", pin[1]).lower(), pin[2], (pin[3] or "").strip(), []))
        elif (digest := re.search(r"--hash=sha256:([0-9a-f]{64})", line)) is not None:
            found[-1][3].append(digest[1])
    return found


def licence(name: str, version: str) -> list[dict[str, str]]:
    """The SPDX expression that the installed package states, if it is the pinned one."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    known = metadata["Version"] == version and "License-Expression" in metadata
    expression = metadata["License-Expression"] if known else ""
    return [{"expression": expression}] if expression else []


def bill(lock: str, project: dict[str, Any]) -> dict[str, Any]:
    """The document."""
    own = {"type": "application", "bom-ref": f"pkg:pypi/{project['name']}@{project['version']}", "name": project["name"],
           "version": project["version"], "licenses": [{"license": {"id": project["license"]}}]}  # fmt: skip
    components = []
    for name, version, marker, digests in pins(lock):
        one: dict[str, Any] = {"type": "library", "bom-ref": f"pkg:pypi/{name}@{version}", "name": name, "version": version,
                               "purl": f"pkg:pypi/{name}@{version}"}  # fmt: skip
        if licenses := licence(name, version):
            one["licenses"] = licenses
        properties = [("pip:sha256", digest) for digest in digests] + ([("pip:marker", marker)] if marker else [])
        one["properties"] = [{"name": f"querywarden:{key}", "value": value} for key, value in properties]
        components.append(one)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256(lock.encode()).digest()[:16], version=4)}",
        "version": 1,
        "metadata": {"component": own},
        "components": components,
        "dependencies": [{"ref": own["bom-ref"], "dependsOn": [one["bom-ref"] for one in components]}],
    }


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    json.dump(bill((ROOT / "requirements" / "run.txt").read_text(), project), sys.stdout, indent=1, sort_keys=True)
    print()
