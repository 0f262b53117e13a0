"""Promises of WebDataset tars: samples become items, damage is told, nothing touches the disk, nothing large is read."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import SettingsError
from contracts.log import LogRecord
from contracts.media_record import MediaItem, RecordLimits, read_media_record
from ingest.ingest_run import IngestRun, ingest_sources
from ingest.input_item import InputItem, InputRules, RejectedInput
from ingest.producer import MediaProducer
from ingest.sources import open_sources
from tests.examples import examples

JPEG, PNG = b"\xff\xd8\xff" + b"j" * 30, b"\x89PNG\r\n\x1a\n" + b"p" * 30
RULES = InputRules({"year": "integer"}, {"v": 2}, 10_000, 1_000)
SAMPLES = Path(__file__).parents[2] / "examples" / "media"


def npy(values: Sequence[float], dtype: str = "float32") -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(values, dtype))
    return out.getvalue()


def tar_bytes(members: Sequence[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(path: Path, content: bytes | None = None, rules: InputRules = RULES, skip: int = 0) -> list[InputItem | RejectedInput]:
    if content is not None:
        path.write_bytes(content)
    (source,) = open_sources([path], rules).sources
    (unit,) = source.units()
    assert not isinstance(unit, RejectedInput)
    return list(unit.read(skip))


def shape(found: Sequence[InputItem | RejectedInput]) -> list[str]:
    return [entry.reason if isinstance(entry, RejectedInput) else entry.item_id for entry in found]


SAMPLE_MEMBERS = [
    ("train/0001.jpg", JPEG),
    ("train/0001.json", json.dumps({"year": 2020, "caption": "from json", "path": "/etc/passwd"}).encode()),
    ("train/0001.cls", b"7\n"),
    ("train/0001.seg.png", PNG),
    ("./0002.PNG", PNG),
    ("./0002.txt", b"a caption\n"),
    ("0003.txt", b"a text"),
    ("0004.v.npy", npy([1, 2], "float16")),
    ("0004.txt", b"beside a vector"),
    ("0005.npy", npy([3, 4], "float64")),
    ("0006.jpg", JPEG),
    ("0006.json", json.dumps({"id": "own-id", "acl": ["x"]}).encode()),
]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_samples_become_items_with_all_that_their_members_say(tmp_path: Path, suffix: str) -> None:
    content = tar_bytes(SAMPLE_MEMBERS)
    found = read(tmp_path / f"x{suffix}", content if suffix == ".tar" else gzip.compress(content))
    assert shape(found) == ["train/0001", "0002", "0003", "0004", "0005", "own-id"]
    first, second, third, fourth, fifth, sixth = (entry for entry in found if isinstance(entry, InputItem))
    assert (first.data, first.annotations.caption, first.annotations.attributes) == (JPEG, "from json", {"year": 2020, "cls": 7})
    assert (second.content_type, second.annotations.caption) == ("image/png", "a caption")
    assert (third.content_type, third.data) == ("text/plain", b"a text")
    assert fourth.vectors is not None
    assert fifth.vectors is not None
    assert (fourth.vectors["v"].tolist(), fourth.annotations.caption) == ([1.0, 2.0], "beside a vector")
    assert fifth.vectors["v"].tolist() == [3.0, 4.0]
    assert sixth.annotations.acl == ["x"]


def test_names_that_webdataset_passes_over_are_no_samples(tmp_path: Path) -> None:
    members = [("__index__", b"x"), ("README", b"x"), (".hidden.txt", b"x"), ("folder/", b""), ("a.txt", b"t"), ("b.", b"x")]
    assert shape(read(tmp_path / "x.tar", tar_bytes(members))) == ["a"]


def test_skipping_samples_gives_the_same_rest(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    everything = shape(read(path, tar_bytes(SAMPLE_MEMBERS)))
    for skip in range(7):
        assert shape(read(path, skip=skip)) == everything[skip:]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.jpg", b"no picture")], "not_media"),
        ([("a.jpg", JPEG), ("a.png", PNG)], "too_many_parts"),
        ([("a.jpg", JPEG), ("a.jpg", JPEG)], "bad_member"),
        ([("a.jpg", JPEG + bytes(10_000))], "too_large"),
        ([("a.txt", b"x" * 1001)], "too_large"),
        ([("a.txt", b"\xff")], "bad_text"),
        ([("a.json", b"{")], "bad_attributes"),
        ([("a.txt", b"t"), ("a.json", b'{"year": "x"}')], "bad_attributes"),
        ([("a.npy", b"no array")], "bad_vector"),
        ([("a.npy", npy([1, 2]).replace(b"{'descr", b"\0'descr"))], "bad_vector"),
        ([("a.npy", npy([1, 2]).replace(b"}", b"\0"))], "bad_vector"),
        ([("a.npy", npy([1, 2]).replace(b"(2,)", b"[[[["))], "bad_vector"),
        ([("a.npy", npy([1, 2, 3]))], "bad_vector"),
        ([("a.npy", npy([1, float("nan")]))], "bad_vector"),
        ([("a.npy", npy([1, 2], "int32"))], "bad_vector"),
        ([("a.npy", npy([1, 2]).replace(b"(2,)", b"(9,)"))], "bad_vector"),
        ([("a.other", b"nothing we know")], "empty"),
        ([("x" * 600 + ".txt", b"t")], "bad_id"),
    ],
)
def test_a_sample_that_cannot_be_an_item_is_rejected_and_the_next_one_is_read(tmp_path: Path, members: list[tuple[str, bytes]], reason: str) -> None:
    found = read(tmp_path / "x.tar", tar_bytes([*members, ("next.txt", b"t")]))
    assert shape(found) == [reason, "next"]


def test_an_array_of_python_objects_is_never_unpickled(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.save(out, np.array([{}, {}], object), allow_pickle=True)
    assert shape(read(tmp_path / "x.tar", tar_bytes([("a.npy", out.getvalue())]))) == ["bad_vector"]


def test_links_devices_and_names_that_lead_elsewhere_stay_names(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("dev.jpg", tarfile.CHRTYPE),
            ("folder.jpg", tarfile.DIRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("../../escape.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"t"))
    before = sorted(tmp_path.rglob("*"))
    assert shape(read(tmp_path / "x.tar", out.getvalue())) == ["../../escape"]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "x.tar"])


@pytest.mark.parametrize("is_gzip", [False, True])
@pytest.mark.parametrize("keep", [0.3, 0.55, 0.8])
def test_a_tar_that_is_cut_short_is_read_up_to_there_and_says_so(tmp_path: Path, is_gzip: bool, keep: float) -> None:
    rng = np.random.default_rng(0)
    content = tar_bytes([(f"{n:03}.jpg", JPEG + rng.bytes(3000)) for n in range(40)])
    content = gzip.compress(content) if is_gzip else content
    found = read(tmp_path / ("x.tar.gz" if is_gzip else "x.tar"), content[: int(len(content) * keep)])
    assert shape(found)[-1] == "bad_member"
    assert set(shape(found)[:-1]) <= {f"{n:03}" for n in range(40)}
    assert abs(len(found) - 40 * keep) < 5
    assert isinstance(found[-1], RejectedInput)
    assert "the rest of the tar was not read" in found[-1].message


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    content = bytearray(tar_bytes([(f"{n}.txt", b"t") for n in range(10)]))
    content[5 * 1024 : 5 * 1024 + 400] = b"\xee" * 400
    found = read(tmp_path / "x.tar", bytes(content))
    assert shape(found) == ["0", "1", "2", "3", "bad_member"]  # the fifth is not known to be whole
    found = read(tmp_path / "x.tar", tar_bytes([(f"{n}.txt", b"t") for n in range(3)])[: 3 * 1024])
    assert shape(found) == ["0", "1", "bad_member"]


def test_a_name_header_that_claims_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 4 << 30
    content = tar_bytes([("a.txt", b"t"), ("b.txt", b"t")])[: 2 * 1024] + info.tobuf() + bytes(4096)
    assert shape(read(tmp_path / "x.tar", content))[-1] == "bad_member"
    with pytest.raises(SettingsError, match="not a tar"):
        read(tmp_path / "y.tar", info.tobuf() + bytes(4096))


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_rejects_and_never_an_exception(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(tar_bytes(SAMPLE_MEMBERS))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(512, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(content[: data.draw(st.integers(1024, len(content)))]))
    for entry in read(path):
        assert isinstance(entry, InputItem | RejectedInput)


def sample_tar(path: Path, count: int) -> Mapping[str, bytes]:
    pictures = {f"{number:05}": file.read_bytes() for number, file in enumerate(sorted(SAMPLES.rglob("*.jpg"))[:count])}
    path.write_bytes(
        tar_bytes([member for key, data in pictures.items() for member in ((f"{key}.jpg", data), (f"{key}.txt", f"caption {key}".encode()))])
    )
    return pictures


def test_a_tar_reads_back_whole_from_the_log(
    engines: Engines, collection: CollectionRecord, stored: Callable[[CollectionRecord], list[LogRecord]], tmp_path: Path
) -> None:
    pictures = sample_tar(tmp_path / "shard-000000.tar", 40)
    opened = open_sources([tmp_path / "shard-000000.tar"], InputRules.of(collection, engines.settings))
    with MediaProducer(engines.log, collection, engines.settings, bulk=True) as producer:
        report = ingest_sources(IngestRun(producer), opened)
    assert (report.items, report.rejected) == (40, {})
    assert report.source_bytes == (tmp_path / "shard-000000.tar").stat().st_size
    found = {}
    for record in stored(collection):
        (item,) = read_media_record(record, collection, RecordLimits())
        assert isinstance(item, MediaItem)
        found[item.id] = (item.picture, item.text)
    assert found == {key: (data, f"caption {key}") for key, data in pictures.items()}


def test_a_tar_that_the_webdataset_library_wrote_is_read_whole(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the webdataset library is not installed")
    path = tmp_path / "written.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for number in range(20):
            writer.write(
                {"__key__": f"set/{number:03}", "jpg": JPEG, "txt": f"text {number}".encode(), "json": b'{"year": 2020}', "npy": npy([1, number])}
            )
    found = read(path)
    assert shape(found) == [f"set/{number:03}" for number in range(20)]
    assert all(isinstance(entry, InputItem) and entry.vectors is not None and entry.vectors["v"][1] == n for n, entry in enumerate(found))
    without = read(path, rules=InputRules({}, {}, 10_000, 1_000))
    assert all(isinstance(entry, InputItem) and (entry.data, entry.annotations.caption) == (JPEG, f"text {n}") for n, entry in enumerate(without))
