"""What is at hand of a part's rows says what its columns say."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from query.parts import RowColumns
from query.texts import JoinedTexts, Texts

NAMES = ["", "a", "\u00e4\u6f22\U0001f600", "line\nbreak", "a" * 300]


@pytest.mark.parametrize("offsets", [[], [7], [7, 8, 9], [7, 9, 10], [7, 7, 8], [7, 9, 9], [9, 8, 11], [2**62, 2**62 + 1]])
def test_a_version_is_the_rows_offset_whether_or_not_offsets_count_up(offsets: list[int]) -> None:
    columns = RowColumns(np.array(offsets, np.int64), np.zeros(len(offsets), np.int32), np.zeros(len(offsets), np.int64))
    found = [columns.version_of(row) for row in range(len(offsets))]
    assert found == offsets and all(type(version) is int for version in found)


def test_texts_of_one_column_and_of_several_are_those_of_arrow() -> None:
    whole = pa.array(NAMES)
    assert [Texts(whole)[row] for row in range(len(NAMES))] == NAMES
    pieces = [Texts(whole.slice(0, 2)), Texts(whole.slice(2))]
    assert [JoinedTexts(pieces, (0, 2))[row] for row in range(len(NAMES))] == NAMES
