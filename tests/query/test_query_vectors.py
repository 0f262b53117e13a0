"""What a query may be: numbers, and which of them make a vector."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.errors import SettingsError
from query.query_vectors import ByPoint, ByVector, checked_vector, parse_query
from tests.query.writer import own_field

FIELD = own_field(dimension=4)


def test_a_list_and_an_array_of_the_same_numbers_are_the_same_vector() -> None:
    numbers = [3.0, 0, -4.0, 0]
    vectors = []
    for raw in (numbers, np.array(numbers), np.array(numbers, np.float32)):
        wanted = parse_query(raw)
        assert isinstance(wanted, ByVector)
        vectors.append(checked_vector(wanted.values, FIELD))
    for vector in vectors:
        assert vector.dtype == np.float32 and vector.tolist() == pytest.approx([0.6, 0, -0.8, 0])


@pytest.mark.parametrize("raw", [[1.0, True, 0, 0], [1.0, "2", 0, 0], [1.0, None, 0, 0], [[1.0], [0.0]]])
def test_a_list_of_anything_but_numbers_is_no_query(raw: list[object]) -> None:
    with pytest.raises(SettingsError, match="form") as refused:
        parse_query(raw)
    assert refused.value.error_code == "invalid_query"


@pytest.mark.parametrize(
    "values",
    [[], [1.0, 0, 0], [0.0, 0, 0, 0], [1e39, 0, 0, 0], [1e200, 1e200, 0, 0], [float("nan"), 1, 0, 0], [float("-inf"), 1, 0, 0], [10**400, 0, 0, 0]],
)
def test_numbers_that_are_no_vector_of_the_field_are_refused(values: list[float]) -> None:
    with pytest.raises(SettingsError) as refused:
        checked_vector(values, FIELD)
    assert refused.value.error_code == "invalid_vector"


@pytest.mark.parametrize("values", [np.ones((4, 1)), np.ones(3), np.array([1, np.nan, 0, 0])])
def test_an_array_that_is_no_vector_of_the_field_is_refused(values: np.ndarray) -> None:
    with pytest.raises(SettingsError):
        checked_vector(values, FIELD)


def test_a_text_or_a_number_alone_is_an_id() -> None:
    assert parse_query("a") == ByPoint("a") and parse_query(5) == ByPoint("5") and parse_query({"nearest": "a"}) == ByPoint("a")
