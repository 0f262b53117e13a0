"""Refine codes lie where their row numbers say: mapped where they can be, copied where not, and gone when nobody holds the numbers."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import UnavailableError
from vectors import refine_arena
from vectors.refine_arena import RefineArena
from vectors.row_numbers import RowNumbers

PAGE = mmap.PAGESIZE


def codes(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, width), dtype=np.uint8)


def mapped(folder: Path, data: np.ndarray, offset: int) -> np.ndarray:
    """The array out of a mapped file, `offset` bytes from its start."""
    path = folder / f"codes-{offset}"
    path.write_bytes(b"\x55" * offset + data.tobytes())
    with path.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(memoryview(whole)[offset:], np.uint8).reshape(data.shape)


@pytest.mark.parametrize("width", [1, 16, 100, 384, 512])
def test_files_are_mapped_by_page_and_everything_else_is_copied(tmp_path: Path, width: int) -> None:
    arena = RefineArena(width)
    numbers = RowNumbers(arena.alignment, arena.release)
    held = [numbers.allocate(300) for _ in range(3)]
    data = [codes(300, width, seed) for seed in range(3)]
    assert arena.map(held[0], mapped(tmp_path, data[0], 3 * PAGE))
    for number, given in ((1, mapped(tmp_path, data[1], 64)), (2, data[2])):
        assert not arena.map(held[number], given)
        arena.place(None, held[number], given)
    for each, wanted in zip(held, data, strict=True):
        np.testing.assert_array_equal(arena.codes[each.start : each.start + 300], wanted)


def test_codes_of_some_rows_lie_at_those_rows(tmp_path: Path) -> None:
    arena = RefineArena(32)
    held = RowNumbers(arena.alignment).allocate(500)
    rows = np.arange(0, 500, 7)
    arena.place(held.start + rows, held, mapped(tmp_path, codes(len(rows), 32), PAGE))
    np.testing.assert_array_equal(arena.codes[held.start + rows], codes(len(rows), 32))


def test_a_mapping_stays_when_the_file_and_its_first_mapping_are_gone(tmp_path: Path) -> None:
    arena = RefineArena(64)
    held = RowNumbers(arena.alignment).allocate(200)
    first = mapped(tmp_path, codes(200, 64), PAGE)
    assert arena.map(held, first)
    del first
    (tmp_path / f"codes-{PAGE}").unlink()
    np.testing.assert_array_equal(arena.codes[held.start : held.start + 200], codes(200, 64))


def test_numbers_that_come_back_give_their_memory_back(tmp_path: Path) -> None:
    released: list[tuple[int, int]] = []
    arena = RefineArena(64)

    def release(start: int, capacity: int) -> None:
        released.append((start, capacity))
        arena.release(start, capacity)

    numbers = RowNumbers(arena.alignment, release)
    held = numbers.allocate(100)
    room = arena.reserve(held)
    room[:] = 7
    where = (held.start, held.capacity)
    del held, room
    assert released == [where]
    again = numbers.allocate(100)
    assert again.start == where[0]
    assert (arena.reserve(again) == 0).all()


def test_more_rows_than_addresses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine_arena, "RESERVED_BYTES", 1 << 20)
    arena = RefineArena(512)
    numbers = RowNumbers(arena.alignment)
    first = numbers.allocate(2048)
    assert len(arena.reserve(first)) == 2048
    with pytest.raises(UnavailableError, match="beyond the 2048 rows") as raised:
        arena.reserve(numbers.allocate(1))
    assert raised.value.error_code == "memory_full"


def test_stored_codes_begin_at_a_page_so_that_they_can_be_mapped() -> None:
    from contracts.footer_file import PAGE_BYTES, FooterFile, read_footer, write_footer_file

    data = write_footer_file("field", {"lists": b"x" * 5000, "refine": b"y" * PAGE_BYTES, "rows": b"z" * 100}, {})
    places = read_footer(data, "test").places
    assert [places[name][0] % PAGE_BYTES for name in ("lists", "refine")] == [0, 0] and places["rows"][0] % 64 == 0
    assert bytes(FooterFile.read(data, "test").section("refine", "test")) == b"y" * PAGE_BYTES
