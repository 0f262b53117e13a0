"""The error tree: one class per thing a caller does next.

    HeadwaterError
      SettingsError              fix the settings (or the command) and start again        exit 2
        NotFoundError            name something that exists
      RecordError                dead-letter this record, go on
      UnavailableError           wait and try again; the other side is not there now      exit 4
      SnapshotError              reload the manifest, then try again
      FencedError                a newer owner works: exit, do not claim back             exit 5
      CorruptError               stop this partition and alert; retrying cannot help      exit 6
        DataLossError            bytes that were promised are gone (retention, a re-made topic)

Takes: a message, a hint, and where it happened. Gives: one line an operator can act on.
Owns: error codes (`docs/errors/`, one page each). Never: wraps one error in two classes.
"""

from __future__ import annotations

from typing import ClassVar


class HeadwaterError(Exception):
    """Base of every error that Headwater raises on purpose.

    Parameters
    ----------
    message : str
        What happened and where, in one line, without secrets.
    hint : str, optional
        What to do about it, as an imperative sentence.
    code : str, optional
        Stable snake_case code; the class's own where none is given.
    """

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.error_code = code or type(self).code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class SettingsError(HeadwaterError):
    """The caller asked for something that cannot be: fix the settings or the request."""

    code = "invalid_request"
    exit_code = 2


class NotFoundError(SettingsError):
    """The named collection, index, field, item or object does not exist."""

    code = "not_found"


class RecordError(HeadwaterError):
    """One record cannot be indexed, ever: it goes to the dead-letter topic with this reason.

    Parameters
    ----------
    reason : str
        Reason code out of `REJECT_REASONS`; it is stored in the batch's ``reason`` column.
    message : str
        What is wrong with the record, without its content.
    """

    code = "rejected"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message, code="rejected")
        if reason not in REJECT_REASONS:
            raise ValueError(f"unknown reject reason {reason!r}")
        self.reason = reason


class UnavailableError(HeadwaterError):
    """Broker, store or query node does not answer now: retry with back-off."""

    code = "unavailable"
    exit_code = 4


class SnapshotError(HeadwaterError):
    """What was read is older than what is stored: reload the manifest, then try again."""

    code = "stale_snapshot"


class FencedError(HeadwaterError):
    """A newer writer owns this partition: exit; never claim it back in a loop."""

    code = "fenced"
    exit_code = 5


class CorruptError(HeadwaterError):
    """Stored bytes are not what their hash or format says: stop and alert."""

    code = "corrupt"
    exit_code = 6


class DataLossError(CorruptError):
    """The log no longer holds (or never held) what the manifest says comes next: stop and alert."""

    code = "data_loss"


REJECT_REASONS: dict[str, str] = {
    "bad_attributes": "hw_attributes is not a JSON object, or a value has the wrong type",
    "bad_acl": "hw_acl is not a JSON list of strings",
    "bad_envelope": "the CloudEvents or JSON envelope cannot be read",
    "bad_id": "the id is empty, too long, or not UTF-8",
    "bad_origin": "hw_origin names another partition or an offset that is not below the record's own",
    "bad_text": "the text or caption is not valid UTF-8, or too long",
    "bad_time": "hw_time or ce_time is not an RFC 3339 time",
    "bad_vector": "a vector has the wrong dimension, type, or a value that is not finite",
    "decode_crashed": "the picture ended the process that decoded it, twice",
    "decode_failed": "the picture cannot be decoded",
    "decode_memory": "decoding the picture takes more memory than the limit",
    "decode_timeout": "decoding the picture takes longer than the limit",
    "embed_crashed": "the record ended the embed worker again and again, alone at the end",
    "empty": "the record carries nothing to index",
    "encoder_refused": "the remote encoder refuses this picture or text, while it takes others",
    "missing_id": "a delete, or a CloudEvent, without an id",
    "payload_missing": "the object that the claim check names is gone",
    "payload_mismatch": "the claim check's object has another size or sha256",
    "too_large": "the record or picture is larger than the limit",
    "too_many_parts": "more than one picture in one item",
    "too_many_pixels": "the picture's header names more pixels than the limit",
    "unsupported_content_type": "this content type is not indexed",
    "wrong_partition": "the id belongs in another partition under the collection's partitioner",
    "zero_norm": "a vector of length zero has no direction under the cosine metric",
}
"""Reason codes of rejected records, each with its sentence (docs/errors/README.md lists them)."""
