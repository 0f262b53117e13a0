"""Whether a topic keeps what it acknowledged: replicas, in-sync replicas, elections of leaders that lack records.

Takes: a topic. Gives: findings as (level, message, advice). Owns: how they are put.
Never: complains of a broker that is alone: what it acknowledged is on its one disk, and whoever runs one knows that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from contracts.log import SAFE_IN_SYNC, SAFE_REPLICATION, TopicInfo


def replica_findings(topic: TopicInfo) -> Iterator[tuple[Literal["warn", "fail"], str, str]]:
    """What is wrong with how a topic is replicated; nothing where it is as it should be."""
    config = topic.config
    if config.get("unclean.leader.election.enable") == "true":
        yield (
            "fail",
            f"{topic.name} has unclean.leader.election.enable=true: a broker that lacks acknowledged records may become leader, and they are gone",
            _alter(topic, "unclean.leader.election.enable=false"),
        )
    if topic.replication < 2:
        return
    text = config.get("min.insync.replicas", "")
    needed = int(text) if text.isdecimal() else 1
    if needed > topic.replication:
        yield (
            "fail",
            f"{topic.name} has min.insync.replicas={needed} and {topic.replication} replicas: nothing can be written",
            _alter(topic, f"min.insync.replicas={topic.replication - 1}"),
        )
        return
    if needed < SAFE_IN_SYNC:
        level: Literal["warn", "fail"] = "fail" if topic.replication >= SAFE_REPLICATION else "warn"
        advice = _alter(topic, f"min.insync.replicas={SAFE_IN_SYNC}")
        if topic.replication < SAFE_REPLICATION:
            advice = f"three replicas and min.insync.replicas={SAFE_IN_SYNC} outlive the loss of a broker and go on; two do one of both"
        yield level, f"{topic.name} has min.insync.replicas={needed}: an acknowledged record may be on one broker only", advice
    if topic.in_sync < needed:
        yield (
            "fail",
            f"{topic.name}: a partition has {topic.in_sync} replicas in sync and needs {needed}: its producers are refused now",
            "bring the brokers back that are away; `kafka-topics --describe --under-min-isr-partitions` names the partitions",
        )
    elif topic.in_sync < topic.replication:
        yield (
            "warn",
            f"{topic.name}: a partition has {topic.in_sync} of {topic.replication} replicas in sync",
            "bring the brokers back that are away; `kafka-topics --describe --under-replicated-partitions` names the partitions",
        )


def _alter(topic: TopicInfo, config: str) -> str:
    return f"kafka-configs --alter --topic {topic.name} --add-config {config}"
