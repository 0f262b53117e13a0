"""Promises of manifests: every row is an item or a reject with its reason, whatever the bytes are; each kind reads back whole from the log."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import SettingsError
from contracts.log import LogRecord
from contracts.media_record import MediaItem, RecordLimits, read_media_record
from ingest.ingest_run import IngestReport, IngestRun, ingest_sources
from ingest.input_item import InputItem, InputRules, RejectedInput
from ingest.producer import MediaProducer
from ingest.sources import open_sources
from tests.examples import examples

JPEG = b"\xff\xd8\xff" + b"j" * 30
RULES = InputRules({"year": "integer", "category": "keyword", "tags": "keyword[]", "new": "bool"}, {"v": 2}, 5_000, 1_000)
Stored = Callable[[CollectionRecord], list[LogRecord]]
LIKELY = settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(path: Path, root: Path | None = None, skip: int = 0) -> list[InputItem | RejectedInput]:
    (source,) = open_sources([path], RULES, root=root).sources
    (unit,) = source.units()
    assert not isinstance(unit, RejectedInput)
    return list(unit.read(skip))


def reasons(found: list[InputItem | RejectedInput]) -> list[str]:
    return [entry.reason if isinstance(entry, RejectedInput) else "" for entry in found]


def ingested(engines: Engines, collection: CollectionRecord, *paths: Path) -> IngestReport:
    opened = open_sources(paths, InputRules.of(collection, engines.settings))
    with MediaProducer(engines.log, collection, engines.settings, bulk=True) as producer:
        return ingest_sources(IngestRun(producer), opened)


def items_of(records: list[LogRecord], collection: CollectionRecord) -> dict[str, MediaItem]:
    found = [item for record in records for item in read_media_record(record, collection, RecordLimits())]
    assert all(isinstance(item, MediaItem) for item in found), found
    return {item.id: item for item in found if isinstance(item, MediaItem)}


texts = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20)


@LIKELY
@given(rows=st.lists(st.tuples(texts.filter(lambda text: text.strip("\ufeff")), texts, texts), max_size=8))
def test_every_csv_that_pythons_writer_makes_is_read_back_row_by_row(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    path = tmp_path / "m.csv"
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["id", "text", "note"])
    writer.writerows([(f"i{number}{item_id}", text, note) for number, (item_id, text, note) in enumerate(rows)])
    path.write_text(out.getvalue(), encoding="utf-8", newline="")
    found = rows_of(path)
    assert len(found) == len(rows)
    for number, (entry, (item_id, text, note)) in enumerate(zip(found, rows, strict=True)):
        if not text:
            assert isinstance(entry, RejectedInput)
            assert entry.reason == "empty"
            continue
        assert isinstance(entry, InputItem)
        assert (entry.item_id, entry.data.decode()) == (f"i{number}{item_id}", text)
        assert (entry.annotations.attributes or {}).get("note", "") == note


@LIKELY
@given(data=st.binary(max_size=300), kind=st.sampled_from(["csv", "jsonl"]))
def test_any_bytes_are_rows_or_rejects_and_never_an_exception(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / f"any.{kind}"
    path.write_bytes((b"id,text,v\n" if kind == "csv" else b"") + data)
    for entry in rows_of(path):
        assert isinstance(entry, InputItem | RejectedInput)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
columns = st.sampled_from(
    ["id", "path", "file", "data", "data_base64", "caption", "text", "attributes", "attributes.year", "year", "acl", "time", "v"]
)


@LIKELY
@given(rows=st.lists(st.dictionaries(columns, json_values, max_size=6), max_size=6))
def test_any_json_objects_are_items_or_rejects_and_the_count_is_right(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = rows_of(path)
    assert len(found) == len(rows)
    for skip in range(len(rows)):
        assert reasons(rows_of(path, skip=skip)) == reasons(found)[skip:]


def test_a_csv_manifest_becomes_pictures_texts_and_typed_attributes(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(JPEG)
    path = tmp_path / "m.csv"
    path.write_text(
        "path,id,caption,text,year,tags,new,attributes,attributes.category,acl,time\r\n"
        'pictures/a.jpg,,"a, quoted","more text",2020,"[""x"",""y""]",True,"{""other"":1}",animals,"[""editors"",""bob""]",2026-01-01T00:00:00Z\r\n'
        ",t1,,only text,,,,,,anna,\r\n",
        encoding="utf-8-sig",
    )
    picture, text = rows_of(path)
    assert isinstance(picture, InputItem)
    assert isinstance(text, InputItem)
    assert (picture.item_id, picture.data, picture.content_type, picture.annotations.caption) == (
        "pictures/a.jpg", JPEG, "image/jpeg", "a, quoted\nmore text",
    )  # fmt: skip
    assert picture.annotations.attributes == {"other": 1, "year": 2020, "tags": ["x", "y"], "new": True, "category": "animals"}
    assert (picture.annotations.acl, picture.annotations.time) == (["editors", "bob"], "2026-01-01T00:00:00Z")
    assert (text.item_id, text.data, text.content_type, text.annotations.acl) == ("t1", b"only text", "text/plain", ["anna"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "no id"}, "missing_id"),
        ({"id": "", "text": "x"}, "bad_id"),
        ({"id": True, "text": "x"}, "bad_id"),
        ({"id": "x" * 513, "text": "x"}, "bad_id"),
        ({"id": "a"}, "empty"),
        ({"id": "a", "text": 7}, "bad_text"),
        ({"id": "a", "text": "x" * 1001}, "bad_text"),
        ({"id": "a", "text": "x" * 600, "caption": "y" * 600}, "bad_text"),
        ({"id": "a", "text": "\ud800"}, "bad_row"),
        ({"id": "a", "text": "x", "year": "last"}, "bad_attributes"),
        ({"id": "a", "text": "x", "attributes": "[1]"}, "bad_attributes"),
        ({"id": "a", "text": "x", "attributes": {"year": 1.5}}, "bad_attributes"),
        ({"id": "a", "text": "x", "acl": "a;b"}, "bad_acl"),
        ({"id": "a", "text": "x", "acl": [1]}, "bad_acl"),
        ({"id": "a", "text": "x", "time": "2026-01-01"}, "bad_time"),
        ({"id": "a", "text": "x", "time": 7}, "bad_time"),
        ({"id": "a", "path": "nowhere.jpg"}, "missing_file"),
        ({"id": "a", "path": "../outside.jpg"}, "missing_file"),
        ({"id": "a", "path": "/etc/hostname"}, "missing_file"),
        ({"id": "a", "path": "x/../../outside.jpg"}, "missing_file"),
        ({"id": "a", "path": "a\0b"}, "missing_file"),
        ({"id": "a", "path": "https://example.org/a.jpg"}, "bad_row"),
        ({"id": "a", "path": "notes.md"}, "not_media"),
        ({"id": "a", "path": "."}, "unreadable"),
        ({"id": "a", "path": "pipe"}, "unreadable"),
        ({"id": "a", "path": "big.jpg"}, "too_large"),
        ({"id": "a", "path": 7}, "bad_row"),
        ({"id": "a", "data_base64": "***"}, "bad_row"),
        ({"id": "a", "data_base64": "AAAA"}, "not_media"),
        ({"id": "a", "v": [1.0]}, "bad_vector"),
        ({"id": "a", "v": [1.0, "x"]}, "bad_vector"),
        ({"id": "a", "v": [[1.0], [2.0]]}, "bad_vector"),
        ({"id": "a", "v": [1e300, 1.0]}, "bad_vector"),
        ([1], "bad_row"),
    ],
)
def test_a_row_that_cannot_be_an_item_is_rejected_and_the_next_one_is_read(tmp_path: Path, row: Any, reason: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "outside.jpg").write_bytes(JPEG)
    (folder / "notes.md").write_text("no media")
    (folder / "big.jpg").write_bytes(JPEG + bytes(5_000))
    os.mkfifo(folder / "pipe")
    path = folder / "m.jsonl"
    path.write_text(json.dumps(row) + "\n\n" + json.dumps({"id": "next", "text": "x"}) + "\n")
    found = rows_of(path)
    assert reasons(found) == [reason, ""]
    assert isinstance(found[0], RejectedInput)
    assert found[0].name == f"{path}:1"
    assert found[0].message


def test_paths_are_relative_to_the_root_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.jpg").write_bytes(JPEG)
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "m.jsonl"
    path.write_text(json.dumps({"path": "./media/a.jpg"}) + "\n" + json.dumps({"path": str(tmp_path / "media" / "a.jpg")}) + "\n")
    assert reasons(rows_of(path)) == ["missing_file", "missing_file"]
    assert [entry.item_id for entry in rows_of(path, root=tmp_path) if isinstance(entry, InputItem)] == ["media/a.jpg", "media/a.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.csv", b"", "does not name columns"),
        ("m.csv", b"id,year\n", "no column with anything to index"),
        ("m.csv", b"id,text,id\n", "two columns are named 'id'"),
        ("m.csv", b'"id,text\n', "does not name columns"),
        ("m.parquet", b"PAR1 no parquet", "not a Parquet file"),
        ("m.tar", b"no tar at all", "not a tar"),
        ("m.tar.gz", b"\x1f\x8b no gzip", "not a tar"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_before_anything_is_sent(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=says):
        open_sources([tmp_path / name], RULES)


def test_broken_csv_lines_are_rejected_by_their_line_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"id,text\na,one\nb\nc,too,many\n\nd,\xff\xfe\ne,two\nlong," + b"x" * 20_000 + b'\nf,three\ng,"broken" quote\nh,four\n')
    found = rows_of(path)
    assert [(entry.name.rpartition(":")[2], entry.reason) for entry in found if isinstance(entry, RejectedInput)] == [
        ("3", "bad_row"), ("4", "bad_row"), ("6", "bad_text"), ("8", "bad_row"), ("10", "bad_row"),
    ]  # fmt: skip
    assert [entry.item_id for entry in found if isinstance(entry, InputItem)] == ["a", "e", "f", "h"]


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=50)
    return path


def test_a_parquet_manifest_keeps_its_types_and_its_vectors(tmp_path: Path) -> None:
    path = parquet(tmp_path / "m.parquet", {
        "id": pa.array([7, 8, 9]),
        "text": ["a", None, "c"],
        "v": pa.array([None, [1.0, 2.0], None], pa.list_(pa.float32())),
        "data": pa.array([None, None, JPEG], pa.binary()),
        "year": pa.array([2020.0, float("nan"), None]),
        "seen": pa.array([date(2026, 1, 2), None, None]),
        "price": pa.array([Decimal("9.50"), None, None]),
        "attributes": pa.array([[("k", "w")], None, None], pa.map_(pa.utf8(), pa.utf8())),
        "tags": pa.array([["x"], None, []], pa.list_(pa.utf8())),
        "acl": pa.array([["me"], None, None], pa.list_(pa.utf8())),
        "time": pa.array([datetime(2026, 1, 1), None, None], pa.timestamp("us")),  # noqa: DTZ001 - Parquet often has no zone
    })  # fmt: skip
    first, second, third = rows_of(path)
    assert isinstance(first, InputItem)
    assert isinstance(second, InputItem)
    assert isinstance(third, InputItem)
    assert (first.item_id, first.data, first.annotations.acl, first.annotations.time) == ("7", b"a", ["me"], "2026-01-01T00:00:00Z")
    assert first.annotations.attributes == {"year": 2020.0, "seen": "2026-01-02", "price": 9.5, "k": "w", "tags": ["x"]}
    assert second.vectors is not None
    assert np.array_equal(second.vectors["v"], np.array([1, 2], np.float32))
    assert second.annotations.attributes is None
    assert (third.data, third.content_type, third.annotations.caption) == (JPEG, "image/jpeg", "c")


def test_a_parquet_file_that_is_damaged_in_the_middle_is_read_up_to_there(tmp_path: Path) -> None:
    path = parquet(tmp_path / "m.parquet", {"id": [f"i{n}" for n in range(200)], "text": [f"text {n} " * 20 for n in range(200)]})
    data = bytearray(path.read_bytes())
    offset = pq.ParquetFile(path).metadata.row_group(2).column(1).data_page_offset
    data[offset : offset + 200] = bytes(200)
    path.write_bytes(data)
    found = rows_of(path)
    assert 0 < len(found) < 200
    assert set(reasons(found[:-1])) == {""}
    last = found[-1]
    assert isinstance(last, RejectedInput)
    assert (last.reason, "of 200 on cannot be read" in last.message) == ("unreadable", True)


def test_each_kind_of_manifest_reads_back_whole_from_the_log(engines: Engines, collection: CollectionRecord, stored: Stored, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "m.csv").write_text("file,caption,year\na.jpg,from csv,2020\n")
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"id": "inline", "data_base64": base64.b64encode(JPEG).decode(), "caption": "c", "acl": ["x"]}) + "\n"
    )
    vectors = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    parquet(tmp_path / "m.parquet", {
        "id": [f"row-{n}" for n in range(3000)],
        "v": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 4),
        "caption": [f"caption {n}" for n in range(3000)],
        "year": list(range(3000)),
        "time": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * 3000),
    })  # fmt: skip
    report = ingested(engines, collection, tmp_path / "m.csv", tmp_path / "m.jsonl", tmp_path / "m.parquet")
    assert (report.items, report.rejected) == (3002, {})
    assert report.records < 30  # rows share records
    found = items_of(stored(collection), collection)
    assert len(found) == 3002
    assert (found["a.jpg"].picture, found["a.jpg"].text, (found["a.jpg"].attributes or {})["year"]) == (JPEG, "from csv", 2020)
    assert (found["inline"].picture, found["inline"].text, found["inline"].acl) == (JPEG, "c", ["x"])
    for number in (0, 1023, 1024, 2999):
        item = found[f"row-{number}"]
        assert np.array_equal(item.vectors["v"], vectors[number])
        assert (item.text, (item.attributes or {})["year"], item.event_time_us) == (f"caption {number}", number, 1_767_225_600_000_000)


def test_standard_input_is_read_line_by_line_until_it_ends(
    engines: Engines, collection: CollectionRecord, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"id": f"s{n}", "text": "x"}) for n in range(5)] + ["{", json.dumps({"id": "w", "v": [1, 2, 3, 4]})]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    report = ingested(engines, collection, Path("-"))
    assert (report.items, dict(report.rejected)) == (6, {"bad_row": 1})
    assert set(items_of(stored(collection), collection)) == {*(f"s{n}" for n in range(5)), "w"}
