"""explain, evidence, verify-evidence and backtest on a real small log: true, signed, replayable, and worthless once touched."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support import victims

from consumers import cli
from consumers.errors import Refused
from consumers.readers import custody
from consumers.readers.evidence import MAX_BYTES, fingerprint, signing_key, verify
from consumers.readers.timestamps import request_of
from consumers.secrets import Secrets
from detector.baseline_file import pack_baseline

ATTACKS = [("noise_uniform", "plain")]
QUERIES = (500, 700)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 12 honest clients and a thief, replayed into a store; the settings that name both are in `settings.toml`."""
    home = tmp_path_factory.mktemp("evidence")
    truth = victims.log_of(
        home / "log.jsonl", victims.streams(12, ATTACKS, seed=31, kinds=["regular", "light"], queries=QUERIES)
    )
    (home / "truth.json").write_text(json.dumps(truth))
    (home / "loans.baseline").write_bytes(pack_baseline(victims.baseline()))
    (home / "settings.toml").write_text(
        f'state_dir = "{home}"\nbaselines = ["{home / "loans.baseline"}"]\nstore = {{ url = "sqlite:///{home / "store.sqlite"}" }}\n'
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(
            [
                "replay",
                "--config",
                str(home / "settings.toml"),
                "--store",
                str(home / "store.sqlite"),
                str(home / "log.jsonl"),
            ]
        )
    assert ended.value.code == 0
    return home


@pytest.fixture(scope="module")
def thief(folder: Path) -> str:
    (found,) = [c for c, known in json.loads((folder / "truth.json").read_text()).items() if known["role"] == "attack"]
    return str(found)


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: str, settings: bool = True) -> tuple[int, str, str]:
        capsys.readouterr()
        more = ["--config", str(folder / "settings.toml")] if settings else []
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, *more])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


Run = Callable[..., tuple[int, str, str]]


def scores(run: Run) -> dict[str, dict[str, Any]]:
    return {row["client_id"]: row for row in map(json.loads, run("clients", "--json")[1].splitlines())}


def test_explain_says_what_the_store_says(run: Run, thief: str) -> None:
    status, out, _ = run("explain", thief, "--json")
    told = json.loads(out)
    known = scores(run)[thief]
    assert status == 0
    assert {k: told[k] for k in ("state", "suspicion", "queries", "evidence")} == {
        k: known[k] for k in ("state", "suspicion", "queries", "evidence")
    }
    assert told["summary"].startswith(f"{known['state'].capitalize()}: ")
    assert told["rarity"].startswith("1 in ")
    assert {s["signal"] for s in told["signals"]} == {e["signal"] for e in known["evidence"]}
    assert [s["value"] for s in told["signals"]] == sorted((s["value"] for s in told["signals"]), reverse=True)
    top = told["signals"][0]
    assert top["value"] > top["most"] >= top["high"] >= top["usual"]
    assert any(t["what"].startswith("alert") for t in told["timeline"])
    assert [t["time"] for t in told["timeline"]] == sorted(t["time"] for t in told["timeline"])
    assert told["gateways"].startswith("Gateways let it through: the detected decision ended on 2026-03-")
    assert sum("ateways" in words for words in [told["summary"], *told["what_would_change_it"]]) == 0


def test_explain_reads_well_and_names_who_is_not_known(run: Run, thief: str) -> None:
    status, out, _ = run("explain", thief)
    assert status == 0
    for words in (thief, "Gateways let it through", "history", "what would change it", "honest median"):
        assert words in out
    honest = next(c for c, row in scores(run).items() if row["state"] == "clear")
    assert "Clear: nothing unusual" in " ".join(run("explain", honest)[1].split())
    status, out, err = run("explain", "nobody")
    assert (status, out) == (1, "")
    assert "no client 'nobody' was assessed" in err


@pytest.fixture
def bundle(run: Run, thief: str, tmp_path: Path) -> Path:
    path = tmp_path / "case.zip"
    status, out, _ = run("evidence", thief, "--out", str(path))
    assert status == 0
    assert "signed by key" in out
    return path


