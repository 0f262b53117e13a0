"""Every attribute type and every kind of id from the record to the answer, in the tail and in segments."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from contracts.attributes import ARROW_TYPES
from contracts.media_record import ARROW_TYPE
from ingest.records import OutgoingRecord
from tests.encoders import ColourEncoder, colour_fields
from tests.query.writer import own_field
from tests.system.attribute_stack import Stack, stack

# type -> value in the record, value in the payload, values whose equality finds it, values that do not
CASES: dict[str, tuple[Any, Any, list[Any], list[Any]]] = {
    "keyword": ("red", "red", ["red"], ["Red", "re", ""]),
    "bool": (True, True, [True], [False]),
    "integer": (-(2**63), -(2**63), [-(2**63)], [2**63 - 1, 0]),
    "float": (2, 2.0, [2, 2.0], [2.0000001]),
    "datetime": ("2026-11-23T12:00:00.000001+02:00", "2026-11-23T10:00:00.000001Z", ["2026-11-23T10:00:00.000001Z"], ["2026-11-23T10:00:00Z", 0]),
    "geo": (
        {"lon": 13.4, "lat": 52.5},
        {"lat": 52.5, "lon": 13.4},
        [{"lat": 52.5, "lon": 13.4}],
        [{"lat": 52.5, "lon": 13.5}, {"lat": 0, "lon": 13.4}],
    ),
    "text": ("two words\n", "two words\n", ["two words\n"], ["two"]),
}
ARRAYS = {f"{kind}[]": ([case[0]], [case[1]], case[2], case[3]) for kind, case in CASES.items()}
ARRAYS["integer[]"] = ([1, 2, 3], [1, 2, 3], [1, 3], [4])
ARRAYS["keyword[]"] = ("one", ["one"], ["one"], ["o"])
SCHEMA = {"a_" + kind.replace("[]", "s"): kind for kind in CASES | ARRAYS}


def check_types(made: Stack) -> None:
    payload = made.get("full")["payload"]
    for name, kind in SCHEMA.items():
        _, shown, found, absent = (CASES | ARRAYS)[kind]
        assert payload[name] == shown and type(payload[name]) is type(shown), kind
        assert all(made.matching(name, value) == ["full"] for value in found), kind
        assert all(made.matching(name, value) == [] for value in absent), kind
        assert name not in made.get("bare")["payload"] and "a_extra" not in made.get("bare")["payload"]
    assert payload["deep"] == {"x": [1, None]} and payload["loose"] == 1
    assert made.matching("loose", 1) == ["full"] and made.matching("loose", True) == [] and made.matching("loose", "1") == []


def test_every_type_comes_back_as_it_went_in_and_is_found_by_equality() -> None:
    assert set(CASES) == set(ARROW_TYPES)
    values = {name: (CASES | ARRAYS)[kind][0] for name, kind in SCHEMA.items()}
    with stack(colour_fields(), ColourEncoder(), attributes=SCHEMA) as made:
        made.producer.send_text("full", "some words", attributes=values | {"deep": {"x": [1, None]}, "loose": 1})
        made.producer.send_text("bare", "other words", attributes={"a_float": None})
        made.settle()
        check_types(made)
        made.seal()
        check_types(made)
        for name, kind in SCHEMA.items():  # a patch sets every type too, and takes it away again
            made.producer.patch("bare", {name: (CASES | ARRAYS)[kind][0]})
            made.producer.patch("full", {name: None})
        made.settle()
        assert {name: made.get("bare")["payload"][name] for name in SCHEMA} == {name: (CASES | ARRAYS)[kind][1] for name, kind in SCHEMA.items()}
        assert not set(SCHEMA) & set(made.get("full")["payload"]) and made.get("full")["payload"]["loose"] == 1
        assert made.matching("a_geo", CASES["geo"][0]) == made.matching("a_geos", CASES["geo"][0]) == ["bare"]


@pytest.mark.parametrize(("name", "value"), [
    ("a_geo", {"lat": 1}), ("a_geo", "here"), ("a_bool", 1), ("a_integer", 1.5), ("a_datetime", "noon"), ("a_keyword", {"lat": 1, "lon": 2}),
    ("loose", {"lat": 1, "lon": 2}), ("a_floats", "x"), ("a_text", 5),
])  # fmt: skip
def test_a_filter_by_a_value_of_another_type_says_so(name: str, value: Any) -> None:
    with stack([own_field()], attributes=SCHEMA) as made:
        answer = made.post("count", {"filter": {"must": [{"key": name, "match": {"value": value}}]}}, 400)
        assert answer["status"]["error"]["code"] == "invalid_filter"


IDS: list[tuple[Any, str]] = [
    (5, "5"), (2**64 - 1, "18446744073709551615"), (UUID("936DA01F-9ABD-4d9d-80C7-02af85c822a8"), "936da01f-9abd-4d9d-80c7-02af85c822a8"),
    ("x" * 512, "x" * 512), ("a/b c?d#e%2F\n\u00fc\U0001f431", "a/b c?d#e%2F\n\u00fc\U0001f431"), ("05", "05"), (" ", " "),
]  # fmt: skip


def test_ids_of_numbers_uuids_and_any_text_are_found_by_what_they_were() -> None:
    with stack(colour_fields(), ColourEncoder()) as made:
        for given, text in IDS:
            body = {"id": given if isinstance(given, int) else str(given), "parts": [{"text": f"item {text[:9]}"}]}
            record = OutgoingRecord(None, json.dumps(body).encode(), (("content-type", b"application/vnd.headwater.record+json"),))
            made.producer.send(record, text)
        for seal in (False, True):
            (made.seal if seal else made.settle)()
            assert made.ids({"limit": 20}) == sorted(text for _, text in IDS)
            for given, text in IDS:
                found = made.get(text)
                assert isinstance(found, dict), (text, found.text)
                assert found["id"] == text
                query = given if isinstance(given, int) else str(given)
                assert text not in [point["id"] for point in made.post("query", {"query": query})["result"]["points"]]
        made.producer.send_text("5", "the string five is the number five")
        made.settle()
        assert made.post("count", {})["result"]["count"] == len(IDS) and made.get("5")["payload"]["text"].startswith("the string")
        assert made.client.get("/collections/things/points/936DA01F-9ABD-4D9D-80C7-02AF85C822A8").status_code == 404


def test_arrow_ids_of_64_bits_are_found_and_deleted_by_their_digits() -> None:
    with stack([own_field()]) as made:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(4, dtype=np.float32).reshape(-1)), 4)
        table = pa.table({"id": pa.array([0, 7, 2**63, 2**64 - 1], pa.uint64()), "own": vectors})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        made.producer.send(OutgoingRecord(None, sink.getvalue().to_pybytes(), (("content-type", ARROW_TYPE.encode()),)), "any")
        made.settle()
        assert made.ids({}) == sorted(["0", "7", str(2**63), str(2**64 - 1)])
        assert made.post("query", {"query": 2**64 - 1, "limit": 1})["result"]["points"][0]["id"] != str(2**64 - 1)
        made.producer.delete("7")
        made.settle()
        assert made.client.get("/collections/things/points/7").status_code == 404
