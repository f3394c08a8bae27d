"""Time stamps of an outside authority on evidence bundles (RFC 3161). Extra ``[timestamps]``.

A bundle says itself when it was made. A time stamp is an authority's signature over the digest of the bundle's manifest and a time, so it
shows that the bundle, and every bundle before it in the chain, existed then.

Rules:
* Only a digest leaves the house: the request is SHA-256 of the manifest. It holds no nonce, so it can be made anew from the bundle at any
  time; an older answer to the same request is as good, because no other bundle has this digest.
* A response is a file beside the bundle. It is hostile until checked: its size is bounded, and it counts only under certificates of an
  authority that the person who checks has chosen.
* The authority's certificate must have been valid at the time that it states. Whether it was revoked is not asked: that needs a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptography import x509

from consumers.errors import ConfigError, InvalidInput
from consumers.readers.evidence import Checked
from consumers.times import rfc3339

MAX_BYTES = 1 << 20
REQUEST_TYPE, RESPONSE_TYPE = "application/timestamp-query", "application/timestamp-reply"
SHA256 = "2.16.840.1.101.3.4.2.1"


@dataclass(frozen=True, slots=True)
class Stamp:
    """A time stamp that holds. time_ms: when the authority says that it saw the digest; authority: subject of its certificate."""

    time_ms: int
    authority: str
    serial: int

    @property
    def words(self) -> str:
        """One clause for people."""
        return f"{self.authority} stamped the digest of this bundle at {rfc3339(self.time_ms)} (serial number {self.serial})"


def request_of(one: Checked) -> bytes:
    """The request for a bundle, DER. Raises ConfigError without the extra."""
    client = _library()
    builder = client.TimestampRequestBuilder().data(one.text).hash_algorithm(client.base.HashAlgorithm.SHA256)
    made: bytes = builder.nonce(nonce=False).cert_request(cert_request=True).build().as_bytes()
    return made


def stamp_of(one: Checked, response: bytes, authorities: bytes) -> Stamp:
    """Check a response.

    response     DER, as the authority gave it
    authorities  PEM certificates that are trusted as roots, and intermediate ones

    Raises InvalidInput in one line for a response that does not hold; ConfigError without the extra.
    """
    client = _library()
    if len(response) > MAX_BYTES or len(authorities) > MAX_BYTES:
        raise InvalidInput(f"time stamp: a file of more than {MAX_BYTES >> 20} MB")
    try:
        roots = x509.load_pem_x509_certificates(authorities)
    except ValueError as error:
        raise InvalidInput("time stamp: the authority's certificates cannot be read (PEM is wanted)") from error
    try:
        answer = client.decode_timestamp_response(response)
        if answer.status not in (0, 1):
            raise InvalidInput(f"time stamp: the authority refused the request (status {int(answer.status)})")
        info = answer.tst_info
        if info.message_imprint.hash_algorithm.dotted_string != SHA256:
            raise InvalidInput("time stamp: the response is not about a SHA-256 digest")
        verifier = client.VerifierBuilder(roots=roots).build()
        verifier.verify(answer, bytes.fromhex(one.digest))
        signer = next(iter(answer.signed_data.signer_infos)).serial_number
        names = [
            certificate.subject.rfc4514_string()
            for certificate in map(x509.load_der_x509_certificate, answer.signed_data.certificates)
            if certificate.serial_number == signer
        ]
        return Stamp(int(info.gen_time.timestamp() * 1000), names[0] if names else "an authority", info.serial_number)
    except client.errors.VerificationError as error:
        raise InvalidInput(f"time stamp: it does not hold: {_line(error)}") from error
    except (ValueError, TypeError, OverflowError, StopIteration) as error:
        raise InvalidInput(f"time stamp: the response is damaged: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _library() -> Any:
    try:
        import rfc3161_client
        import rfc3161_client.base
        import rfc3161_client.errors
    except ImportError as error:
        raise ConfigError("time stamps need the extra: pip install 'querywarden[timestamps]'") from error
    return rfc3161_client
