"""Every error of kafka-python in our words: fix the settings, wait, or stop because records are gone.

Takes: exceptions of kafka-python and of sockets. Gives: errors of `contracts.errors`. Owns: the table of decisions.
Never: lets one of Kafka's exceptions leave this package; never repeats a password.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from kafka import errors as kafka_errors
from kafka.consumer.fetcher import RecordTooLargeError

from contracts.errors import CorruptError, DataLossError, FencedError, HeadwaterError, SettingsError, UnavailableError

_DOCTOR = "run headwater doctor"

SETTINGS = {
    name: hint
    for names, hint in (
        (
            "AuthorizationError TopicAuthorizationFailedError GroupAuthorizationFailedError ClusterAuthorizationFailedError "
            "TransactionalIdAuthorizationFailedError DelegationTokenAuthorizationFailedError",
            "grant this user the rights that docs/operations.md lists",
        ),
        (
            "SaslAuthenticationFailedError UnsupportedSaslMechanismError IllegalSaslStateError UnacceptableCredentialError "
            "SecurityDisabledError PrincipalDeserializationFailureError InvalidPrincipalTypeError "
            "DelegationTokenAuthDisabledError DelegationTokenNotFoundError DelegationTokenOwnerMismatchError "
            "DelegationTokenRequestNotAllowedError DelegationTokenExpiredError",
            "check HEADWATER_KAFKA_USERNAME, _PASSWORD, _SASL_MECHANISM and _SECURITY_PROTOCOL",
        ),
        (
            "MessageSizeTooLargeError RecordListTooLargeError RecordTooLargeError TelemetryTooLargeError",
            "store the media and send hw_payload_ref, or raise HEADWATER_MAX_RECORD_BYTES and the topic's max.message.bytes",
        ),
        (
            "InvalidTopicError InvalidPartitionsError InvalidReplicationFactorError InvalidReplicationAssignmentError "
            "InvalidConfigurationError PolicyViolationError TopicAlreadyExistsError TopicDeletionDisabledError",
            "check the topic's settings against the broker's; HEADWATER_KAFKA_REPLICATION sets the replicas",
        ),
        (
            "KafkaConfigurationError IllegalArgumentError IllegalStateError InvalidRequestError InvalidFetchRequestError "
            "InvalidRequiredAcksError InvalidTimestampError InvalidRecordError InvalidTransactionTimeoutError",
            "this is a fault in the settings or in headwater: report it with the message",
        ),
        (
            "UnsupportedVersionError IncompatibleBrokerVersion UnrecognizedBrokerVersion UnsupportedForMessageFormatError "
            "UnsupportedCodecError UnsupportedCompressionTypeError UnsupportedAssignorError UnsupportedEndpointTypeError "
            "MismatchedEndpointTypeError",
            "use Apache Kafka 2.8 or newer, and install the codec that the topic's records use",
        ),
        (
            "InvalidGroupIdError InvalidSessionTimeoutError InconsistentGroupProtocolError GroupMaxSizeReachedError "
            "OffsetMetadataTooLargeError InvalidCommitOffsetSizeError GroupSubscribedToTopicError NonEmptyGroupError "
            "GroupIdNotFoundError",
            "use another consumer group; do not mix other programs into headwater's groups",
        ),
        (
            "ResourceNotFoundError DuplicateResourceError InconsistentClusterIdError InvalidUpdateVersionError FeatureUpdateFailedError",
            _DOCTOR,
        ),
    )
    for name in names.split()
}
"""Class name -> hint: asking again cannot help."""

DATA_LOSS = frozenset({"OffsetOutOfRangeError", "LogTruncationError", "NoOffsetForPartitionError", "PositionOutOfRangeError"})
"""The position is not in the log (any more)."""

CORRUPT = frozenset({"CorruptRecordError"})
"""A record's checksum does not fit, after the client's own retries."""

FENCED = frozenset({"FencedInstanceIdError"})
"""Another process has this one's name in the group: it was started again, or two were given one name."""

