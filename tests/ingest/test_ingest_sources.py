"""Promises of folders and single files: what is found, what belongs to it, what is refused before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError, SettingsError
from contracts.log import LogRecord
from contracts.media_record import MediaItem, RecordLimits, picture_type, read_media_record
from ingest.captions import read_captions
from ingest.folder_source import FileUnit, FolderSource
from ingest.ingest_run import IngestReport, IngestRun, ingest_sources, rejected_summary
from ingest.input_item import INPUT_REASONS, InputError, InputItem, InputRules, RejectedInput
from ingest.producer import MediaProducer
from ingest.sources import open_sources

JPEG, PNG, WEBP = b"\xff\xd8\xff" + b"j" * 30, b"\x89PNG\r\n\x1a\n" + b"p" * 30, b"RIFF\0\0\0\0WEBP" + b"w" * 30
SAMPLES = Path(__file__).parents[2] / "examples" / "media"
RULES = InputRules({"category": "keyword", "year": "integer"}, {}, 100_000, 1000)


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


def units(source: FolderSource) -> list[FileUnit]:
    found = list(source.units())
    assert all(isinstance(unit, FileUnit) for unit in found), found
    return found  # type: ignore[return-value]


def entries(path: Path, captions: Path | None = None) -> dict[str, InputItem | RejectedInput]:
    """What a source yields, by unit."""
    (source,) = open_sources([path], RULES, captions).sources
    return {unit.name: next(unit.read(0)) for unit in source.units() if not isinstance(unit, RejectedInput)}


def test_a_folder_is_walked_and_pictures_are_known_by_their_content(folder: Path) -> None:
    source = FolderSource(folder, RULES)
    assert [(unit.name, unit.content_type) for unit in units(source)] == [
        ("wrong.txt", "image/webp"),
        ("animals/dog.jpg", "image/jpeg"),
        ("animals/no-suffix", "image/png"),
    ]
    assert source.other_files == 1
    assert source.size_bytes() >= sum(unit.size_bytes for unit in units(source)) == len(JPEG) + len(PNG) + len(WEBP)


def test_captions_and_attributes_come_from_the_folders_csv(folder: Path) -> None:
    opened = open_sources([folder], RULES)
    found = {unit.name: next(unit.read(0)) for unit in opened.sources[0].units() if isinstance(unit, FileUnit)}
    dog = found["animals/dog.jpg"]
    assert isinstance(dog, InputItem)
    assert (dog.annotations.caption, dog.annotations.attributes) == ("a dog, asleep", {"year": 2026})
    assert [line.split(":")[0] for line in opened.unused_captions()] == ["missing.jpg"]


def test_a_named_captions_file_replaces_the_folders_own(folder: Path) -> None:
    other = folder / "other.csv"
    other.write_text("file,caption\n./wrong.txt,a web picture\nnowhere.jpg,x\n")
    opened = open_sources([folder], RULES, other)
    found = {unit.name: unit.caption for unit in opened.sources[0].units() if isinstance(unit, FileUnit)}
    assert (found["wrong.txt"], found["animals/dog.jpg"]) == ("a web picture", None)
    assert [line.split(":")[0] for line in opened.unused_captions()] == ["nowhere.jpg"]


def test_files_beside_a_picture_describe_it_and_the_captions_file_wins(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(JPEG)
    (tmp_path / "cat.txt").write_text("a cat from the text\n")
    (tmp_path / "cat.json").write_text('{"id": "ignored", "caption": "from json", "year": 1999, "acl": ["a"], "time": "2026-01-01T00:00:00Z"}')
    (tmp_path / "dog.png").write_bytes(PNG)
    (tmp_path / "dog.txt").write_text("a dog")
    (tmp_path / "note.txt").write_text("a text of its own")
    (tmp_path / "note.json").write_text('{"category": "notes"}')
    (tmp_path / "captions.csv").write_text("file,caption,year\ndog.png,a dog from the csv,2000\n")
    found = entries(tmp_path)
    assert set(found) == {"cat.jpg", "dog.png", "note.txt"}
    cat, dog, note = (found[name] for name in ("cat.jpg", "dog.png", "note.txt"))
    assert isinstance(cat, InputItem)
    assert isinstance(dog, InputItem)
    assert isinstance(note, InputItem)
    assert (cat.item_id, cat.annotations.caption, cat.annotations.attributes) == ("cat.jpg", "a cat from the text", {"year": 1999})
    assert (cat.annotations.acl, cat.annotations.time) == (["a"], "2026-01-01T00:00:00Z")
    assert (dog.annotations.caption, dog.annotations.attributes) == ("a dog from the csv", {"year": 2000})
    assert (note.data, note.content_type, note.annotations.attributes) == (b"a text of its own", "text/plain", {"category": "notes"})


def test_a_changed_sidecar_or_caption_changes_the_units_stamp(tmp_path: Path) -> None:
    def stamp() -> str:
        source = FolderSource(tmp_path, RULES)
        source.check()
        (unit,) = units(source)
        return unit.stamp

    (tmp_path / "a.jpg").write_bytes(JPEG)
    stamps = [stamp(), stamp()]
    (tmp_path / "a.txt").write_text("one")
    stamps.append(stamp())
    (tmp_path / "captions.csv").write_text("file,caption\na.jpg,x\n")
    stamps.append(stamp())
    (tmp_path / "captions.csv").write_text("file,caption\na.jpg,y\n")
    stamps.append(stamp())
    (tmp_path / "a.jpg").write_bytes(JPEG + b"more")
    stamps.append(stamp())
    assert stamps[0] == stamps[1]
    assert len(set(stamps)) == 5


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"{", "bad_attributes"),
        ("a.json", b"[]", "bad_attributes"),
        ("a.json", b'{"year": "last"}', "bad_attributes"),
        ("a.json", b'{"acl": "a,b"}', "bad_acl"),
        ("a.json", b'{"time": "today"}', "bad_time"),
        ("a.txt", b"\xff\xfe", "bad_text"),
        ("a.txt", b"x" * 1001, "too_large"),
    ],
)
def test_a_picture_with_a_broken_sidecar_is_rejected_with_the_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / name).write_bytes(content)
    (found,) = entries(tmp_path).values()
    assert isinstance(found, RejectedInput)
    assert (found.name, found.reason) == (str(tmp_path / "a.jpg"), reason)


def test_files_that_cannot_be_items_are_rejected_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "big.jpg").write_bytes(JPEG + bytes(100_000))
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "good.jpg").write_bytes(JPEG)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    found = entries(tmp_path)
    reasons = {name: entry.reason if isinstance(entry, RejectedInput) else "" for name, entry in found.items()}
    assert reasons == {"big.jpg": "too_large", "latin.txt": "bad_text", "empty.txt": "empty", "good.jpg": ""}
    assert [unit.reason for unit in FolderSource(tmp_path, RULES).units() if isinstance(unit, RejectedInput)] == ["unreadable"]


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
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "b.txt").write_text("some text")
    opened = open_sources([tmp_path / "a.jpg", tmp_path / "b.txt"], RULES)
    found = [next(unit.read(0)) for source in opened.sources for unit in source.units() if not isinstance(unit, RejectedInput)]
    assert [(item.item_id, item.content_type, item.annotations.caption) for item in found if isinstance(item, InputItem)] == [
        ("a.jpg", "image/jpeg", "a caption"),
        ("b.txt", "text/plain", None),
    ]


def test_what_cannot_be_ingested_at_all_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"nothing known")
    with pytest.raises(SettingsError, match="none of a picture"):
        open_sources([tmp_path / "x.bin"], RULES)
    with pytest.raises(NotFoundError, match="does not exist"):
        open_sources([tmp_path / "none"], RULES)
    with pytest.raises(SettingsError, match="cannot be read"):
        open_sources([tmp_path], RULES, tmp_path / "none.csv")
    with pytest.raises(SettingsError, match="named twice"):
        open_sources([tmp_path, tmp_path / "."], RULES)


def test_two_files_with_one_id_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(JPEG)
    with pytest.raises(SettingsError, match=r"both have the id 'a\.jpg'"):
        open_sources([tmp_path / "one", tmp_path / "two"], RULES)
    assert [unit.name for unit in units(FolderSource(tmp_path, RULES))] == ["one/a.jpg", "two/a.jpg"]


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


def test_an_ingest_sends_every_file_once_and_tells_what_it_left_out(
    engines: Engines, collection: CollectionRecord, stored: Callable[[CollectionRecord], list[LogRecord]], folder: Path
) -> None:
    (folder / "captions.csv").write_text("file,caption,year\nanimals/dog.jpg,a dog,2026\nwrong.txt,,last year\n")
    (folder / "animals" / "big.jpg").write_bytes(JPEG + bytes(1_000_001))
    seen: list[int] = []
    left_out: list[RejectedInput] = []
    opened = open_sources([folder], InputRules.of(collection, engines.settings))
    with MediaProducer(engines.log, collection, engines.settings, bulk=True) as producer:
        run = IngestRun(producer, lambda progress: seen.append(progress.rejected.total()), left_out.append)
        report = ingest_sources(run, opened)
    assert (report.items, report.records, report.size_bytes, report.other_files) == (2, 2, len(JPEG) + len(PNG), 1)
    assert {(Path(rejected.name).name, rejected.reason) for rejected in left_out} == {("wrong.txt", "bad_attributes"), ("big.jpg", "too_large")}
    assert report.first_rejected == left_out
    assert "attribute year" in rejected_summary(report)[0]
    assert len(seen) == 4
    found = {}
    for record in stored(collection):
        (item,) = read_media_record(record, collection, RecordLimits())
        assert isinstance(item, MediaItem)
        found[item.id] = (item.text, item.picture)
    assert found == {"animals/dog.jpg": ("a dog", JPEG), "animals/no-suffix": (None, PNG)}
    assert sum(report.next_offsets.values()) == 2


def test_the_sample_media_are_found_whole_with_their_captions_and_categories() -> None:
    source = FolderSource(SAMPLES, RULES)
    source.check()
    found = units(source)
    assert len(found) == 325
    assert all(unit.caption and unit.row and unit.row.cells["category"] == unit.name.split("/")[0] for unit in found)


def test_a_long_list_of_rejected_inputs_is_cut_by_reason() -> None:
    report = IngestReport()
    report.rejected["bad_row"] = 13
    report.first_rejected = [RejectedInput(str(number), "bad_row", "bad") for number in range(5)]
    lines = rejected_summary(report)
    assert (len(lines), lines[-1]) == (6, "bad_row: and 8 more")
    with pytest.raises(ValueError, match="unknown reject reason"):
        InputError("no_such_reason", "x")


def test_every_reason_of_a_rejected_input_is_in_the_manual() -> None:
    manual = (SAMPLES.parents[1] / "docs" / "operations.md").read_text()
    assert not [reason for reason, meaning in INPUT_REASONS.items() if f"| `{reason}` | {meaning}" not in manual]
