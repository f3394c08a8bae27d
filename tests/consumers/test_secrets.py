"""The secrets file: private, created once whoever starts first, refused when others could read it; and its uses."""

from __future__ import annotations

import base64
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.errors import CorruptState, Refused
from consumers.secrets import KEY_BYTES, Secrets

FIXED = Secrets(bytes(range(16)), bytes(range(32)), bytes(range(32, 64)))


# --- the file


def test_created_private_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "secrets.json"
    made = Secrets.load(path, create=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert sorted(os.listdir(path.parent)) == ["secrets.json"]
    document = json.loads(path.read_text())
    assert {name: len(base64.b64decode(document[name])) for name in KEY_BYTES} == KEY_BYTES
    before = path.read_bytes()
    for create in (True, False):
        again = Secrets.load(path, create)
        assert again.key_id == made.key_id
        assert again.client_hash("t", "c") == made.client_hash("t", "c")
        assert again.sampling_key == made.sampling_key
    assert path.read_bytes() == before
    assert Secrets.load(tmp_path / "other.json", create=True).key_id != made.key_id


def test_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        Secrets.load(tmp_path / "s.json", create=True)
    finally:
        os.umask(old)
    assert (tmp_path / "s.json").stat().st_mode & 0o777 == 0o600


def test_processes_that_start_at_once_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "secrets.json"
    body = (
        "import sys; from consumers.secrets import Secrets; sys.stdin.readline();"
        "print(Secrets.load(sys.argv[1], create=True).key_id)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    root = Path(__file__).parents[2]
    workers = [
        subprocess.Popen([sys.executable, "-c", body, str(path)], cwd=root, text=True, **pipes)  # type: ignore[call-overload]
        for _ in range(4)
    ]
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = {worker.communicate(timeout=60)[0] for worker in workers}
    assert answers == {Secrets.load(path).key_id + "\n"}
    assert os.listdir(path.parent) == ["secrets.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s.json"
    Secrets.load(path, create=True)
    path.chmod(mode)
    with pytest.raises(Refused, match="chmod 600") as refusal:
        Secrets.load(path, create=True)
    assert "\n" not in str(refusal.value)
    path.chmod(0o400)
    Secrets.load(path)


def test_a_missing_file_is_refused_unless_it_may_be_created(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="does not exist"):
        Secrets.load(tmp_path / "s.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused):
        Secrets.load(tmp_path / "file" / "s.json", create=True)
    with pytest.raises(Refused):
        Secrets.load(tmp_path)


def test_a_damaged_file_is_refused_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    Secrets.load(path, create=True)
    good = json.loads(path.read_text())
    canary = good["pepper"]
    damaged: list[object] = [
        {**good, "format": 3},
        {**good, "pepper": canary[:-8]},
        {**good, "pepper": canary + "!"},
        {**good, "sampling_key": 5},
        {name: value for name, value in good.items() if name != "sealing_key"},
        [],
        None,
        7,
    ]
    for text in [json.dumps(document) for document in damaged] + ["", "{", "[" * 100_000, "\x00" * 50]:
        path.write_text(text)
        with pytest.raises(Refused, match="secrets file") as refusal:
            Secrets.load(path, create=True)
        assert "\n" not in str(refusal.value)
        assert canary[:10] not in str(refusal.value)
        assert path.read_text() == text


# --- nothing leaks


def test_no_secret_is_shown() -> None:
    shown = f"{FIXED!r} {FIXED} {FIXED.key_id}"
    assert shown.startswith("Secrets(key_id=")
    for key in (bytes(range(16)), bytes(range(32)), bytes(range(32, 64))):
        for form in (key.hex(), base64.b64encode(key).decode(), str(key)):
            assert form not in shown
    with pytest.raises(TypeError):
        copy.copy(FIXED)


def test_key_id_depends_on_every_key() -> None:
    keys = [bytes(16), bytes(32), bytes(32)]
    ids = {Secrets(*keys).key_id}
    for i in range(3):
        other = [bytes([1]) + key[1:] if i == j else key for j, key in enumerate(keys)]
        ids.add(Secrets(*other).key_id)
    assert len(ids) == 4
    assert all(len(i) == 16 for i in ids)
    with pytest.raises(Refused):
        Secrets(b"short", bytes(32), bytes(32))


# --- client hashes


def test_client_hash_is_fixed_for_ever() -> None:
    """Profiles are stored under it: another value would orphan all of them."""
    assert FIXED.client_hash("default", "acct-1") == "954c3c1bf386182a306eebec915bf710"
    assert FIXED.client_hash("default", "acct-1") == FIXED.client_hash("default", "acct-1")


def test_client_hash_is_bound_to_tenant_and_secrets() -> None:
    hashes = [
        s.client_hash(tenant, name)
        for s in (FIXED, Secrets.draw())
        for tenant, name in (("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", ""), ("a\x00b", "c"), ("a", "\udcff"))
    ]
    assert len(set(hashes)) == len(hashes)
    assert all(len(h) == 32 and set(h) <= set("0123456789abcdef") for h in hashes)


# --- sealing


@given(st.text(), st.text())
def test_sealed_text_comes_back_for_its_tenant_only(text: str, tenant: str) -> None:
    sealed = FIXED.seal(text, tenant)
    assert FIXED.unseal(sealed, tenant) == text
    assert FIXED.seal(text, tenant) == sealed
    for other, whose in ((FIXED, tenant + "x"), (OTHER, tenant)):
        with pytest.raises(CorruptState):
            other.unseal(sealed, whose)


OTHER = Secrets.draw()


def test_a_flipped_bit_is_noticed() -> None:
    sealed = FIXED.seal("acct-1@example.org", "t")
    assert b"acct-1" not in sealed
    for i in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[i] ^= 1
        with pytest.raises(CorruptState):
            FIXED.unseal(bytes(damaged), "t")
    for cut in range(len(sealed)):
        with pytest.raises(CorruptState):
            FIXED.unseal(sealed[:cut], "t")


def test_nonces_differ_between_texts_and_tenants() -> None:
    nonces = {FIXED.seal(text, tenant)[1:13] for text in ("a", "b", "") for tenant in ("x", "y")}
    assert len(nonces) == 6
