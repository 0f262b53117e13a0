"""Promises of the doctor: every check speaks for itself, what is wrong is named with what to do, nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from backends.folder_store import FolderStore
from backends.memory_log import MemoryLog
from backends.memory_store import open_memory_store
from contracts.collection import CollectionRecord, FieldRecord
from contracts.engines import Engines
from contracts.log import TopicSpec
from contracts.settings import Settings, load_settings
from embedding.lite import LiteEncoder
from headwater.doctor import Finding, examine
from headwater.wiring import encoder_fields, vector_field
from tests.embedding_server import MODEL, embedding_server
from tests.encoders import colour_fields
from tests.headwater.conftest import Headwater


def by_check(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    name = request.node.name.replace("[", "-").replace("]", "")[:60]
    return load_settings(log_url=f"memory://{name}", store_url=f"memory://{name}", cache_dir=tmp_path)


@pytest.fixture
def engines(settings: Settings) -> Engines:
    name = settings.log_url.removeprefix("memory://")
    return Engines(settings, MemoryLog(name), open_memory_store(name))


@pytest.fixture
def collection(engines: Engines) -> CollectionRecord:
    return create_collection(engines, CollectionRequest("vecs", [vector_field("v:4")], partitions=2))


def stored_objects(workplace: Path) -> list[str]:
    return [info.key for info in FolderStore(workplace / "store").list("")]


@pytest.mark.model
def test_a_healthy_installation_gets_no_failure_and_exit_code_0(headwater: Headwater, workplace: Path) -> None:
    headwater("collection", "create", "vecs", "--vector", "v:4")
    before = stored_objects(workplace)
    ended = headwater("doctor", "--json")
    findings = [Finding(**finding) for finding in json.loads(ended.out)]
    assert [finding for finding in findings if finding.level == "fail"] == []
    assert ended.code == 0
    assert {finding.check for finding in findings} == {"versions", "models", "disk", "log", "store", "clock", "topics", "archive"}
    assert stored_objects(workplace) == before, "the doctor left objects behind"


def test_findings_are_shown_one_per_line_with_what_to_do_below(headwater: Headwater, monkeypatch: pytest.MonkeyPatch) -> None:
    headwater("collection", "create", "vecs", "--vector", "v:4")
    monkeypatch.setattr("headwater.doctor._version", lambda package: None)  # as if nothing were installed
    ended = headwater("doctor")
    lines = ended.out.splitlines()
    assert "ok   topics: vecs: 4 partitions, retention as designed" in lines
    at = next(number for number, line in enumerate(lines) if line.startswith("fail versions: not installed: headwater"))
    assert lines[at + 1].strip() == "pip install headwater"
    assert ended.code == 1


@pytest.mark.model
def test_a_broker_that_is_not_there_fails_with_advice_and_the_other_checks_still_run(headwater: Headwater, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_LOG_URL", "kafka://127.0.0.1:9")
    ended = headwater("doctor", "--json")
    findings = [Finding(**finding) for finding in json.loads(ended.out)]
    (log,) = by_check(findings, "log")
    assert (ended.code, log.level) == (1, "fail")
    assert "127.0.0.1:9" in log.message
    assert log.advice
    assert [finding.level for finding in by_check(findings, "store")] == ["ok"]


def topics(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    monkeypatch.setattr("headwater.doctor._version", lambda package: None)  # no packages, so no model is loaded here
    return by_check(examine(settings), "topics")


def test_topics_as_designed_are_one_good_line(settings: Settings, collection: CollectionRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(finding.level, finding.message) for finding in topics(settings, monkeypatch)] == [("ok", "vecs: 2 partitions, retention as designed")]


def test_missing_packages_are_told_with_the_command_that_installs_them(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.doctor._version", lambda package: None)
    found = examine(settings)
    advice = " ".join(finding.advice for finding in by_check(found, "versions"))
    assert "pip install 'headwater[query]'" in advice
    assert "pip install 'headwater[indexer]'" in advice
    assert [finding.level for finding in by_check(found, "models")] == ["warn"]


@pytest.mark.model
def test_an_image_that_brings_its_networks_needs_no_torch_and_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converting = ("torch", "transformers")
    monkeypatch.setattr("headwater.doctor._version", lambda package: None if package in converting else "1.0")
    plain = load_settings(log_url="memory://", store_url="memory://", cache_dir=tmp_path)
    [skipped] = by_check(examine(plain), "models")
    assert (skipped.level, "torch is not installed" in skipped.message) == ("warn", True)
    LiteEncoder(plain)
    findings = examine(plain.model_copy(update={"networks_dir": tmp_path / "models", "cache_dir": tmp_path / "other"}))
    assert [finding.level for finding in by_check(findings, "models")] == ["ok"]
    assert not [finding for finding in by_check(findings, "versions") if finding.level != "ok"]
    assert not (tmp_path / "other").exists()


def test_a_vectors_topic_that_forgets_is_a_failure(
    settings: Settings, engines: Engines, collection: CollectionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = collection.index().vectors_topic
    engines.log.delete_topic(name)
    made = engines.log.create_topic(TopicSpec(name, 2, 60_000))
    messages = [finding.message for finding in topics(settings, monkeypatch) if finding.level == "fail"]
    assert any("retention.ms=60000" in message for message in messages)
    assert any(f"topic {name} was deleted and made again" in message for message in messages)
    assert made.partitions == 2


def test_a_media_topic_that_is_gone_or_has_other_partitions_is_a_failure(
    settings: Settings, engines: Engines, collection: CollectionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines.log.delete_topic(collection.source_topic)
    assert any("media does not exist" in finding.message for finding in topics(settings, monkeypatch) if finding.level == "fail")


def test_another_retention_than_the_settings_say_is_a_warning(
    settings: Settings, collection: CollectionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = settings.model_copy(update={"media_retention_seconds": 3600})
    (warning,) = [finding for finding in topics(changed, monkeypatch) if finding.level == "warn"]
    assert "retention.ms=604800000, the settings say 3600000" in warning.message
    assert "HEADWATER_MEDIA_RETENTION_SECONDS" in warning.advice


def encoders(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.setattr("headwater.doctor._version", lambda package: None)  # no packages, so no model is loaded here
    return [(finding.level, finding.message) for finding in by_check(examine(settings), "encoders")]


def test_an_encoder_that_is_not_there_or_makes_other_vectors_is_a_failure(
    settings: Settings, engines: Engines, collection: CollectionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert encoders(settings, monkeypatch) == []  # own vectors alone
    create_collection(engines, CollectionRequest("strange", colour_fields()))
    other = FieldRecord(name="text", source="text", encoder="lite", space_id="lite@0", dimension=384, dtype="float32")
    create_collection(engines, CollectionRequest("other", [other]))
    create_collection(engines, CollectionRequest("good", encoder_fields("lite", ["image", "text"], settings)))
    (strange, lite) = encoders(settings, monkeypatch)
    assert strange[0] == "fail" and "colour, of strange: encoder 'colour' is unknown" in strange[1]
    assert lite[0] == "fail" and lite[1].endswith("those of other are in another")


def test_a_remote_encoder_is_asked_for_one_vector(settings: Settings, engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    with embedding_server() as server:
        fields = encoder_fields(f"remote:{server.url}#{MODEL}&pixels=64", ["image", "text"], settings)
        create_collection(engines, CollectionRequest("remote", fields))
        create_collection(engines, CollectionRequest("again", fields))
        asked = len(server.requests)
        ((level, message),) = encoders(settings, monkeypatch)
        assert (level, "of again, remote" in message) == ("ok", True) and len(server.requests) > asked
        server.twist = np.roll(server.twist, 1, 0)  # another model behind the same URL
        assert [level for level, _ in encoders(settings, monkeypatch)] == ["fail"]
    ((level, message),) = encoders(settings, monkeypatch)
    assert level == "fail" and "does not answer" in message


def test_a_full_disk_is_told_before_it_stops_a_commit(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, level in ((500, "fail"), (5_000_000_000, "warn"), (50_000_000_000, "ok")):
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: type("Usage", (), {"free": free}))
        monkeypatch.setattr("headwater.doctor._version", lambda package: None)
        assert [finding.level for finding in by_check(examine(settings), "disk")] == [level]


def test_clocks_that_disagree_are_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real = __import__("time").time
    monkeypatch.setattr("headwater.doctor._version", lambda package: None)
    for shift, level in ((0, "ok"), (30, "warn"), (4000, "fail"), (-30, "warn")):
        monkeypatch.setattr("headwater.doctor.time.time", lambda shift=shift, frame=None: real() + (shift if called_by_doctor() else 0))
        assert [finding.level for finding in by_check(examine(settings), "clock")] == [level], shift


def called_by_doctor() -> bool:
    import sys

    return sys._getframe(2).f_globals["__name__"] == "headwater.doctor"
