"""A topic that was created is there for its creator, whichever broker of a cluster it asks next."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from kafka import errors as kafka_errors

from backends import kafka_log
from backends.kafka_log import KafkaLog
from contracts.errors import NotFoundError
from contracts.log import TopicSpec
from contracts.settings import load_settings

SPEC = TopicSpec("headwater.feed.media", partitions=2, retention_ms=-1)


class Cluster:
    """kafka-python's administrative client before three brokers, asked in turn; each hears of a new topic later than the one before it."""

    def __init__(self, looks_until_heard: tuple[int, int, int]) -> None:
        self._left = list(looks_until_heard)
        self._turn = itertools.cycle(range(len(looks_until_heard)))
        self.created: dict[str, Any] = {}

    def create_topics(self, topics: dict[str, Any], *, timeout_ms: int) -> None:
        self.created |= topics

    def wait_for_topics(self, names: list[str], *, timeout_ms: int) -> None:
        while self.describe_topics(names)[0]["error_code"]:
            pass  # one broker that has heard of it is enough, as in kafka-python

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        broker = next(self._turn)
        if names[0] in self.created:
            self._left[broker] -= 1
        if names[0] not in self.created or self._left[broker] >= 0:
            return [{"error_code": kafka_errors.UnknownTopicOrPartitionError.errno}]
        partition = {"replica_nodes": [1, 2, 3], "isr_nodes": [1, 2, 3]}
        return [{"error_code": 0, "topic_id": "id", "partitions": [partition] * self.created[names[0]]["num_partitions"]}]

    def describe_configs(self, resources: list[object], *, config_filter: str) -> dict[str, Any]:
        return {}


def log_of(cluster: Cluster) -> KafkaLog:
    log = KafkaLog.__new__(KafkaLog)
    log._settings, log._admin = load_settings(log_url="kafka://127.0.0.1:9092"), cluster
    return log


@pytest.mark.parametrize("looks_until_heard", [(0, 0, 0), (9, 0, 9), (3, 0, 1), (0, 9, 9)])
def test_a_topic_is_there_once_it_was_created_whichever_broker_is_asked(
    looks_until_heard: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_log, "_NOT_READY_SECONDS", 0.0)
    cluster = Cluster(looks_until_heard)
    made = log_of(cluster).create_topic(SPEC)
    assert (made.name, made.partitions, made.replication) == (SPEC.name, 2, 3) and list(cluster.created) == [SPEC.name]


def test_a_topic_that_no_broker_names_for_long_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_log, "_NOT_READY_SECONDS", 0.001)
    monkeypatch.setattr(kafka_log, "CONNECT_SECONDS", 0.02)
    cluster = Cluster((10**9, 10**9, 10**9))
    monkeypatch.setattr(cluster, "wait_for_topics", lambda names, timeout_ms: None)
    with pytest.raises(NotFoundError):
        log_of(cluster).create_topic(SPEC)
