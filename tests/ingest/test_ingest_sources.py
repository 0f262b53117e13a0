from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError, RecordError, SettingsError
from contracts.log import LogRecord
from contracts.media_record import MediaItem, RecordLimits, read_media_record
from ingest.ingest_run import IngestReport, ingest_files, skipped_summary
from ingest.producer import MediaProducer
from ingest.sources import SkippedFile, find_files, picture_type, read_captions, typed_attributes

JPEG, PNG, WEBP = b"\xff\xd8\xff" + b"j" * 30, b"\x89PNG\r\n\x1a\n" + b"p" * 30, b"RIFF\0\0\0\0WEBP" + b"w" * 30
SAMPLES = Path(__file__).parents[2] / "examples" / "media"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "dog.jpg").write_bytes(JPEG)
    (tmp_path / "animals" / "no-suffix").write_bytes(PNG)
    (tmp_path / "wrong.txt").write_bytes(WEBP)
    (tmp_path / "README.md").write_text("not a picture")
    (tmp_path / ".hidden.jpg").write_bytes(JPEG)
    (tmp_path / "captions.csv").write_text(
        'file,caption,year,note\nanimals/dog.jpg,"a dog, asleep",2026,\nmissing.jpg,gone,,\n', encoding="utf-8-sig"
    )
    return tmp_path


def test_a_folder_is_walked_and_pictures_are_known_by_their_content(folder: Path) -> None:
    found = find_files([folder])
    assert [(file.item_id, file.content_type) for file in found.files] == [
        ("wrong.txt", "image/webp"),
        ("animals/dog.jpg", "image/jpeg"),
        ("animals/no-suffix", "image/png"),
    ]
    assert found.other_files == 1
    assert found.size_bytes == len(JPEG) + len(PNG) + len(WEBP)


def test_captions_and_attributes_come_from_the_folders_csv(folder: Path) -> None:
    found = find_files([folder])
    dog = next(file for file in found.files if file.item_id == "animals/dog.jpg")
    assert dog.caption == "a dog, asleep"
    assert dog.attributes == {"year": "2026"}
    assert [(row.name, "no such picture" in row.reason) for row in found.unused_rows] == [("missing.jpg", True)]
    assert found.skipped == []


def test_a_named_captions_file_replaces_the_folders_own(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("file,caption\n./wrong.txt,a web picture\n")
    found = find_files([folder], other)
    assert {file.item_id: file.caption for file in found.files}["wrong.txt"] == "a web picture"
    assert {file.item_id: file.caption for file in found.files}["animals/dog.jpg"] is None
    assert found.unused_rows == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name,caption\nx,y\n", "no column `file`"),
        (b"", "no column `file`"),
        (b"file,caption\na.jpg\n", ":2: the line has another number of columns"),
        (b"file,caption\na.jpg,x,y\n", ":2: the line has another number of columns"),
        (b"file,caption\na.jpg,x\na.jpg,y\n", ":3: 'a.jpg' is named twice"),
        (b"file,caption\na.jpg,\xff\n", "UTF-8"),
    ],
)
def test_a_captions_file_that_cannot_be_read_is_refused_with_its_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=expected):
        read_captions(path)


def test_single_files_are_named_by_their_file_name_and_text_is_taken_too(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "b.txt").write_text("some text")
    found = find_files([tmp_path / "a.jpg", tmp_path / "b.txt"])
    assert [(file.item_id, file.content_type) for file in found.files] == [("a.jpg", "image/jpeg"), ("b.txt", "text/plain")]


def test_what_cannot_be_ingested_at_all_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"nothing known")
    with pytest.raises(SettingsError, match="neither a picture nor"):
        find_files([tmp_path / "x.bin"])
    with pytest.raises(NotFoundError, match="does not exist"):
        find_files([tmp_path / "none"])
    with pytest.raises(SettingsError, match="cannot be read"):
        find_files([tmp_path], tmp_path / "none.csv")


def test_two_files_with_one_id_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(JPEG)
    with pytest.raises(SettingsError, match=r"both have the id 'a\.jpg'"):
        find_files([tmp_path / "one", tmp_path / "two"])
    assert [file.item_id for file in find_files([tmp_path]).files] == ["one/a.jpg", "two/a.jpg"]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (JPEG, "image/jpeg"),
        (PNG, "image/png"),
        (WEBP, "image/webp"),
        (b"GIF89a", "image/gif"),
        (b"BM\0\0", "image/bmp"),
        (b"II*\0", "image/tiff"),
        (b"MM\0*", "image/tiff"),
        (b"RIFF\0\0\0\0AVI ", None),
        (b"", None),
    ],
)
def test_the_first_bytes_tell_the_content_type(head: bytes, expected: str | None) -> None:
    assert (picture_type(head[:16]) or None) == expected


def test_csv_cells_become_values_of_the_collections_types() -> None:
    schema = {"year": "integer", "price": "float", "new": "bool", "tags": "keyword[]", "category": "keyword"}
    cells = {"year": "2026", "price": "1.5", "new": "True", "tags": '["a","b"]', "category": "7", "other": "007"}
    expected = {"year": 2026, "price": 1.5, "new": True, "tags": ["a", "b"], "category": "7", "other": "007"}
    assert typed_attributes(cells, schema) == expected
    with pytest.raises(RecordError, match="attribute year"):
        typed_attributes({"year": "last"}, schema)


def test_an_ingest_sends_every_file_once_and_tells_what_it_left_out(
    engines: Engines, collection: CollectionRecord, stored: Callable[[CollectionRecord], list[LogRecord]], folder: Path
) -> None:
    (folder / "captions.csv").write_text("file,caption,year\nanimals/dog.jpg,a dog,2026\nwrong.txt,,last year\n")
    found = find_files([folder])
    (folder / "animals" / "no-suffix").unlink()  # gone between the walk and the read
    seen: list[tuple[int, int]] = []
    with MediaProducer(engines.log, collection, engines.settings, bulk=True) as producer:
        report = ingest_files(found, producer, lambda progress: seen.append((progress.records, len(progress.skipped))))
    assert (report.records, report.size_bytes) == (1, len(JPEG))
    assert [Path(file.name).name for file in report.skipped] == ["wrong.txt", "no-suffix"]
    assert "attribute year" in report.skipped[0].reason
    assert len(seen) == 3
    (record,) = stored(collection)
    (item,) = read_media_record(record, collection, RecordLimits())
    assert isinstance(item, MediaItem)
    assert (item.id, item.text, item.picture) == ("animals/dog.jpg", "a dog", JPEG)
    assert report.next_offsets == {record.partition: 1}


def test_the_sample_media_are_found_whole_with_their_captions_and_categories() -> None:
    found = find_files([SAMPLES])
    assert len(found.files) == 325
    assert (found.skipped, found.unused_rows) == ([], [])
    assert all(file.caption and file.attributes and file.attributes["category"] == file.item_id.split("/")[0] for file in found.files)


def test_a_long_list_of_skipped_files_is_cut() -> None:
    lines = skipped_summary([SkippedFile(str(number), "bad") for number in range(13)])
    assert len(lines) == 11
    assert lines[-1] == "and 3 more"
    assert IngestReport().records == 0
