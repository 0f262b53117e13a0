"""Dead letters: the original record, byte for byte, with why and where from (docs/formats/dead_letter.md).

Header names are Kafka Connect's (`DeadLetterQueueReporter`), so that tools for those topics work; ours are added beside them.

Takes: rejections of one record. Gives: one dead-letter record per record and index. Owns: the header names.
Never: is the verdict: the batch is; a dead letter is a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

from contracts.collection import CollectionRecord
from contracts.log import Headers
from indexer.slices import Rejection

_CONNECT = "__connect.errors."


def dead_letter_headers(collection: CollectionRecord, index: str, rejections: Sequence[Rejection]) -> Headers:
    """Headers of the dead letter of one record: the original's own first, then why it is here."""
    record = rejections[0].record
    reasons = sorted({rejection.reason for rejection in rejections})
    ours = [
        (_CONNECT + "topic", record.topic),
        (_CONNECT + "partition", str(record.partition)),
        (_CONNECT + "offset", str(record.offset)),
        (_CONNECT + "connector.name", f"headwater.{collection.name}"),
        (_CONNECT + "task.id", index),
        (_CONNECT + "stage", "VALUE_CONVERTER"),
        (_CONNECT + "class.name", "indexer.decode.Decoder"),
        (_CONNECT + "exception.class.name", "contracts.errors.RecordError"),
        (_CONNECT + "exception.message", rejections[0].message),
        ("hw_index", index),
        ("hw_incarnation", collection.incarnation),
        ("hw_reason", ",".join(reasons)),
        ("hw_items", ",".join(str(rejection.item) for rejection in rejections)),
        ("hw_timestamp_ms", str(record.timestamp_ms)),
    ]
    if all(rejection.partial for rejection in rejections):
        ours.append(("hw_partial", "1"))
    if record.value is None:
        ours.append(("hw_null_value", "1"))
    return (*record.headers, *((name, value.encode("utf-8", "replace")) for name, value in ours))
