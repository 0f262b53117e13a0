"""The log on Apache Kafka: administration and single reads; producers and readers have their own modules.

Takes: `Settings`. Gives: `KafkaLog`, an implementation of `contracts.log.Log`. Owns: one administrative client, one for point reads.
Never: uses Kafka transactions or trusts committed offsets (ADR 0001).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kafka import IsolationLevel, KafkaAdminClient, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec

from backends import log_rules as rules
from backends.kafka_batches import open_consumer
from backends.kafka_consumer import KafkaGroupReader, KafkaReader, to_record
from backends.kafka_errors import kafka_error, mapped
from backends.kafka_producer import KafkaProducer
from backends.kafka_settings import CONNECT_SECONDS, connection_options, consumer_options, open_client, topic_message_bytes
from contracts.errors import HeadwaterError, UnavailableError
from contracts.log import SAFE_IN_SYNC, SAFE_REPLICATION, LogRecord, OffsetBounds, TopicInfo, TopicSpec
from contracts.settings import Settings

logger = logging.getLogger(__name__)

_WAIT_MS = int(CONNECT_SECONDS * 1000)
_NOT_READY_SECONDS = 0.05
_ABSENT = (kafka_errors.UnknownTopicOrPartitionError.errno, kafka_errors.InvalidTopicError.errno)


class KafkaLog:
    """`contracts.log.Log` on Apache Kafka.

    Parameters
    ----------
    settings : Settings
        ``log_url`` names the brokers; the ``kafka_*`` settings say how to connect.

    Raises
    ------
    SettingsError
        The connection would be unencrypted beyond loopback, or is refused.
    UnavailableError
        No broker answers within ten seconds.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        options = connection_options(settings)
        self._open: set[KafkaProducer | KafkaReader] = set()
        self._point_lock = threading.Lock()
        self._point_reader: Any = None
        what = f"connecting to Kafka at {', '.join(options['bootstrap_servers'])}"
        self._admin = open_client(KafkaAdminClient, options | {"request_timeout_ms": _WAIT_MS}, what)
        with mapped(what):
            self._cluster_id = str(self._ask(self._admin.describe_cluster)["cluster_id"])

    def _ask(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a method of the administrative client.

        kafka-python refuses a request while its connection to the only broker is being opened, or waits out an error. Nothing was sent
        then, so it is asked again until there is a connection.
        """
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                return method(*arguments, **options)
            except kafka_errors.NodeNotReadyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_NOT_READY_SECONDS)

    def cluster_id(self) -> str:
        """See `contracts.log.Log.cluster_id`."""
        return self._cluster_id

    def create_topic(self, spec: TopicSpec) -> TopicInfo:
        """See `contracts.log.Log.create_topic`."""
        rules.check_spec(spec)
        configs = rules.topic_config(spec) | {
            "max.message.bytes": str(topic_message_bytes(spec.max_record_bytes)),
            "unclean.leader.election.enable": "false",
        }
        if self._replication(spec) >= SAFE_REPLICATION:  # the cluster's default, where it is left to it, is the cluster's business: `doctor` looks
            configs["min.insync.replicas"] = str(SAFE_IN_SYNC)
        wanted = {"num_partitions": spec.partitions, "replication_factor": self._replication(spec), "configs": configs}
        existing = self.describe_topic(spec.name)
        if existing is None:
            with mapped(f"creating topic {spec.name}"):
                try:
                    self._ask(self._admin.create_topics, {spec.name: wanted}, timeout_ms=_WAIT_MS)
                except kafka_errors.TopicAlreadyExistsError:
                    pass  # another process was faster; whether it made the same topic is checked below
                self._ask(self._admin.wait_for_topics, [spec.name], timeout_ms=_WAIT_MS)
            existing = self._created(spec.name)
        return rules.check_same_partitions(existing, spec)

    def _created(self, name: str) -> TopicInfo:
        """A topic that was created a moment ago: in a cluster the broker that is asked may not have heard of it yet."""
        deadline = time.monotonic() + CONNECT_SECONDS
        while (info := self.describe_topic(name)) is None and time.monotonic() < deadline:
            time.sleep(_NOT_READY_SECONDS)
        return info or self._existing(name)

    def _replication(self, spec: TopicSpec) -> int:
        return spec.replication if spec.replication != -1 else self._settings.kafka_replication

    def _existing(self, name: str) -> TopicInfo:
        info = self.describe_topic(name)
        if info is None:
            raise rules.missing_topic(name)
        return info

    def describe_topic(self, name: str) -> TopicInfo | None:
        """See `contracts.log.Log.describe_topic`."""
        what = f"describing topic {name}"
        with mapped(what):
            topic = self._ask(self._admin.describe_topics, [name])[0]
            if topic["error_code"] in _ABSENT:
                return None
            if topic["error_code"]:
                raise kafka_errors.for_code(topic["error_code"])(name)
            configs = self._ask(self._admin.describe_configs, [ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
        values = {key: str(entry["value"]) for key, entry in configs.get("topic", {}).get(name, {}).items() if not entry["is_sensitive"]}
        # A user without the right to read configurations gets none: then our own limit holds.
        values.setdefault("max.message.bytes", str(topic_message_bytes(self._settings.max_record_bytes)))
        replication = min((len(partition["replica_nodes"]) for partition in topic["partitions"]), default=1)
        in_sync = min((len(partition["isr_nodes"]) for partition in topic["partitions"]), default=1)
        return TopicInfo(name, str(topic["topic_id"]), len(topic["partitions"]), values, replication, in_sync)

    def list_topics(self) -> Sequence[str]:
        """See `contracts.log.Log.list_topics`."""
        with mapped("listing topics"):
            return sorted(topic["name"] for topic in self._ask(self._admin.describe_topics) if not topic["is_internal"])

    def delete_topic(self, name: str) -> None:
        """See `contracts.log.Log.delete_topic`; returns when the cluster no longer names it."""
        with mapped(f"deleting topic {name}"):
            try:
                self._ask(self._admin.delete_topics, [name], timeout_ms=_WAIT_MS)
            except (kafka_errors.UnknownTopicOrPartitionError, kafka_errors.InvalidTopicError):
                return
        deadline = time.monotonic() + CONNECT_SECONDS
        while self.describe_topic(name) is not None:
            if time.monotonic() > deadline:
                raise UnavailableError(f"topic {name} is still there {CONNECT_SECONDS:g} s after its deletion", hint="wait and look again")
            time.sleep(0.05)

    def _partitions(self, topic: str) -> list[TopicPartition]:
        with mapped(f"describing topic {topic}"):
            found = self._ask(self._admin.describe_topics, [topic])[0]
            if found["error_code"] in _ABSENT:
                raise rules.missing_topic(topic)
            if found["error_code"]:
                raise kafka_errors.for_code(found["error_code"])(topic)
        return [TopicPartition(topic, number) for number in range(len(found["partitions"]))]

    def _offsets(self, topic: str, spec: Any) -> dict[int, Any]:
        asked = {partition: spec for partition in self._partitions(topic)}
        with mapped(f"asking for the offsets of {topic}"):
            found = self._ask(self._admin.list_partition_offsets, asked, isolation_level=IsolationLevel.READ_COMMITTED, timeout_ms=_WAIT_MS)
        return {at.partition: answer for at, answer in found.items()}

    def bounds(self, topic: str) -> dict[int, OffsetBounds]:
        """See `contracts.log.Log.bounds`; the next offset is the last stable one (open transactions are not counted), and its leader answers."""
        first = self._offsets(topic, OffsetSpec.EARLIEST)
        following = self._offsets(topic, OffsetSpec.LATEST)
        return {number: _bounds(first[number].offset, following[number]) for number in sorted(first.keys() & following.keys())}

    def offsets_for_time(self, topic: str, timestamp_ms: int) -> dict[int, int]:
        """See `contracts.log.Log.offsets_for_time`."""
        found = {number: int(answer.offset) for number, answer in self._offsets(topic, timestamp_ms).items()}
        if all(offset >= 0 for offset in found.values()):
            return found
        following = self._offsets(topic, OffsetSpec.LATEST)  # Kafka answers -1 where nothing is that new
        return {number: offset if offset >= 0 else int(following[number].offset) for number, offset in found.items()}

    def truncate(self, topic: str, next_offsets: Mapping[int, int]) -> None:
        """See `contracts.log.Log.truncate`."""
        bounds = self.bounds(topic)
        rules.check_truncate(topic, next_offsets, bounds)
        wanted = {TopicPartition(topic, number): offset for number, offset in next_offsets.items() if offset > bounds[number].start_offset}
        if wanted:
            with mapped(f"truncating {topic}"):
                self._ask(self._admin.delete_records, wanted, timeout_ms=_WAIT_MS)

    def read_at(self, topic: str, partition: int, offset: int) -> LogRecord | None:
        """See `contracts.log.Log.read_at`; one consumer serves all callers, one after the other."""
        bounds = self.bounds(topic)
        rules.check_partition(topic, partition, len(bounds))
        if not bounds[partition].start_offset <= offset < bounds[partition].next_offset:
            return None
        at = TopicPartition(topic, partition)
        what = f"reading offset {offset} of {topic}/{partition}"
        with self._point_lock, mapped(what):
            if self._point_reader is None:
                # The smallest fetch: a broker returns at least the batch that holds the record, however large.
                options = consumer_options(self._settings) | {"max_partition_fetch_bytes": 1024, "fetch_max_bytes": 1024}
                self._point_reader = open_consumer(self._settings, options, what)
            try:
                return self._point_read(at, offset, what)
            except kafka_errors.OffsetOutOfRangeError:
                return None  # truncated since `bounds`
            finally:
                self._point_reader.assign([])

    def _point_read(self, at: TopicPartition, offset: int, what: str) -> LogRecord | None:
        self._point_reader.assign([at])
        self._point_reader.seek(at, offset)
        deadline = time.monotonic() + CONNECT_SECONDS
        while time.monotonic() < deadline:
            batches = self._point_reader.poll(timeout_ms=200, max_records=1)
            if batches:
                raw = batches[at][0]
                return to_record(raw) if raw.offset == offset else None  # compacted away, or a transaction marker
            if (self._point_reader.position(at, timeout_ms=0) or 0) > offset:
                return None
        raise UnavailableError(f"{what}: no answer in {CONNECT_SECONDS:g} s", hint="is Kafka running? run headwater doctor")

    def producer(self, *, linger_seconds: float = 0.0) -> KafkaProducer:
        """See `contracts.log.Log.producer`."""
        producer = KafkaProducer(self._settings, linger_seconds, self._existing, self._open.discard)
        self._open.add(producer)
        return producer

    def reader(self, topic: str, positions: Mapping[int, int]) -> KafkaReader:
        """See `contracts.log.Log.reader`."""
        partitions = len(self._partitions(topic))
        for partition in positions:
            rules.check_partition(topic, partition, partitions)
        reader = KafkaReader(self._settings, topic, positions, self.bounds, on_close=self._open.discard)
        self._open.add(reader)
        return reader

    def group_reader(self, topic: str, group: str) -> KafkaGroupReader:
        """See `contracts.log.Log.group_reader`."""
        self._partitions(topic)
        reader = KafkaGroupReader(self._settings, topic, group, self.bounds, on_close=self._open.discard)
        self._open.add(reader)
        return reader

    def close(self) -> None:
        """Close what this handle opened, then the administrative client."""
        for opened in list(self._open):
            try:
                opened.close()
            except HeadwaterError as error:  # the others must be closed too
                logger.warning("closing failed: %s", error)
        try:
            with self._point_lock:
                if self._point_reader is not None:
                    self._point_reader.close()
                    self._point_reader = None
            self._admin.close()
        except kafka_errors.KafkaError as error:
            logger.warning("closing failed: %s", kafka_error(error, "closing the log"))


def _bounds(start_offset: int, latest: Any) -> OffsetBounds:
    return OffsetBounds(int(start_offset), int(latest.offset), -1 if latest.leader_epoch is None else latest.leader_epoch)
