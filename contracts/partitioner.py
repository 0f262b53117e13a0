"""Partitioners: which partition an id belongs to, for collections that name one.

Takes: key bytes. Gives: a partition. Owns: byte-exact agreement with Kafka's Java client (murmur2) and librdkafka (crc32).
Never: is used with ``partitioner: producer``, where the producers decide.
"""

from __future__ import annotations

import zlib

from contracts.errors import SettingsError

_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """32-bit MurmurHash2 with the seed that Kafka's default partitioner uses (Kafka `Utils.murmur2`)."""
    length = len(data)
    m, h = 0x5BD1E995, 0x9747B28C ^ length
    for start in range(0, length - 3, 4):
        k = int.from_bytes(data[start : start + 4], "little")
        k = (k * m) & _MASK
        k ^= k >> 24
        k = (k * m) & _MASK
        h = ((h * m) & _MASK) ^ k
    rest = data[length & ~3 :]
    if rest:
        h = ((h ^ int.from_bytes(rest, "little")) * m) & _MASK
    h ^= h >> 13
    h = (h * m) & _MASK
    return h ^ (h >> 15)


def partition_of(partitioner: str, key: bytes, partitions: int) -> int:
    """Partition of `key` under a named partitioner.

    Raises
    ------
    SettingsError
        The partitioner is not ``murmur2`` or ``crc32``.
    """
    if partitioner == "murmur2":
        return (murmur2(key) & 0x7FFFFFFF) % partitions
    if partitioner == "crc32":
        return zlib.crc32(key) % partitions
    raise SettingsError(f"partitioner {partitioner!r} does not name a hash", hint="use murmur2 or crc32")