WAIT = frozenset(
    """
    KafkaError KafkaProtocolError InvalidReceiveError CommitFailedError UnknownBrokerIdError QuotaViolationError BrokerResponseError
    UnknownError NoError BrokerNotAvailableError StaleControllerEpochError IllegalGenerationError UnknownMemberIdError
    RebalanceInProgressError MemberIdRequiredError FencedMemberEpochError StaleMemberEpochError
    UnreleasedInstanceIdError OutOfOrderSequenceNumberError DuplicateSequenceNumberError UnknownProducerIdError
    InvalidProducerEpochError InvalidProducerIdMappingError ProducerFencedError InvalidTxnStateError TransactionAbortedError
    TransactionAbortableError TransactionCoordinatorFencedError TransactionalIdNotFoundError OperationNotAttemptedError
    LogDirNotFoundError ReassignmentInProgressError NoReassignmentInProgressError StaleBrokerEpochError
    InconsistentVoterSetError SnapshotNotFoundError DuplicateBrokerRegistrationError BrokerIdNotRegisteredError
    IneligibleReplicaError NewLeaderElectedError OffsetMovedToTieredStorageError UnknownControllerIdError
    UnknownSubscriptionIdError InvalidRegistrationError InvalidRecordStateError InvalidShareSessionEpochError
    FencedStateEpochError InvalidVoterKeyError DuplicateVoterError VoterNotFoundError
    """.split()
)
"""Kafka calls these final for the request; a new attempt (with a new producer or after a rejoin) may succeed."""


def decision(kind: type[kafka_errors.KafkaError]) -> type[HeadwaterError] | None:
    """Our class for one of Kafka's, or None for a class that nobody has decided about yet."""
    name = kind.__name__
    if name in SETTINGS:
        return SettingsError
    if name in DATA_LOSS:
        return DataLossError
    if name in CORRUPT:
        return CorruptError
    if name in FENCED:
        return FencedError
    if name in WAIT or issubclass(kind, kafka_errors.RetriableError):
        return UnavailableError
    return None


def is_settings(error: BaseException) -> bool:
    """Whether trying again cannot help: one of Kafka's errors that is for us to fix."""
    return isinstance(error, kafka_errors.KafkaError) and decision(type(error)) is SettingsError


def kafka_error(error: BaseException, what: str) -> HeadwaterError:
    """Our error for one raised by kafka-python or by a socket under it.

    Parameters
    ----------
    what : str
        What was being done, for the message: "reading topic x".
    """
    name = type(error).__name__
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None) or name  # absent where Python and not OpenSSL raised it
        return SettingsError(f"{what}: TLS failed ({reason})", hint="check HEADWATER_KAFKA_CA_FILE, _CERT_FILE and _KEY_FILE")
    if isinstance(error, FileNotFoundError):
        return SettingsError(f"{what}: a certificate file is missing", hint="check HEADWATER_KAFKA_CA_FILE, _CERT_FILE and _KEY_FILE")
    if not isinstance(error, kafka_errors.KafkaError):
        return UnavailableError(f"{what}: {name}", hint=f"is Kafka running? {_DOCTOR}")
    kind = decision(type(error)) or UnavailableError
    if kind is DataLossError:
        return DataLossError(
            f"{what}: {_words(error)}",
            hint="records were deleted before they were read, or the topic was made again; see docs/errors/data_loss.md",
        )
    hints = {
        SettingsError: SETTINGS.get(name, _DOCTOR),
        CorruptError: "check the broker's disks",
        FencedError: "another process runs under this HEADWATER_KAFKA_INSTANCE_ID; each process of a role needs its own",
        UnavailableError: f"try again; {_DOCTOR}",
    }
    return kind(f"{what}: {_words(error)}", hint=hints[kind])


def _words(error: BaseException) -> str:
    # Kafka quotes whole requests and responses in its messages; the class and one short line are what helps.
    line = " ".join(str(error).split())
    name = type(error).__name__
    text = line if line.startswith(name) else f"{name}: {line}" if line else name
    return text if len(text) <= 200 else f"{text[:200]}..."


@contextmanager
def mapped(what: str) -> Iterator[None]:
    """Turn what kafka-python raises into ours. RuntimeError: it finds no controller, or lacks a codec."""
    try:
        yield
    except (kafka_errors.KafkaError, OSError, RuntimeError) as error:
        raise kafka_error(error, what) from error


assert RecordTooLargeError.__name__ in SETTINGS  # it lives outside kafka.errors
