"""The delete delta: bitmaps and tombstones come back; damage is corrupt."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from contracts.deletes import DeleteDelta, Tombstone, decode_delete_delta, encode_delete_delta
from contracts.errors import CorruptError
from contracts.footer_file import FooterFile, write_footer_file
from contracts.item import id_hash, version_order
from tests.contracts.format_samples import ulids

bitmaps = st.dictionaries(ulids, st.sets(st.integers(0, 2**32 - 1), max_size=10).map(BitMap), max_size=3)
tombstones = st.builds(
    Tombstone,
    id_hash=st.binary(min_size=16, max_size=16),
    offset=st.integers(0, 2**63 - 1),
    item=st.integers(0, 2**31 - 1),
    committed_at_us=st.integers(0, 2**60),
    origin_offset=st.none() | st.integers(0, 2**63 - 1),
    origin_item=st.none() | st.integers(0, 2**31 - 1),
)


@settings(deadline=None)
@given(bitmaps, st.lists(tombstones, max_size=5))
def test_a_delta_comes_back_without_its_empty_bitmaps(maps: dict[str, BitMap], stones: list[Tombstone]) -> None:
    data = encode_delete_delta(DeleteDelta(maps, stones))
    found = decode_delete_delta(data, "here")
    assert found.tombstones == stones and found.bitmaps == {name: bitmap for name, bitmap in maps.items() if bitmap}
    assert FooterFile.read(data, "here").meta == {"tombstones": len(stones), "rows": sum(map(len, maps.values()))}


def test_the_same_delta_makes_the_same_bytes() -> None:
    one, two = DeleteDelta({"A": BitMap([1]), "B": BitMap([2])}, []), DeleteDelta({"B": BitMap([2]), "A": BitMap([1])}, [])
    assert encode_delete_delta(one) == encode_delete_delta(two)


def test_a_tombstone_of_a_replayed_delete_takes_its_origins_place() -> None:
    assert Tombstone(id_hash("a"), 50, 0, 0, 7, 2).order == version_order(50, 0, 7, 2) < Tombstone(id_hash("a"), 8, 0, 0).order


def damaged(**changes: bytes) -> bytes:
    file = FooterFile.read(encode_delete_delta(DeleteDelta({"A": BitMap([1, 2])}, [])), "here")
    sections: dict[str, bytes | memoryview] = {**file.sections, **{name.replace("__", "/"): data for name, data in changes.items()}}
    return write_footer_file("deletes", sections, file.meta)


def other_columns() -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"id": ["a"]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        damaged(bitmap__A=b"\xff\xff"),
        damaged(tombstones=b"no arrow"),
        damaged(tombstones=other_columns()),
        write_footer_file("deletes", {}, {}),
        write_footer_file("rows", {}, {}),
    ],
)
def test_a_damaged_delta_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_delete_delta(data, "here")
