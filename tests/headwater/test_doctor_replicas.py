"""What the doctor says of a topic's replicas: loss of acknowledged records is refused, a broker that is alone is not blamed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from backends.memory_log import MemoryLog
from backends.memory_store import open_memory_store
from contracts.engines import Engines
from contracts.log import TopicInfo
from contracts.settings import load_settings
from headwater.doctor import examine
from headwater.doctor_replicas import replica_findings
from headwater.wiring import vector_field


def topic(replication: int, in_sync: int | None = None, **config: str) -> TopicInfo:
    named = {name.replace("_", "."): value for name, value in config.items()}
    return TopicInfo("media", "id", 4, named, replication, replication if in_sync is None else in_sync)


def said(info: TopicInfo) -> list[tuple[str, str]]:
    return [(level, message) for level, message, _ in replica_findings(info)]


@pytest.mark.parametrize("info", [
    topic(1), topic(1, min_insync_replicas="1", unclean_leader_election_enable="false"),
    topic(3, min_insync_replicas="2", unclean_leader_election_enable="false"), topic(2, min_insync_replicas="2"), topic(5, min_insync_replicas="3"),
])  # fmt: skip
def test_a_lone_broker_and_a_safe_topic_get_no_word(info: TopicInfo) -> None:
    assert said(info) == []


@pytest.mark.parametrize(("info", "level", "words"), [
    (topic(3, min_insync_replicas="2", unclean_leader_election_enable="true"), "fail", "unclean.leader.election.enable=true"),
    (topic(1, unclean_leader_election_enable="true"), "fail", "unclean.leader.election.enable=true"),
    (topic(3, min_insync_replicas="1"), "fail", "min.insync.replicas=1: an acknowledged record may be on one broker only"),
    (topic(3), "fail", "min.insync.replicas=1"),
    (topic(2, min_insync_replicas="1"), "warn", "min.insync.replicas=1"),
    (topic(2, min_insync_replicas="3"), "fail", "nothing can be written"),
    (topic(3, 2, min_insync_replicas="2"), "warn", "2 of 3 replicas in sync"),
    (topic(3, 1, min_insync_replicas="2"), "fail", "1 replicas in sync and needs 2"),
])  # fmt: skip
def test_what_may_lose_or_refuse_records_is_named(info: TopicInfo, level: str, words: str) -> None:
    ((found, message),) = said(info)
    assert found == level and words in message
    assert all(advice for _, _, advice in replica_findings(info))


class Unclean(MemoryLog):
    """Three replicas, and any of them may become leader."""

    def describe_topic(self, name: str) -> TopicInfo | None:
        found = super().describe_topic(name)
        config: Mapping[str, str] = {} if found is None else {**found.config, "unclean.leader.election.enable": "true", "min.insync.replicas": "2"}
        return None if found is None else TopicInfo(found.name, found.topic_id, found.partitions, config, 3, 3)


def test_the_doctor_refuses_unclean_elections_of_each_topic_of_a_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(log_url="memory://unclean", store_url="memory://unclean")
    log = Unclean("unclean")
    create_collection(Engines(settings, log, open_memory_store("unclean")), CollectionRequest("feed", [vector_field("v:4")], 2))
    monkeypatch.setattr("headwater.doctor.open_log", lambda settings: log)
    monkeypatch.setattr("headwater.doctor._models", lambda settings: iter(()))  # it loads the model
    findings = [finding for finding in examine(settings) if "unclean" in finding.message]
    assert [(finding.level, finding.message.split()[0]) for finding in findings] == [
        ("fail", f"headwater.feed.{name}") for name in ("media", "dead-letter", "main.vectors")
    ]
