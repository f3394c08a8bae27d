"""Ask the time stamp service that the settings name about an evidence bundle.

Rules: the bundle is written first, so it is not lost where the service is away. What the service answered is a file beside it, which only
`verify-evidence` judges. Only the digest of the manifest is sent.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from consumers import atomic_file, config
from consumers.alerts.outbound import AllowedHosts, Outbound
from consumers.errors import Refused, Unavailable, Undeliverable
from consumers.readers.evidence import Checked
from consumers.readers.timestamps import REQUEST_TYPE, RESPONSE_TYPE, request_of


def stamped_bundle(settings: config.Settings, bundle: Checked, path: Path) -> Path:
    """Ask for a stamp and write the answer beside the bundle's file. Raises Refused where there is none, ConfigError."""
    answered = path.with_name(f"{path.name}.tsr")
    allow = AllowedHosts.of(settings.evidence.timestamp_allow)
    headers = {"Content-Type": REQUEST_TYPE, "Accept": RESPONSE_TYPE}
    with contextlib.closing(Outbound(settings.evidence.timestamp_url, what="time stamp", allow=allow)) as service:
        try:
            response = service.post(request_of(bundle), headers)
        except (Unavailable, Undeliverable) as error:
            raise Refused(f"{path} is written, but it has no time stamp: {error}") from error
    with atomic_file.whole(answered) as draft:
        draft.write_bytes(response)
    return answered