def test_a_bundle_is_whole_replayable_and_sealed(run: Run, folder: Path, thief: str, bundle: Path) -> None:
    signer = verify(bundle.read_bytes()).signer
    words = ("verify-evidence", str(bundle), "--baseline", str(folder / "loans.baseline"), "--signer", signer, "--json")
    status, out, _ = run(*words, settings=False)
    said = json.loads(out)
    assert status == 0
    assert said["assessed_again"] is True
    assert said["differences"] == []
    with zipfile.ZipFile(bundle) as packed:
        everything = b"".join(packed.read(name) for name in packed.namelist())
        decision = json.loads(packed.read("decision.json"))
        manifest = json.loads(packed.read("manifest.json"))
        assert {"METHOD.md", "alerts.json", "assessment.json", "audit.jsonl", "profile/000.qp"} <= set(
            packed.namelist()
        )
    assert thief.encode() not in everything
    assert manifest["decision_agrees"] is True
    known = scores(run)[thief]
    assert decision["suspicion"] == known["suspicion"]
    key = Secrets.load(folder / "secrets.json")
    assert key.unseal(base64.b64decode(manifest["client_id"]), "default") == thief
    assert signer == fingerprint(signing_key(key).public_key().public_bytes_raw())


def test_a_bundle_in_clear_names_the_client(run: Run, thief: str, tmp_path: Path) -> None:
    request = tmp_path / "clear.tsq"
    assert (
        run("evidence", thief, "--out", str(tmp_path / "clear.zip"), "--clear", "--timestamp-request", str(request))[0]
        == 0
    )
    assert request.read_bytes() == request_of(verify((tmp_path / "clear.zip").read_bytes()))
    with zipfile.ZipFile(tmp_path / "clear.zip") as packed:
        decision, (alert, *_) = json.loads(packed.read("decision.json")), json.loads(packed.read("alerts.json"))
    assert decision["client_id"] == decision["alert"]["client_id"] == alert["client_id"] == thief


@pytest.fixture
def chain(run: Run, thief: str, tmp_path: Path) -> list[Path]:
    """Three bundles of one installation, the last with the result of a test for marked answers."""
    found = json.dumps([{"client_id": "another", "p_value": 1.0}, {"client_id": thief, "p_value": 1e-9, "canaries": 9, "shown": 8,
                                                                   "controls": 90, "controls_shown": 3}])  # fmt: skip
    (tmp_path / "marks.json").write_text(found)
    files = [tmp_path / f"{i}.zip" for i in range(3)]
    for file in files:
        more = ("--canaries", str(tmp_path / "marks.json")) if file == files[-1] else ()
        assert run("evidence", thief, "--out", str(file), *more)[0] == 0
    return files


def mirror(folder: Path) -> bytes:
    return (folder / "audit.jsonl").read_bytes()


def test_bundles_follow_from_each_other_and_the_audit_log_holds_them(run: Run, folder: Path, chain: list[Path]) -> None:
    found = [verify(file.read_bytes()) for file in chain]
    first = found[0].manifest.number
    assert [one.manifest.number for one in found] == [first, first + 1, first + 2]
    assert [one.manifest.previous for one in found[1:]] == [one.digest for one in found[:-1]]
    assert custody.follow(found) == []
    assert custody.follow([found[2], found[0]]) == [first + 1]
    for one in found:
        assert custody.recorded(one, mirror(folder).splitlines()).actor
    assert run("audit", "verify")[0] == 0

    other = signed_anew(chain[1].read_bytes(), lambda members, manifest: manifest.update(made_ms=1))
    with pytest.raises(Refused, match="does not follow"):
        custody.follow([verify(other), found[2]])
    with pytest.raises(Refused, match="two bundles with the number"):
        custody.follow([verify(other), found[1]])
    with pytest.raises(Refused, match="no row of this bundle"):
        custody.recorded(verify(other), mirror(folder).splitlines())


