"""What ingest keeps about a cell as a whole, as the store holds it: one opaque value, written with the offset (`Checkpoint.sketch`).

Rules:
* What is known of new clients comes first, as it was stored before there was anything else; where no half waits there is nothing else. So
  a store that never had a join stays readable by older versions.
* What cannot be read begins anew.
"""

from __future__ import annotations

from consumers.ingest.admission import Admission
from consumers.log.halves import WaitingHalves

_MAGIC = b"QWcell1\0"
_LENGTH = 8


def packed(admission: Admission, halves: WaitingHalves) -> bytes:
    """The value to store."""
    first = admission.to_bytes()
    if not halves.roles:
        return first
    return _MAGIC + len(first).to_bytes(_LENGTH, "little") + first + halves.to_bytes()


def unpacked(blob: bytes) -> tuple[Admission, WaitingHalves]:
    """What a stored value holds."""
    if not blob.startswith(_MAGIC):
        return Admission(blob), WaitingHalves()
    at = len(_MAGIC) + _LENGTH
    end = at + int.from_bytes(blob[len(_MAGIC) : at], "little")
    return Admission(blob[at:end]), WaitingHalves.from_bytes(blob[end:])
