"""What an error of kafka-python means for the process: wait for the brokers, or end with one line that names the setting.

Rules:
* An error that passes by itself is `Unavailable`. An error that only a person can resolve is `Refused`, and its line begins with the
  setting.
* If a group does not accept this member, it is refused: the library alone would try again for ever, without a message.
"""

from __future__ import annotations

import kafka.errors as errors

from consumers.errors import Refused, Unavailable

GROUP: dict[type[Exception], str] = {
    errors.InconsistentGroupProtocolError: (
        "kafka.group_id: consumers of another assignment protocol hold the group {group}; give QueryWarden a group of its own"
    ),
    errors.InvalidSessionTimeoutError: (
        "kafka.session_timeout_ms: the brokers do not allow it (group.min.session.timeout.ms, group.max.session.timeout.ms)"
    ),
    errors.InvalidGroupIdError: "kafka.group_id: the brokers do not take the name {group}",
    errors.GroupMaxSizeReachedError: "kafka.group_id: the group {group} has as many members as the brokers allow",
    errors.FencedInstanceIdError: "kafka.group_instance_id: another process in the group {group} has the same name",
}
"""Why a group does not take a member → the line for people."""


def translated(error: errors.KafkaError, group: str = "") -> Unavailable | Refused:
    """Turn the library's error into an instruction; `group` names the consumer group in the line."""
    text = str(error) or type(error).__name__
    if type(error) in GROUP:
        return Refused(GROUP[type(error)].format(group=group))
    if isinstance(error, (errors.AuthorizationError, errors.SaslAuthenticationFailedError)):
        return Refused(f"Kafka refuses the login: {text}")
    if isinstance(error, errors.KafkaConfigurationError):
        return Refused(f"Kafka settings: {text}")
    return Unavailable(f"Kafka: {text}")