def test_a_flipped_bit_in_a_bundle_or_in_the_log_is_found(folder: Path, chain: list[Path]) -> None:
    """Everything that a bundle says; a bit of the zip's own bookkeeping (dates, flags) says nothing and may go unnoticed."""
    blob, log = chain[2].read_bytes(), mirror(folder)
    whole, quiet = verify(blob), 0
    for at in range(0, len(blob), max(1, len(blob) // 1500)):
        changed = bytearray(blob)
        changed[at] ^= 1 << at % 8
        try:
            again = verify(bytes(changed))
        except Refused:
            continue
        quiet += 1
        assert (again.manifest, again.members, again.digest) == (whole.manifest, whole.members, whole.digest)
    assert quiet < 300
    rows = log.splitlines()
    start = sum(
        len(line) + 1 for line in rows[: next(i for i, line in enumerate(rows) if whole.digest.encode() in line)]
    )
    for at in range(start, len(log.rstrip(b"\n")), 7):
        line = log[: log.find(b"\n", at)].rsplit(b"\n", 1)[-1]
        if line.startswith(b'{"head":'):
            continue
        changed = bytearray(log)
        changed[at] ^= 2
        with pytest.raises(Refused):
            custody.recorded(whole, bytes(changed).splitlines())


def test_the_report_says_what_was_checked_and_what_was_not(
    run: Run, folder: Path, chain: list[Path], tmp_path: Path
) -> None:
    page, signer = tmp_path / "report.html", verify(chain[2].read_bytes()).signer
    words = ("verify-evidence", str(chain[2]), "--report", str(page), "--by", "A. <Expert>", "--json")
    assert run(*words, settings=False)[0] == 0
    bare = page.read_text()
    assert "A. &lt;Expert&gt;" in bare
    assert bare.count(">not checked<") == 5
    more = (
        "--baseline",
        str(folder / "loans.baseline"),
        "--signer",
        signer,
        "--earlier",
        str(chain[1]),
        "--audit",
        str(folder / "audit.jsonl"),
    )
    status, out, _ = run(*words, *more, settings=False)
    said = json.loads(out)
    assert (status, said["chained_with"], said["missing"]) == (0, 1, [])
    full = page.read_text()
    assert full.count(">not checked<") == 1, "nobody stamped it"
    for part in (
        said["digest"],
        verify(chain[1].read_bytes()).digest,
        "8 of 9 marked",
        "gives the same figures",
        "What it does not show",
    ):
        assert part in full
    assert "<script" not in full


def test_who_looked_at_a_client_is_listed(run: Run, thief: str, tmp_path: Path) -> None:
    honest = next(c for c in scores(run) if c != thief)
    run("explain", honest)
    run("evidence", honest, "--out", str(tmp_path / "a.zip"))
    rows = [json.loads(line) for line in run("audit", "views", honest, "--json")[1].splitlines()]
    assert [row["action"] for row in rows][-2:] == ["client.view", "evidence.make"]
    assert all("@" in row["actor"] for row in rows)
    assert honest not in json.dumps(rows)


def test_a_result_about_others_is_no_result(run: Run, thief: str, tmp_path: Path) -> None:
    (tmp_path / "marks.json").write_text('[{"client_id": "another", "p_value": 1e-9}]')
    status, _, err = run(
        "evidence", thief, "--out", str(tmp_path / "x.zip"), "--canaries", str(tmp_path / "marks.json")
    )
    assert (status, "no result about this client" in err) == (2, True)
    assert not (tmp_path / "x.zip").exists()


def test_what_people_did_is_in_it_and_what_they_did_to_others_is_not(run: Run, thief: str, tmp_path: Path) -> None:
    honest = next(c for c in scores(run) if c != thief)
    for client in (thief, honest):
        assert run("decisions", "block", client, "--reason", "seen", "--model", victims.MODEL)[0] == 0
    run("evidence", thief, "--out", str(tmp_path / "a.zip"))
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        rows = [json.loads(line) for line in packed.read("audit.jsonl").splitlines()]
    assert rows
    assert {r["object"].split()[0] for r in rows} == {
        f"client:{json.loads(run('explain', thief, '--json')[1])['client_key']}"
    }


def rewritten(blob: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(blob)) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    change(members)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, body in members.items():
            packed.writestr(name, body)
    return out.getvalue()


def test_every_member_that_is_touched_makes_it_worthless(bundle: Path) -> None:
    blob = bundle.read_bytes()
    assert verify(rewritten(blob, lambda members: None)).differences == []
    with zipfile.ZipFile(io.BytesIO(blob)) as packed:
        kept = {name: packed.read(name) for name in packed.namelist()}
    assert len(kept) >= 8
    for name, body in kept.items():
        for other in (body + b" ", body[:-2] or b"x", bytes([body[0] ^ 1]) + body[1:] if body else b"\n", b"{}", None):
            with pytest.raises(Refused, match="evidence: "):
                verify(rewritten(blob, lambda m, name=name, other=other: touch(m, name, other)))  # type: ignore[misc]


def touch(members: dict[str, bytes], name: str, body: bytes | None) -> None:
    if body is None:
        del members[name]
    else:
        members[name] = body


def test_an_added_a_doubled_and_a_huge_member_are_refused(bundle: Path) -> None:
    blob = bundle.read_bytes()
    with pytest.raises(Refused, match=r"extra\.txt is not named"):
        verify(rewritten(blob, lambda m: m.update({"extra.txt": b""})))
    doubled = io.BytesIO(blob)
    with zipfile.ZipFile(doubled, "a") as packed, pytest.warns(UserWarning, match="Duplicate"):
        packed.writestr("decision.json", b"{}")
    with pytest.raises(Refused, match="twice"):
        verify(doubled.getvalue())
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("manifest.json", b"\0" * (MAX_BYTES + 1))
    with pytest.raises(Refused, match="MB"):
        verify(bomb.getvalue())
    for cut in (b"", b"PK", blob[:-30], blob[: len(blob) // 2], b"x" * 500):
        with pytest.raises(Refused, match="evidence: "):
            verify(cut)


def test_signed_anew_by_somebody_else_it_is_theirs(bundle: Path) -> None:
    """Whoever may sign can sign anything: only the fingerprint tells whose it is."""
    other = Ed25519PrivateKey.generate()
    blob = bundle.read_bytes()

    def again(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        manifest["public_key"] = base64.b64encode(other.public_key().public_bytes_raw()).decode()
        members["manifest.json"] = json.dumps(manifest).encode()
        members["manifest.sig"] = base64.b64encode(other.sign(members["manifest.json"]))

    forged, ours = rewritten(blob, again), verify(blob).signer
    assert verify(forged).signer != ours
    with pytest.raises(Refused, match="not by"):
        verify(forged, signer=ours)


def signed_anew(blob: bytes, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> bytes:
    """The bundle with a changed manifest, well signed by a stranger; `change` gets members and manifest, the latter may turn into text."""
    stranger = Ed25519PrivateKey.from_private_bytes(b"m" * 32)

    def again(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        manifest["public_key"] = base64.b64encode(stranger.public_key().public_bytes_raw()).decode()
        change(members, manifest)
        members["manifest.json"] = manifest.get("", json.dumps(manifest)).encode()
        members["manifest.sig"] = base64.b64encode(stranger.sign(members["manifest.json"]))

    return rewritten(blob, again)


def paths_of(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value of a JSON document stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(path for key, one in inner for path in paths_of(one, (*above, key)))]


ODD: tuple[Any, ...] = (None, -5, 2**70, 1e999, "x", "", True, [1], {"a": None}, [[]], "\x1b[2J", "x" * 5000)


def test_a_hostile_bundle_is_refused_in_one_line_however_well_it_is_signed(folder: Path, bundle: Path) -> None:
    blob, baseline = bundle.read_bytes(), (folder / "loans.baseline").read_bytes()
    honest = signed_anew(blob, lambda members, manifest: None)
    assert verify(honest, baseline).differences == [], "the control: nothing but the signer changed"
    with zipfile.ZipFile(io.BytesIO(blob)) as packed:
        whole = json.loads(packed.read("manifest.json"))
    said: list[str] = []
    for path in paths_of(whole)[1:]:
        for odd in (*ODD, KeyError):  # KeyError: left out

            def change(members: dict[str, bytes], manifest: dict[str, Any], path: Any = path, odd: Any = odd) -> None:
                at: Any = manifest
                for key in path[:-1]:
                    at = at[key]
                if odd is KeyError:
                    del at[path[-1]]
                else:
                    at[path[-1]] = odd

            try:
                verify(signed_anew(blob, change), baseline)
                said.append("")
            except Refused as error:
                said.append(str(error))
    assert all(words.startswith("evidence: ") and "\n" not in words for words in said if words)
    assert 0 < said.count("") < 60, "only texts that mean nothing for the check may say what they like"
    for text in ("[" * 100_000, '{"members":' * 50_000, "null", "[]", "{}", '{"format": 1}', '{"format": [1]}'):
        with pytest.raises(Refused, match="evidence: "):
            verify(signed_anew(blob, lambda members, manifest, text=text: manifest.update({"": text})), baseline)  # type: ignore[misc]
    for wrong in ({"log_cells": -5}, {"log_cells": 0}, {"made_ms": "x"}, {"made_ms": -1}, {"false_alarm_budget": 2}):
        with pytest.raises(Refused, match="the manifest is not valid"):
            verify(signed_anew(blob, lambda members, manifest, wrong=wrong: manifest.update(wrong)))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "junk"),
    [("decision.json", b"null"), ("decision.json", b"["), ("alerts.json", b"{}"), ("audit.jsonl", b"{}\nx\n"), ("audit.jsonl", b"[1]\n")],
)  # fmt: skip
def test_a_member_that_is_not_what_it_is_called_is_named(bundle: Path, name: str, junk: bytes) -> None:
    def spoil(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
        members[name] = junk
        manifest["members"][name] = {"sha256": hashlib.sha256(junk).hexdigest(), "bytes": len(junk)}

    with pytest.raises(Refused, match=f"{name} cannot be read"):
        verify(signed_anew(bundle.read_bytes(), spoil))


def test_an_assessment_that_is_none_is_refused(folder: Path, bundle: Path) -> None:
    baseline = (folder / "loans.baseline").read_bytes()
    for body in (b"[", b"[" * 100_000, b"[]", b'"x"', b"\xff"):

        def change(members: dict[str, bytes], manifest: dict[str, Any], body: bytes = body) -> None:
            members["assessment.json"] = body
            manifest["members"]["assessment.json"] = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}

        with pytest.raises(Refused, match="evidence: profile or assessment"):
            verify(signed_anew(bundle.read_bytes(), change), baseline)


def test_scores_that_the_profile_does_not_give_are_found(folder: Path, bundle: Path) -> None:
    key = signing_key(Secrets.load(folder / "secrets.json"))
    baseline = (folder / "loans.baseline").read_bytes()

    def lied(members: dict[str, bytes]) -> None:
        said = json.loads(members["assessment.json"]) | {"suspicion": 0.5}
        members["assessment.json"] = json.dumps(said).encode()
        manifest = json.loads(members["manifest.json"])
        body = members["assessment.json"]
        manifest["members"]["assessment.json"] = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
        members["manifest.json"] = json.dumps(manifest).encode()
        members["manifest.sig"] = base64.b64encode(key.sign(members["manifest.json"]))

    checked = verify(rewritten(bundle.read_bytes(), lied), baseline)
    assert [d.split(":")[0] for d in checked.differences] == ["suspicion"]
    with pytest.raises(Refused, match="SHA-256"):
        verify(bundle.read_bytes(), pack_baseline(victims.narrow_baseline()))


def test_backtest_says_who_at_which_budget_and_writes_nothing(run: Run, folder: Path, thief: str) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    status, out, _ = run("backtest", str(folder / "log.jsonl"), "--budget", "0.05", "--budget", "0.01", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    budgets = [line for line in lines if line["kind"] == "budget"]
    clients = [line for line in lines if line["kind"] == "client"]
    assert status == 0
    assert [b["budget"] for b in budgets] == [0.05, 0.01]
    assert all(sum(b["states"].values()) == 13 for b in budgets)
    assert budgets[0]["flagged"] >= budgets[1]["flagged"] >= 1
    assert thief in {c["client_id"] for c in clients}
    flagged = {c for c, row in scores(run).items() if row["state"] in ("throttle", "block")}
    assert {c["client_id"] for c in clients if c["p_value"] <= 0.01} == flagged, "the same as the service at its budget"
    mine = next(c for c in clients if c["client_id"] == thief)
    assert 0 < mine["alarm_at_query"] <= mine["queries"]
    assert budgets[1]["enforced"]["observe"] == {"throttle": 0, "block": 0}
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    assert "nothing was written" in run("backtest", str(folder / "log.jsonl"))[1]


def test_wrong_calls_end_in_one_line(run: Run, tmp_path: Path, thief: str) -> None:
    for words, code in (
        (("evidence", thief, "--out", str(tmp_path / "no" / "f.zip")), 2),
        (("evidence", "nobody", "--out", str(tmp_path / "f.zip")), 1),
        (("explain", thief, "--model", "other"), 1),
        (("backtest", "log", "--budget", "0.9"), 2),
    ):
        status, _, err = run(*words)
        assert status == code, words
        assert len(err.strip().splitlines()) == 1, words
    assert run("verify-evidence", str(tmp_path / "none.zip"), settings=False)[0] == 1
