"""Stored profiles of an older format: read, merged and written anew without a difference in any field that stays.

`data/profiles-format-4.json` was written by the code of the last commit that stored format 4 (c0c9a42): the bytes of profiles of two
models, and digests of every remaining field as that code read them, of single profiles and of merged pairs. In
`data/profiles-format-5.json` are the same profiles as the last commit that stored format 5 (c58a606) wrote them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.errors import IncompatibleProfile
from detector.older_profiles import OLDER_FORMATS
from detector.profile import Profile
from detector.profile_format import FORMAT
from detector.profile_shape import Shape

MODELS: dict[str, Any] = {
    f"{model} {version}": of
    for version in OLDER_FORMATS
    for model, of in json.loads((Path(__file__).parent / f"data/profiles-format-{version}.json").read_text()).items()
}
"""Model and format → profiles and merges."""
STORED = [(model, name) for model, of in MODELS.items() for name in of["profiles"]]
RENAMED = {"nulls_version": "calibration_version"}
"""Names of fields when the file was written → their names now."""
KINDS = {"i": "<i8", "u": "<u8", "f": "<f8", "b": "u1"}


def digest(value: object) -> str:
    array = np.asarray(value)
    data = str(value).encode() if array.dtype.kind == "U" else array.astype(KINDS[array.dtype.kind]).tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def differing(profile: Profile, digests: dict[str, str]) -> list[str]:
    """Fields, by their dotted names, that are not what the older code read."""
    wrong = []
    for name, want in digests.items():
        group, _, field = name.partition(".")
        if group == "archive":
            place, _, part = field.partition(".")
            value = getattr(profile.archive.sets[int(place)], part)
        else:
            value = getattr(profile.memory, field) if group == "memory" else getattr(profile, RENAMED.get(name, name))
        wrong += [name] if digest(value) != want else []
    return wrong


def stored(model: str, name: str) -> tuple[bytes, Shape, dict[str, str]]:
    of = MODELS[model]
    return base64.b64decode(of["profiles"][name]["bytes"]), Shape(**of["shape"]), of["profiles"][name]["fields"]


@pytest.mark.parametrize(("model", "name"), STORED)
def test_a_profile_of_the_older_format_is_read_in_every_field_that_stays(model: str, name: str) -> None:
    blob, shape, fields = stored(model, name)
    assert str(blob[2]) == model.split()[-1]
    profile = Profile.from_bytes(blob, shape)
    assert differing(profile, fields) == []
    written = profile.to_bytes()
    assert written[2] == FORMAT
    assert len(written) <= len(blob)
    assert differing(Profile.from_bytes(written, shape), fields) == []


@pytest.mark.parametrize("model", MODELS)
def test_profiles_of_both_formats_merge_as_the_older_code_merged_them(model: str) -> None:
    for one, two, fields in MODELS[model]["merges"]:
        (a, shape, _), (b, _, _) = stored(model, one), stored(model, two)
        old, new = Profile.from_bytes(a, shape), Profile.from_bytes(Profile.from_bytes(b, shape).to_bytes(), shape)
        assert differing(old.merge(new), fields) == [], (one, two)


def test_the_fixture_holds_what_matters() -> None:
    """Memory, an archive, a short span, a single query and an empty profile, of narrow and of wide inputs."""
    profiles = [Profile.from_bytes(*stored(model, name)[:2]) for model, name in STORED]
    assert {p.memory is not None for p in profiles} == {True, False}
    assert {bool(p.archive) for p in profiles} == {True, False}
    assert {0, 1, 2} < {p.queries for p in profiles}
    assert {bool(of["shape"]["raw"]) for of in MODELS.values()} == {True, False}
    assert any(len(p.passage_ms) for p in profiles)
    assert any(len(p.sequence_hash) for p in profiles)


@pytest.mark.parametrize(("model", "name"), STORED)
def test_an_older_profile_that_was_cut_short_is_refused(model: str, name: str) -> None:
    blob, shape, _ = stored(model, name)
    for at in (8, 60, len(blob) // 2, len(blob) - 1):
        with pytest.raises(IncompatibleProfile):
            Profile.from_bytes(blob[:at], shape)
