"""bench.json, bench.png, the command, and W4's way of measuring."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from bench.__main__ import main
from bench.feeds import DIMENSION, MEDIA, VECTOR_FIELD_WORDS, PictureFeed, VectorFeed
from bench.frame import Goal, Measure, Outcome
from bench.machine import ROOT, facts
from bench.picture import draw
from bench.processes import BenchProcess, child_environment, cpu_seconds, wait_until
from bench.results import measures, write_results
from bench.w4_time_to_searchable import TimeToSearchable, time_to_found
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.log import TopicSpec
from contracts.settings import load_settings
from headwater.wiring import vector_field
from ingest.producer import MediaProducer

HERE = {"commit": "a" * 40, "cpu": "some", "cores": 2, "measured_at": "2026-11-23T00:00:00+00:00"}
FAST = Measure(0.02, "seconds", 0.018, 0.025, 100)
RATIO = Measure(1.4, "ratio", 1.2, 1.6, 100)


def test_every_mode_is_written_with_value_unit_interval_and_count(tmp_path: Path) -> None:
    write_results(tmp_path, HERE, {"W4": Outcome({"kafka_vectors_p50": FAST}, {"partitions": 4})})
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["W4"] == {"kafka_vectors_p50": {"value": 0.02, "unit": "seconds", "low": 0.018, "high": 0.025, "n": 100}}
    assert document["_machine"] == HERE
    assert document["_notes"]["W4"] == {"partitions": 4, "measured_at": HERE["measured_at"]}
    assert measures(document) == {"W4": {"kafka_vectors_p50": FAST}}


def test_other_workloads_of_the_same_commit_stay_and_those_of_another_go(tmp_path: Path) -> None:
    write_results(tmp_path, HERE, {"W1": Outcome({"lite": RATIO})})
    assert set(measures(write_results(tmp_path, HERE, {"W4": Outcome({"a": FAST})}))) == {"W1", "W4"}
    later = write_results(tmp_path, HERE | {"commit": "b" * 40}, {"W4": Outcome({"a": FAST})})
    assert set(measures(later)) == {"W4"} and set(later["_notes"]) == {"W4"}


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("{")
    assert set(measures(write_results(tmp_path, HERE, {"W4": Outcome({"a": FAST})}))) == {"W4"}


def test_the_machine_is_described_without_naming_a_path_or_a_user() -> None:
    found = facts()
    assert found["cores"] >= 1 and found["cpu"] and found["packages"]["numpy"]
    assert str(Path.home()) not in json.dumps(found).split('"') and str(ROOT) not in json.dumps(found)


def test_the_picture_is_drawn_and_shows_something(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.png"
    draw({"W4": {"vectors_p50": FAST, "over": RATIO}, "W9": {"x": RATIO}}, {"W4": {"vectors_p50": Goal(0.05)}}, {"W4": "time"}, "here", path)
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # PNG's IHDR (RFC 2083, 4.1.1)
    assert data.startswith(b"\x89PNG") and width > 800 and height > 400
    assert len(data) > 10_000, "an empty figure is smaller"


def test_a_goal_is_met_by_the_value() -> None:
    assert Goal(0.05).is_met(FAST) and not Goal(0.01).is_met(FAST)
    assert Goal(1.0, smaller_is_better=False).is_met(RATIO)


def test_the_goals_of_w4_are_those_of_the_design() -> None:
    goals = TimeToSearchable().goals
    for place in ("embedded", "kafka"):
        assert {mode: goals[f"{place}_{mode}"].limit for mode in ("pictures_p50", "vectors_p50", "pictures_p99_half_load")} == {
            "pictures_p50": 0.3,
            "vectors_p50": 0.05,
            "pictures_p99_half_load": 1.5,
        }


def test_the_command_explains_itself_and_refuses_unknown_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    helped = subprocess.run([sys.executable, "-m", "bench", "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert helped.returncode == 0 and "--quick" in helped.stdout and "W4" in helped.stdout
    with pytest.raises(SystemExit) as refused:
        main(["W99"])
    assert refused.value.code == 2 and "W99" in capsys.readouterr().err


def test_time_to_found_measures_from_the_send_to_the_answer() -> None:
    log = MemoryLog()
    log.create_topic(TopicSpec("t", 1, -1))
    producer, reader = log.producer(), log.reader("t", {0: 0})
    seen: set[bytes | None] = set()

    def is_found() -> bool:
        seen.update(record.key for record in reader.poll(0.0))
        return b"k" in seen

    assert time_to_found(lambda: producer.send("t", partition=0, key=b"k", value=b"v"), is_found) < 30.0
    assert seen == {b"k"}
    begin = time.perf_counter()
    assert 0.05 <= time_to_found(lambda: None, lambda: time.perf_counter() - begin > 0.05) < 30.0
    with pytest.raises(UnavailableError, match="not searchable"):
        time_to_found(lambda: None, lambda: False, limit_seconds=0.02)
    log.close()


def test_feeds_send_one_item_per_record_with_the_bytes_they_name() -> None:
    engines = Engines(load_settings(), MemoryLog(), MemoryStore())
    collection = create_collection(engines, CollectionRequest("c", [vector_field(VECTOR_FIELD_WORDS)], partitions=1))
    pictures, vectors = PictureFeed(1), VectorFeed(1)
    with MediaProducer(engines.log, collection, engines.settings) as producer:
        for number in range(2):
            pictures.send(producer, f"p{number}").result(10)
            vectors.send(producer, f"v{number}").result(10)
    records = engines.log.reader(collection.source_topic, {0: 0}).poll(1.0)
    assert [record.header("content-type") for record in records[:2]] == [b"image/jpeg", b"application/vnd.apache.arrow.stream"]
    assert records[0].key == b"p0" and (records[0].value or b"").startswith(b"\xff\xd8") and records[0].header("hw_caption")
    assert records[0].value != records[2].value and records[1].value != records[3].value
    assert len(records[1].value or b"") == len(vectors.value("v2")) > DIMENSION * 2
    assert MEDIA.is_dir()
    engines.log.close()


def test_a_process_that_ends_early_is_told_with_the_end_of_its_output(tmp_path: Path) -> None:
    with BenchProcess("bad", [sys.executable, "-c", "import sys; sys.exit('no such thing')"], {}, tmp_path) as process:
        with pytest.raises(UnavailableError, match="no such thing"):
            wait_until(lambda: False, "nothing", [process], timeout_seconds=20.0)


def test_a_talking_process_ends_when_its_stdin_closes(tmp_path: Path) -> None:
    code = "from bench.processes import stop_when_stdin_closes as s; e = s(); print('ready', flush=True); e.wait(30); print('bye', flush=True)"
    with BenchProcess("talker", [sys.executable, "-c", code], {}, tmp_path, talks=True) as process:
        assert process.read_line() == "ready"
        spent = cpu_seconds(process.pid)
        assert spent is not None and spent > 0
        assert process.finish() == "bye"


def test_children_get_the_benchmark_s_settings_and_none_of_the_caller_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_LOG_URL", "memory://caller")
    monkeypatch.setenv("HEADWATER_SEAL_ROWS", "5")
    environment = child_environment({"log_url": "memory://ours"})
    assert {name: value for name, value in environment.items() if name.startswith("HEADWATER_")} == {"HEADWATER_LOG_URL": "memory://ours"}
