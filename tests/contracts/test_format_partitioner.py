"""Partitioners agree with Kafka's clients byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import SettingsError
from contracts.partitioner import murmur2, partition_of

# Values of Kafka's own UtilsTest (signed 32-bit, as Java prints them).
JAVA_MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "expected"), JAVA_MURMUR2.items())
def test_murmur2_agrees_with_the_java_client(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected & 0xFFFFFFFF


def test_crc32_agrees_with_the_check_value_of_the_polynomial() -> None:
    assert partition_of("crc32", b"123456789", 2**32) == 0xCBF43926


@given(st.binary(max_size=64), st.integers(1, 4096), st.sampled_from(["murmur2", "crc32"]))
def test_every_key_has_one_partition_that_exists(key: bytes, partitions: int, partitioner: str) -> None:
    found = partition_of(partitioner, key, partitions)
    assert 0 <= found < partitions and found == partition_of(partitioner, key, partitions)


def test_the_sign_bit_is_cleared_as_java_does() -> None:
    assert partition_of("murmur2", b"21", 7) == (-973932308 & 0x7FFFFFFF) % 7


@pytest.mark.parametrize("name", ["producer", "", "MURMUR2"])
def test_a_partitioner_that_is_no_hash_is_refused(name: str) -> None:
    with pytest.raises(SettingsError):
        partition_of(name, b"x", 4)
