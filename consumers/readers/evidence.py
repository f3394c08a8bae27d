"""Evidence bundles: a signed file about one client with its decision, the data behind it, and the means to check both.

Rules:
* A bundle is a zip of plain files. ``manifest.json`` names every member with its SHA-256. ``manifest.sig`` is an Ed25519 signature of its
  bytes. A member that is missing, changed, doubled or not named makes the bundle invalid, and so does any change of the manifest.
* A bundle can be replayed: it holds the bytes of the profile. With the baseline file (the manifest holds its hash) the profile can be
  assessed again, and the scores are the same within 1e-9.
* The client's id is sealed unless it is requested in clear; the bundle then names the client by its keyed hash.
* A bundle is hostile until checked, even if its signature is valid, because anybody can sign. So sizes are bounded before anything is
  unpacked, nothing is written to a path from inside, and the manifest is a typed structure whose every value is bounded.
* The same inputs give the same bytes.
* Bundles of a tenant form a chain: each names the digest (SHA-256 of the manifest) of the one before it. Making a bundle writes its number,
  digest and predecessor into the audit log, so that none can be left out, exchanged or made afterwards without a trace.
"""

from __future__ import annotations

import base64
import hashlib
import io
import reprlib
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from consumers.errors import InvalidInput
from consumers.records.decision import StoredDecision
from consumers.records.spans import Span, read_span, together
from consumers.secrets import Secrets
from detector.baseline import Baseline
from detector.baseline_file import read_baseline
from detector.errors import IncompatibleProfile
from detector.scoring import Assessment, assess

FORMAT: Literal[2] = 2
FORMATS = (1, 2)
"""Format 1 has no place in a chain."""

MANIFEST, SIGNATURE, ASSESSMENT, CANARIES = "manifest.json", "manifest.sig", "assessment.json", "canaries.json"
MAX_BYTES = 64 * 2**20
MAX_MEMBERS = 4_096
SAME = 1e-9
_EPOCH = (1980, 1, 1, 0, 0, 0)

METHOD = """# What this bundle says, and how to check it

A client of a prediction service was assessed by QueryWarden, which compares the whole of a client's queries with honest use of
the same model.

* `decision.json` – the decision as it stood, with its reason, evidence and history.
* `alerts.json` – the findings that were sent, if there were any.
* `assessment.json` – the assessment of the profile in this bundle, computed when the bundle was made.
* `profile/*.qp` – the client's profile, one file for each partition of the query log: counts, sets of keyed hashes of its
  distinct queries with marks for what is odd about them, and running maxima. No query is in it.
* `audit.jsonl` – what people did about this client, with the hashes that chain it to the audit log.
* `canaries.json` – if there is one: what a suspected copy of the model answered at inputs where this client had been given a marked
  answer, against controls. Its p-value is the chance that a model which never saw marked answers shows as many marks or more.

The manifest names the bundle before this one by the SHA-256 of its manifest; the audit log holds both.

`suspicion` is one minus the lifetime p-value: how rarely an honest client *ever* gets this far, by the honest clients that the
baseline was calibrated on (conformal rank, and a Pareto tail beyond them). A state follows from the p-value and the false-alarm
budget a: watch at 5a, throttle at a, block at a/10 with at least 30 odd distinct queries. It is evidence of behaviour, not of
intent.

Beside the bundle there may be a time stamp of an outside authority (RFC 3161, a `.tsr` file) over the SHA-256 of the manifest. By hand:
`openssl ts -verify -data manifest.json -in FILE.tsr -CAfile AUTHORITY.pem`.

To check: `querywarden verify-evidence FILE --baseline BASELINE`. It checks the signature and every hash, assesses the profile
again and compares. By hand: SHA-256 of each member against `manifest.json`; Ed25519 over the bytes of `manifest.json` with
`public_key` (base64, raw), which you should have from somewhere else.
"""


Natural = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]
MaybeHex = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]
Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class BaselineNamed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The baseline that the bundle was made with."""

    map_id: Text
    nulls_version: Text
    sha256: Hex


class ProfileNamed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the profile: which member, of which log cell and window."""

    member: Text
    cell: Text
    window: Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]


class MemberNamed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the bundle; the manifest and its signature are not among them."""

    sha256: Hex
    bytes: Natural


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`manifest.json`. made_ms: ms since the epoch; public_key: base64, raw; members: by name.

    number    of the bundle among those of its tenant, from 1; 0 in format 1
    previous  digest of the bundle before it, empty for the first
    """

    format: Literal[1, 2]
    made_by: Text
    made_ms: Natural
    tenant: Text
    model_id: Text
    client: Text
    client_id: Text
    client_id_is: Literal["clear", "sealed"]
    false_alarm_budget: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    baseline: BaselineNamed
    log_cells: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    persona: Text
    profile: Annotated[list[ProfileNamed], msgspec.Meta(max_length=MAX_MEMBERS)]
    decision_agrees: bool
    members: Annotated[dict[Text, MemberNamed], msgspec.Meta(max_length=MAX_MEMBERS)]
    number: Natural = 0
    previous: MaybeHex = ""
    public_key: Annotated[str, msgspec.Meta(max_length=64)]


