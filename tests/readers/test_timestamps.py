"""Time stamps on evidence: a real authority (openssl ts), by files and by HTTP, and what must not hold."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consumers import cli, config
from consumers.errors import ConfigError, InvalidInput, Refused
from consumers.readers.custody_report import Examination, checks_of
from consumers.readers.evidence import BaselineNamed, Checked, Manifest, verify
from consumers.readers.timestamps import REQUEST_TYPE, request_of, stamp_of
from consumers.wiring.timestamps import stamped_bundle

pytest.importorskip("rfc3161_client")

TSA = """
[tsa]
default_tsa = one
[one]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
certs = {folder}/ca.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
accuracy = secs:1
ess_cert_id_chain = yes
"""


@dataclass(frozen=True)
class Authority:
    folder: Path

    @property
    def certificates(self) -> bytes:
        return (self.folder / "ca.pem").read_bytes()

    def stamps(self, request: bytes) -> bytes:
        """What the authority answers."""
        (self.folder / "request.tsq").write_bytes(request)
        _openssl(
            "ts", "-reply", "-config", str(self.folder / "tsa.conf"),
            "-queryfile", str(self.folder / "request.tsq"), "-out", str(self.folder / "response.tsr"),
        )  # fmt: skip
        return (self.folder / "response.tsr").read_bytes()


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


def authority_in(folder: Path) -> Authority:
    """A root and a certificate for stamping, made by openssl."""
    folder.mkdir()
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    _openssl("req", "-x509", *key, "-subj", "/CN=Test Root", "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.pem")
    _openssl(
        "req",
        "-new",
        *key[:-2],
        "-subj",
        "/CN=Test Authority",
        "-keyout",
        f"{folder}/tsa.key",
        "-out",
        f"{folder}/tsa.csr",
    )
    (folder / "use.conf").write_text("extendedKeyUsage = critical,timeStamping\n")
    _openssl(
        "x509", "-req", "-in", f"{folder}/tsa.csr", "-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key", "-days", "2",
        "-set_serial", "7", "-extfile", f"{folder}/use.conf", "-out", f"{folder}/tsa.pem",
    )  # fmt: skip
    (folder / "serial").write_text("01\n")
    (folder / "tsa.conf").write_text(TSA.format(folder=folder))
    return Authority(folder)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return authority_in(tmp_path_factory.mktemp("authority") / "one")


def bundle(made_ms: int = 1_000) -> bytes:
    """A bundle without members, signed."""
    key = Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    manifest = Manifest(
        format=2, made_by="test", made_ms=made_ms, tenant="default", model_id="m", client="c" * 32, client_id="sealed",
        client_id_is="sealed", false_alarm_budget=0.01, baseline=BaselineNamed("map", "nulls", "0" * 64), log_cells=1, persona="",
        profile=[], decision_agrees=True, members={}, number=1, public_key=base64.b64encode(raw).decode(),
    )  # fmt: skip
    text = msgspec.json.encode(manifest)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("manifest.json", text)
        packed.writestr("manifest.sig", base64.b64encode(key.sign(text)))
    return out.getvalue()


@pytest.fixture(scope="module")
def one() -> Checked:
    return verify(bundle())


@pytest.fixture(scope="module")
def response(authority: Authority, one: Checked) -> bytes:
    return authority.stamps(request_of(one))


def test_a_stamp_says_when_and_by_whom_and_openssl_agrees(
    authority: Authority, one: Checked, response: bytes, tmp_path: Path
) -> None:
    assert request_of(one) == request_of(one)
    stamp = stamp_of(one, response, authority.certificates)
    assert stamp.authority == "CN=Test Authority"
    assert stamp.serial == 2
    assert abs(stamp.time_ms - (authority.folder / "response.tsr").stat().st_mtime * 1000) < 60_000
    # The way that the bundle's own METHOD.md names, without us.
    (tmp_path / "manifest.json").write_bytes(one.text)
    (tmp_path / "r.tsr").write_bytes(response)
    assert hashlib.sha256(one.text).hexdigest() == one.digest
    _openssl(
        "ts", "-verify", "-data", f"{tmp_path}/manifest.json", "-in", f"{tmp_path}/r.tsr", "-CAfile", f"{authority.folder}/ca.pem"
    )  # fmt: skip
    examined = Examination("case.zip", b"", one, False, None, None, "me", 0, stamp)
    (said,) = [check for check in checks_of(examined) if check.what == "Time stamp"]
    assert (said.outcome, "CN=Test Authority" in said.words) == ("holds", True)


def test_what_does_not_hold_is_refused_in_one_line(
    authority: Authority, one: Checked, response: bytes, tmp_path: Path
) -> None:
    another = authority_in(tmp_path / "another")
    refused = {
        "another bundle": (verify(bundle(2_000)), response, authority.certificates),
        "another authority": (one, response, another.certificates),
        "the same name by another root": (one, another.stamps(request_of(one)), authority.certificates),
        "no certificates": (one, response, b"none"),
        "no response": (one, b"", authority.certificates),
        "a long response": (one, b"0" * (2 << 20), authority.certificates),
        "a request in its place": (one, request_of(one), authority.certificates),
    }
    for what, (bundled, given, trusted) in refused.items():
        with pytest.raises(InvalidInput) as told:
            stamp_of(bundled, given, trusted)
        assert str(told.value).startswith("time stamp: "), what
        assert "\n" not in str(told.value), what


def test_a_flipped_bit_in_a_response_is_found_or_changes_nothing(
    authority: Authority, one: Checked, response: bytes
) -> None:
    """Certificates of the chain that nobody needs are not signed by the response; what it says is."""
    truth = stamp_of(one, response, authority.certificates)
    found = 0
    for position in range(0, len(response), 7):
        spoilt = bytearray(response)
        spoilt[position] ^= 1 << (position % 8)
        try:
            stamp = stamp_of(one, bytes(spoilt), authority.certificates)
        except InvalidInput:
            found += 1
        else:
            assert (stamp.time_ms, stamp.serial) == (truth.time_ms, truth.serial), position
    assert found > len(response) / 7 / 2


@pytest.fixture
def service(authority: Authority) -> Iterator[str]:
    """Address of the authority; under /broken it is away."""

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            good = self.path == "/tsa" and self.headers["Content-Type"] == REQUEST_TYPE
            content = authority.stamps(asked) if good else b""
            self.send_response(200 if good else 503)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_service_is_asked_and_its_answer_is_checked_from_the_terminal(
    authority: Authority, one: Checked, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "case.zip"
    blob = bundle(3_000)
    path.write_bytes(blob)
    monkeypatch.setenv("QUERYWARDEN_EVIDENCE__TIMESTAMP_URL", f"{service}/tsa")
    with pytest.raises((Refused, ConfigError)):
        stamped_bundle(config.load(None), verify(blob), path)  # plain http to a private address, which nothing allows
    monkeypatch.setenv("QUERYWARDEN_EVIDENCE__TIMESTAMP_ALLOW", "127.0.0.1")
    answered = stamped_bundle(config.load(None), verify(blob), path)
    assert answered == tmp_path / "case.zip.tsr"

    def checked(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["verify-evidence", str(path), *words])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    trusted = str(authority.folder / "ca.pem")
    status, out, err = checked("--timestamp-response", str(answered), "--timestamp-ca", trusted, "--json")
    assert status == 0, err
    assert json.loads(out)["stamped_ms"] > 0
    assert checked("--timestamp-response", str(answered))[0] == 2
    path.write_bytes(bundle(4_000))
    status, _, err = checked("--timestamp-response", str(answered), "--timestamp-ca", trusted)
    assert (status, "does not hold" in err) == (1, True)
    monkeypatch.setenv("QUERYWARDEN_EVIDENCE__TIMESTAMP_URL", f"{service}/broken")
    with pytest.raises(Refused, match="is written, but it has no time stamp"):
        stamped_bundle(config.load(None), verify(blob), path)
