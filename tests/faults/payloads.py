"""Faults 38 and 39, and 34 of an encoder: a message that is too large, a payload that is, and a payload that is gone when it is read.

Takes: a trial whose collection takes pictures beside the stream's own vectors. Gives: `VARIANTS`. Owns: the records and payloads that it sends.
Never: lets a row of its own stay: the account is about the load's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from backends.catalog.admin import CollectionRequest
from contracts.errors import HeadwaterError
from contracts.object_keys import CollectionKeys
from contracts.partitioner import partition_of
from ingest.producer import MediaProducer
from tests.encoders import colour_fields
from tests.faults.harm import pictures_and_vectors
from tests.faults.http_proxy import Rule
from tests.faults.lines import store_proxy, supervised, through
from tests.faults.load import DIMENSION, FIELD
from tests.faults.parts import BREAKS_DEVICE
from tests.faults.store_faults import Refuse, is_get
from tests.faults.trial import Trial, Variant
from tests.system.bad_input_run import Sent, outcomes, send
from tests.system.bad_inputs import JPEG, TEXT, BadInput, sample
from tests.system.processes import until

ENCODER = "tests.faults.parts:small_encoder={}"
MOST_BYTES = 100_000
"""Largest payload that the embed worker of fault 38 takes."""


def put(trial: Trial, data: bytes) -> str:
    """Store a payload under its claim key."""
    key = key_of(trial, data)
    trial.engines.store.put_if_absent(key, data)
    return key


def key_of(trial: Trial, data: bytes) -> str:
    return CollectionKeys(trial.record.name, trial.record.incarnation).claim(hashlib.sha256(data).hexdigest())


def named(trial: Trial, name: str, data: bytes, verdict: str, reason: str | None = None, size_bytes: int | None = None) -> BadInput:
    """A record that names a payload, whatever is stored under its key."""
    ref = {"key": key_of(trial, data), "sha256": hashlib.sha256(data).hexdigest(), "size": len(data) if size_bytes is None else size_bytes}
    return BadInput(name, "pictures", (*JPEG, ("hw_payload_ref", json.dumps(ref).encode())), b"", verdict, reason)


def fitting(trial: Trial, inputs: Sequence[BadInput]) -> list[BadInput]:
    """The same with names that belong to the partitions which `send` chooses, one after the other."""
    out: list[BadInput] = []
    for number, one in enumerate(inputs):
        names = (one.name if at == 0 else f"{one.name} {at}" for at in itertools.count())
        wanted = number % trial.record.partitions
        out.append(replace(one, name=next(name for name in names if partition_of("murmur2", name.encode(), trial.record.partitions) == wanted)))
    return out


def forget(trial: Trial, ids: Sequence[str]) -> None:
    """Delete rows that the load knows nothing of, so that the account is about its own."""
    ends: dict[int, int] = {}
    with MediaProducer(trial.engines.log, trial.record, trial.engines.settings) as producer:
        for place in [producer.delete(item_id) for item_id in ids]:
            at = place.result(60)
            ends[at.partition] = max(ends.get(at.partition, 0), at.offset + 1)
    trial.wait_committed(ends, 60)


def ends_of(sent: Sequence[Sent]) -> dict[int, int]:
    """Per partition, the offset behind the last of these records."""
    ends: dict[int, int] = {}
    for one in sent:
        ends[one.partition] = max(ends.get(one.partition, 0), one.offset + 1)
    return ends


def decided(trial: Trial, sent: Sequence[Sent]) -> None:
    """Wait until each has its verdict and its dead letter, compare with what was promised, and take the rows away."""
    trial.wait_committed(ends_of(sent), 90)
    found = outcomes(trial.engines, sent)
    wrong = [f"{one.bad.name}: {one.verdict} {one.reason}, promised {one.bad.verdict} {one.bad.reason}" for one in found if not one.is_kept]
    assert not wrong, wrong
    trial.note(
        "; ".join(
            f"{verdict} {reason or ''} {count}".replace("  ", " ")
            for (verdict, reason), count in Counter((one.verdict, one.reason) for one in found).items()
        )
    )
    forget(trial, [one.bad.name for one in found if one.verdict == "row"])


def too_large(trial: Trial) -> None:
    """INV-12: too large for the log is refused where it is produced; too large for the worker is dead-lettered; others go on."""
    trial.start("embed", parts=[ENCODER], max_picture_bytes=MOST_BYTES)
    trial.start("index")
    trial.wait_flowing()
    refused: list[str] = []
    with MediaProducer(trial.engines.log, trial.record, trial.engines.settings) as producer:
        try:
            texts = ["x" * (40 << 20)]
            producer.send_vectors(["too-large"], {FIELD: np.ones((1, DIMENSION), np.float32)}, texts=texts)[0].result(60)
        except HeadwaterError as error:
            refused.append(f"rows: {error}")
    raw = trial.engines.log.producer()
    try:
        raw.send(trial.record.source_topic, partition=0, key=b"too-large", value=bytes(70 << 20)).result(60)
    except HeadwaterError as error:
        refused.append(f"record: {error}")
    finally:
        raw.close()
    assert len(refused) == 2, f"only {refused} were refused"
    trial.note("; ".join(text[:160] for text in refused))
    large = sample() + bytes(MOST_BYTES)
    lied = sample() + bytes(MOST_BYTES + 1)
    put(trial, large)
    put(trial, lied)
    put(trial, sample())
    bad = [
        named(trial, "fits", sample(), "row"),
        named(trial, "too large", large, "reject", "too_large"),
        named(trial, "larger than it says", lied, "reject", "payload_mismatch", size_bytes=1000),
    ]
    decided(trial, send(trial.engines, trial.record, fitting(trial, bad)))


def gone(trial: Trial) -> None:
    """INV-12: a payload that is not there is dead-lettered; one whose store does not answer is waited for, whatever lies behind it."""
    proxy = store_proxy(trial)
    trial.start("embed", parts=[ENCODER], **through(store=proxy))
    trial.start("index")
    trial.wait_flowing()
    missing, late = sample() + b"missing", sample() + b"late"
    trial.engines.store.delete(put(trial, missing))
    put(trial, late)
    decided(trial, send(trial.engines, trial.record, fitting(trial, [named(trial, "deleted", missing, "reject", "payload_missing")])))
    proxy.rules = [Rule(is_get("/claim/"), Refuse(503))]
    unreachable = fitting(trial, [named(trial, "unreachable", late, "row"), named(trial, "unreachable too", late, "row")])
    sent = send(trial.engines, trial.record, unreachable)
    until(lambda: proxy.rules[0].done >= 12, 90, "the payload was asked for again and again", 0.2)
    stands = {one.partition: trial.checkpoint(one.partition) for one in sent}
    assert all(stands[one.partition] <= one.offset for one in sent), "a payload that could not be read was decided about"
    trial.note(f"waited through {proxy.rules[0].done} refusals")
    proxy.heal()
    decided(trial, sent)


def encoder_fails(trial: Trial) -> None:
    """INV-12: a batch that the device has no memory for is split; a text at which it fails ends lives until it is alone, then it is a dead letter."""
    trial.start("index")
    trial.start("embed", parts=['tests.faults.parts:small_encoder={"most_items": 4}'])
    trial.wait_flowing()
    many = [BadInput(f"many {number}", "pictures", TEXT, f"a crow on fence {number}".encode(), "row") for number in range(40)]
    with supervised(trial, most=0):
        decided(trial, send(trial.engines, trial.record, fitting(trial, many)))
    good = [BadInput(f"good {number}", "pictures", TEXT, b"a crow on a fence", "row") for number in range(10)]
    poison = BadInput("poison", "pictures", TEXT, f"it {BREAKS_DEVICE} the device".encode(), "reject", "embed_crashed")
    with supervised(trial, most=8):
        sent = send(trial.engines, trial.record, fitting(trial, [*good[:5], poison, *good[5:]]))
        until(lambda: trial.is_committed(ends_of(sent)), 90, "all are decided", 0.3)
    decided(trial, sent)


def texts_and_vectors(trial: Trial) -> CollectionRequest:
    """A collection that takes texts beside the stream's own vectors."""
    request = trial.request()
    return replace(request, fields=[*request.fields, *(field for field in colour_fields() if field.name == "text")])


VARIANTS = [
    Variant(34, "the encoder's device", encoder_fails, (), request=texts_and_vectors, rate=50.0),
    Variant(38, "for the log, for the worker", too_large, (), request=pictures_and_vectors, rate=50.0),
    Variant(39, "deleted, unreachable", gone, (), request=pictures_and_vectors, rate=50.0),
]
