"""The matrix of 47 faults: what each is, and either the ways in which it is run here or the reason why it is not.

Takes: variants of the modules in `MODULES`. Gives: `FAULTS`. Owns: numbers and names. Never: runs anything.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from tests.faults.trial import Variant

MODULES: tuple[str, ...] = (
    "tests.faults.crashes",
    "tests.faults.members",
    "tests.faults.offsets",
    "tests.faults.harm",
    "tests.faults.store_answers",
    "tests.faults.wrong_bytes",
    "tests.faults.network",
    "tests.faults.machine",
    "tests.faults.payloads",
    "tests.faults.keys",
)
"""Modules with a list `VARIANTS`."""

NAMES = {
    1: "kill -9 after the poll, before the batch or segment is built",
    2: "kill -9 in the middle of an upload",
    3: "kill -9 after the upload, before the manifest is put",
    4: "kill -9 after the manifest's put was sent, before its answer",
    5: "kill -9 after the commit, before the group's offset is committed",
    6: "kill -9 during a compaction, and between its upload and its commit",
    7: "kill -9 of the collector between boundary and delete, and amid deletes",
    8: "the manifest's put is stored and answered with 503",
    9: "the manifest's put is stored and its connection is reset, or times out",
    10: "409 for a put, and 412 for all but one of many writers",
    11: "a worker stopped beyond its session and the collector's age wakes up (zombie)",
    12: "two owners of one partition",
    13: "workers come and go every two seconds",
    14: "old offsets are delivered again",
    15: "a producer sends again after a restart",
    16: "gaps in the offsets: aborted transactions, a compacted topic",
    17: "the group's offsets are deleted, rewound, advanced",
    18: "retention took records that nobody had read",
    19: "the topic is deleted and made again",
    20: "partitions are added",
    21: "the broker is killed, restarted, its leadership moves",
    22: "the network between a worker and the log only, or the store only, is cut",
    23: "latency of seconds, a narrow line, bytes in slices, a slow close",
    24: "500, 503 and 429 from the store for a third of its requests",
    25: "a listing that is stale and lacks the newest keys",
    26: "answers that are cut short or announce a wrong length",
    27: "a flipped bit in segment, ids, deletes and manifest",
    28: "a segment is deleted behind our back",
    29: "the store ignores conditions",
    30: "a manifest's number is used again after its collection",
    31: "the collector meets an upload that takes longer than it waits",
    32: "the disk is full",
    33: "a disk that fails to sync, or may not be written",
    34: "memory runs out in the middle of a batch",
    35: "poison: a record that cannot be decoded, a bomb, a crash of the decoder",
    36: "the dead-letter topic takes nothing",
    37: "the clock is a day off, jumps back",
    38: "a message that is too large, and a payload that is",
    39: "a payload is gone when it is read",
    40: "a delete races with a compaction",
    41: "an update races with a replay of old offsets",
    42: "a query service loads under collection and two manifests a second",
    43: "credentials expire, a certificate is changed while it runs",
    44: "SIGTERM amid a batch",
    45: "an old reader meets a newer format",
    46: "a reader whose position stands still while records wait",
    47: "no file descriptors are left, a thread of the uploads dies",
}

SKIPPED: dict[int, str] = {}
"""Faults that no variant runs, and why."""


@dataclass(frozen=True)
class Fault:
    """One line of the matrix; `reason` says why it is not run where it has no variants."""

    number: int
    name: str
    variants: tuple[Variant, ...]
    reason: str = ""


def matrix() -> list[Fault]:
    """All 47, in order."""
    found: dict[int, list[Variant]] = {}
    for module in MODULES:
        for variant in importlib.import_module(module).VARIANTS:
            found.setdefault(variant.number, []).append(variant)
    return [Fault(number, name, tuple(found.get(number, ())), SKIPPED.get(number, "")) for number, name in NAMES.items()]
