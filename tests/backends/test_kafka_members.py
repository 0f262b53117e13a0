"""Members of a group with a name of their own: a restart takes the partitions over at once, and the one before it ends."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from backends.kafka_settings import group_options
from backends.open_log import open_log
from contracts.errors import FencedError, SettingsError
from contracts.log import CommittedOffset, GroupReader, Log, TopicSpec
from contracts.settings import Settings, load_settings


def test_a_process_without_a_name_is_a_dynamic_member_and_a_named_one_static() -> None:
    settings = load_settings(log_url="kafka://127.0.0.1:9092")
    assert "group_instance_id" not in group_options(settings, "g")
    assert group_options(load_settings(log_url="kafka://127.0.0.1:9092", kafka_instance_id="embed-0"), "g")["group_instance_id"] == "embed-0"


@pytest.mark.parametrize("name", ["a b", "..", "a/b", "x" * 201, "ä"])
def test_a_name_that_kafka_would_refuse_is_a_wrong_setting(name: str) -> None:
    with pytest.raises(SettingsError, match="kafka_instance_id"):
        load_settings(kafka_instance_id=name)


@pytest.fixture
def named(kafka_settings: Settings) -> Iterator[Log]:
    log = open_log(load_settings(log_url=kafka_settings.log_url, kafka_replication=1, kafka_instance_id="pod-0"))
    yield log
    log.close()


def assigned_after(reader: GroupReader, partitions: int, seconds: float = 30.0) -> float:
    began, owned = time.monotonic(), set[int]()
    while len(owned) < partitions:
        assert time.monotonic() - began < seconds, "no partitions"
        reader.poll(0.05)
        change = reader.take_assignment()
        if change is not None:
            owned = owned - change.revoked | change.assigned
    return time.monotonic() - began


@pytest.mark.kafka
def test_a_named_member_that_died_has_its_partitions_again_at_once_and_its_ghost_is_fenced(named: Log) -> None:
    topic = f"headwater-test.{uuid.uuid4().hex}"
    named.create_topic(TopicSpec(topic, partitions=3, retention_ms=-1))
    try:
        before = named.group_reader(topic, f"group-{topic}")
        assigned_after(before, 3)
        after = named.group_reader(topic, f"group-{topic}")  # the one before it never left: as after kill -9
        assert assigned_after(after, 3) < 10.0, "the session of 15 s was waited for"
        with pytest.raises(FencedError, match="FencedInstanceIdError"):
            before.commit(0, CommittedOffset(0), is_awaited=True)
        before.commit(0, CommittedOffset(0))
        with pytest.raises(FencedError):
            for _ in range(50):
                before.poll(0.1)
        after.commit(0, CommittedOffset(0), is_awaited=True)
    finally:
        named.delete_topic(topic)