class _Format(msgspec.Struct):
    format: object = None


@dataclass(frozen=True, slots=True)
class EvidenceCase:
    """What goes into a bundle.

    client         keyed hash; decision and alerts hold the id in clear, `sealed_id` replaces it unless `clear`
    baseline_file  bytes of the baseline's file
    cells          log cells that hold something of the client: one means that its order is known
    audit          rows of the audit log that are about this client, as stored
    canaries       of this client, as ``watermark verify --json`` gives it; None: there was no such test
    """

    tenant: str
    model: str
    client: str
    sealed_id: str
    decision: StoredDecision
    alerts: Sequence[Mapping[str, Any]]
    spans: Sequence[Span]
    cells: int
    baseline: Baseline
    baseline_file: bytes
    audit: Sequence[bytes]
    budget: float
    made_ms: int
    version: str
    canaries: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """A bundle that is whole.

    signer       fingerprint of the key that signed it
    digest       SHA-256 of the manifest: its name in the chain
    text         the manifest's bytes, of which `digest` is the SHA-256
    members      content by name, manifest and signature left out
    assessed     whether the profile was assessed again; differences: of the scores, empty when they agree
    """

    manifest: Manifest
    signer: str
    digest: str
    text: bytes
    members: Mapping[str, bytes]
    assessed: bool
    differences: Sequence[str]


def signing_key(secrets: Secrets) -> Ed25519PrivateKey:
    """The installation's evidence key; it follows from the secrets file, so a restored installation signs as before."""
    return Ed25519PrivateKey.from_private_bytes(secrets.derived("evidence"))


def fingerprint(raw: bytes) -> str:
    """Name of a public key: the first 32 hex digits of its SHA-256."""
    return hashlib.sha256(raw).hexdigest()[:32]


def bundle(
    case: EvidenceCase, key: Ed25519PrivateKey, clear: bool = False, number: int = 0, previous: str = ""
) -> bytes:
    """The zip. number, previous: its place in the chain, see `Manifest`. Raises InvalidInput when there is no profile to put in."""
    profile = together(case.spans)
    if profile is None:
        raise InvalidInput(
            "the store holds no profile of this client for this baseline, so there is nothing to assess again"
        )
    assessment = assess(profile, case.baseline, case.cells, case.decision.persona)
    shown = case.decision.client_id if clear else case.sealed_id
    decision = _renamed(case.decision.document(), shown)
    members = {
        "METHOD.md": METHOD.encode(),
        "decision.json": _json(decision),
        "alerts.json": _json([_renamed(dict(a), shown) for a in case.alerts]),
        ASSESSMENT: _json(_said(assessment)),
        "audit.jsonl": b"".join(row + b"\n" for row in case.audit),
    }
    if case.canaries is not None:
        members[CANARIES] = _json({**case.canaries, "client_id": shown})
    index = []
    for i, span in enumerate(sorted(case.spans, key=lambda s: s.cell)):
        name = f"profile/{i:03}.qp"
        members[name] = span.blob
        index.append(ProfileNamed(name, span.cell, span.window))
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    manifest = Manifest(
        format=FORMAT,
        made_by=f"querywarden {case.version}",
        made_ms=case.made_ms,
        tenant=case.tenant,
        model_id=case.model,
        client=case.client,
        client_id=shown,
        client_id_is="clear" if clear else "sealed",
        false_alarm_budget=case.budget,
        baseline=BaselineNamed(
            case.baseline.map_id, case.baseline.calibration_version, hashlib.sha256(case.baseline_file).hexdigest()
        ),
        log_cells=case.cells,
        persona=case.decision.persona,
        profile=index,
        decision_agrees=abs(case.decision.assessment.suspicion - assessment.suspicion) <= SAME,
        members={name: MemberNamed(hashlib.sha256(body).hexdigest(), len(body)) for name, body in members.items()},
        public_key=base64.b64encode(raw).decode(),
        number=number,
        previous=previous,
    )
    text = _json(manifest)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, body in {MANIFEST: text, SIGNATURE: base64.b64encode(key.sign(text)) + b"\n", **members}.items():
            packed.writestr(zipfile.ZipInfo(name, _EPOCH), body, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def verify(blob: bytes, baseline_file: bytes | None = None, signer: str | None = None) -> Checked:
    """Check a bundle.

    blob           the zip
    baseline_file  bytes of the baseline: the profile is then assessed again and the scores are compared
    signer         fingerprint that the key must have; None: any key, which proves only that nothing changed since

    Raises InvalidInput in one line for a bundle that is not whole, or not signed by `signer`.
    """
    members = _members(blob)
    try:
        text, signed = members.pop(MANIFEST), members.pop(SIGNATURE)
    except KeyError as error:
        raise InvalidInput(f"evidence: {error.args[0]} is missing") from error
    manifest = _manifest(text)
    try:
        signature = base64.b64decode(signed.removesuffix(b"\n"), validate=True)
        raw = base64.b64decode(manifest.public_key, validate=True)
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, text)
    except InvalidSignature as error:
        raise InvalidInput("evidence: the signature does not match the manifest") from error
    except ValueError as error:
        raise InvalidInput("evidence: the key or the signature is damaged") from error
    if signer is not None and fingerprint(raw) != signer.strip().lower():
        raise InvalidInput(f"evidence: signed by key {fingerprint(raw)}, not by {signer}")
    named = manifest.members
    for name in sorted(named.keys() | members.keys()):
        if name not in members:
            raise InvalidInput(f"evidence: {name} is missing")
        if name not in named:
            raise InvalidInput(f"evidence: {name} is not named by the manifest")
        if hashlib.sha256(members[name]).hexdigest() != named[name].sha256 or len(members[name]) != named[name].bytes:
            raise InvalidInput(f"evidence: {name} was changed")
    _check_readable(members)
    differences = [] if baseline_file is None else _differences(manifest, members, baseline_file)
    digest = hashlib.sha256(text).hexdigest()
    return Checked(manifest, fingerprint(raw), digest, text, members, baseline_file is not None, differences)


def _manifest(text: bytes) -> Manifest:
    """Raises InvalidInput in one line."""
    try:
        version = msgspec.json.decode(text, type=_Format).format
        if version not in FORMATS:
            raise InvalidInput(f"evidence: format {str(version)[:40]}, this version reads formats 1 and 2")
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"evidence: the manifest is not valid: {error}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidInput("evidence: the manifest is damaged") from error


def _check_readable(members: Mapping[str, bytes]) -> None:
    """What people read beside the profile must be what it is called. Raises InvalidInput."""
    kinds = {"decision.json": dict[str, Any], "alerts.json": list[dict[str, Any]], CANARIES: dict[str, Any]}
    lines = members.get("audit.jsonl", b"").splitlines()
    texts = [(name, members[name], kind) for name, kind in kinds.items() if name in members]
    for name, text, kind in (*texts, *(("audit.jsonl", line, dict[str, Any]) for line in lines)):
        try:
            msgspec.json.decode(text, type=kind)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise InvalidInput(f"evidence: {name} cannot be read") from error


def _members(blob: bytes) -> dict[str, bytes]:
    """All members in memory, within bounds. Raises InvalidInput."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as packed:
            entries = packed.infolist()
            if len(entries) > MAX_MEMBERS or sum(e.file_size for e in entries) > MAX_BYTES:
                raise InvalidInput(f"evidence: more than {MAX_MEMBERS} members or {MAX_BYTES >> 20} MB")
            found: dict[str, bytes] = {}
            for entry in entries:
                if entry.filename in found:
                    raise InvalidInput(f"evidence: {entry.filename} appears twice")
                with packed.open(entry) as member:
                    found[entry.filename] = member.read(entry.file_size + 1)
            return found
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise InvalidInput("evidence: the file is not a zip, or it is damaged") from error
    except (zlib.error, struct.error) as error:
        raise InvalidInput("evidence: the file is not a zip, or it is damaged") from error


def _differences(manifest: Manifest, members: Mapping[str, bytes], baseline_file: bytes) -> list[str]:
    baseline = read_baseline(baseline_file)
    sha = hashlib.sha256(baseline_file).hexdigest()
    if sha != manifest.baseline.sha256:
        raise InvalidInput(
            f"evidence: it was made with the baseline of SHA-256 {manifest.baseline.sha256}, this one has {sha}"
        )
    try:
        spans = [read_span(p.cell, p.window, members[p.member], baseline) for p in manifest.profile]
        profile = together(spans)
        then = msgspec.json.decode(members[ASSESSMENT], type=dict[str, Any])
    except KeyError as error:
        raise InvalidInput(f"evidence: {error.args[0]} is missing") from error
    except (IncompatibleProfile, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"evidence: profile or assessment cannot be read: {error}") from error
    if profile is None:
        raise InvalidInput("evidence: the bundle holds no profile")
    now = _said(assess(profile, baseline, manifest.log_cells, manifest.persona))
    return [
        f"{name}: {reprlib.repr(then.get(name))} in the bundle, {reprlib.repr(now[name])} now"
        for name in now
        if not _alike(then.get(name), now[name])
    ]


def _alike(one: Any, two: Any) -> bool:
    if isinstance(one, (int, float)) and isinstance(two, (int, float)):
        return one == two or abs(float(one) - float(two)) <= SAME * max(1.0, abs(one))
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_alike, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_alike(one[k], two[k]) for k in one)
    return bool(one == two)


def _said(assessment: Assessment) -> dict[str, Any]:
    said: dict[str, Any] = msgspec.to_builtins(assessment)
    return said | {"evidence": list(said["evidence"])}


def _renamed(body: dict[str, Any], shown: str) -> dict[str, Any]:
    renamed = body | {"client_id": shown}
    if isinstance(body.get("alert"), dict):
        renamed["alert"] = body["alert"] | {"client_id": shown}
    return renamed


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"
