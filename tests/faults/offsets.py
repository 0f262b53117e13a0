"""Faults 14 to 20: offsets that come again, have gaps, lie, are gone, or mean another topic; and partitions that are added."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove, NewPartitions
from kafka.errors import NoError
from kafka.structs import OffsetAndMetadata

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from backends.catalog.archive import archive_chain
from contracts.log import LogRecord, OffsetBounds, TopicSpec
from contracts.partitioner import partition_of
from headwater.client import HeadwaterClient
from ingest.records import RowColumns, delete_record, patch_record, rows_record
from tests.faults.checker import Account, stored_rows
from tests.faults.journal import Acknowledged, write_journal
from tests.faults.load import FIELD, PATCHED, vector_of
from tests.faults.trial import Trial, Variant
from tests.system.accounts import read_checkpoint
from tests.system.processes import command, done, until

PARTS = "tests.faults.odd_parts"


@contextmanager
def admin(trial: Trial) -> Iterator[Any]:
    """Kafka's own administration, for what an operator or another program does behind our back."""
    client = KafkaAdminClient(bootstrap_servers=brokers(trial))
    try:
        yield client
    finally:
        client.close()


def brokers(trial: Trial) -> str:
    return trial.site.environment["HEADWATER_LOG_URL"].partition("://")[2]


def restarted(trial: Trial, *roles: str) -> None:
    for name in roles:
        trial.start(name)


def read_topic(trial: Trial, topic: str) -> list[LogRecord]:
    """Every record that a topic holds, in the order of its partitions and offsets."""
    bounds = trial.engines.log.bounds(topic)
    reader = trial.engines.log.reader(topic, {partition: held.start_offset for partition, held in bounds.items()})
    out: list[LogRecord] = []
    try:
        until(lambda: _drained(reader, bounds, out), 60, f"{topic} is read to its end", 0.0)
    finally:
        reader.close()
    return sorted(out, key=lambda record: (record.partition, record.offset))


def _drained(reader: Any, bounds: dict[int, OffsetBounds], out: list[LogRecord]) -> bool:
    out += reader.poll(0.2)
    return all(reader.position(partition) >= held.next_offset for partition, held in bounds.items())


# ---- 14, 15: records that come again -----------------------------------------------------------------------------------


def delivered_again(trial: Trial) -> None:
    """14: polls of embed worker and builder bring old records once more; the groups' offsets are set to the beginning in between."""
    redeliver = f"{PARTS}:redeliver=0.3"
    for role in ("embed", "index"):
        trial.start(role, parts=[redeliver])
    trial.wait_acknowledged(300)
    trial.wait_advanced()
    _move_groups(trial, lambda held: held.start_offset, parts=[redeliver])
    trial.wait_acknowledged(200)
    trial.wait_advanced()


def sent_again(trial: Trial) -> None:
    """15: a producer that was restarted sends everything once more, byte for byte, by a new session."""
    trial.wait_flowing()
    trial.wait_acknowledged(500)
    trial.stop_loads()
    journal, places = trial.acknowledged(), {}
    records = read_topic(trial, trial.record.source_topic)
    producer = trial.engines.log.producer()
    futures = [(r, producer.send(r.topic, partition=r.partition, key=r.key, value=r.value, headers=r.headers)) for r in records]  # type: ignore[arg-type]
    producer.flush(60)
    for record, future in futures:
        places[record.partition, record.offset] = future.result().offset
    producer.close()
    again = [replace(entry, offset=places[entry.partition, entry.offset]) for entry in journal.entries]
    trial.journals.append(trial.folder / "again.jsonl")
    write_journal(trial.journals[-1], again)
    trial.note(f"{len(records)} records sent twice")


# ---- 16: gaps ----------------------------------------------------------------------------------------------------------


def aborted_transactions(trial: Trial) -> None:
    """16: between our records lie markers and records of aborted transactions, and at last nothing but those."""
    entries: list[Acknowledged] = []
    producer = KafkaProducer(bootstrap_servers=brokers(trial), transactional_id=f"t-{trial.record.name}", acks="all")
    producer.init_transactions()
    for number in range(60):
        is_kept = number % 3 != 1 and number < 57
        producer.begin_transaction()
        sent = [(seq, _send_row(producer, trial, f"t{seq % 50}", seq)) for seq in range(4 * number, 4 * number + 4)]
        if is_kept:
            producer.commit_transaction()
            for seq, future in sent:
                where = future.get(30)
                entries.append(Acknowledged("upsert", f"t{seq % 50}", seq, where.partition, where.offset, 0, time.time()))
        else:
            for _, future in sent:
                future.get(30)
            producer.abort_transaction()
    producer.close()
    trial.journals.append(trial.folder / "transactions.jsonl")
    write_journal(trial.journals[-1], entries)
    bounds = trial.engines.log.bounds(trial.record.source_topic)
    trial.wait_committed({partition: held.next_offset for partition, held in bounds.items()}, 60)
    trial.note(f"{len(entries)} records in {sum(held.next_offset for held in bounds.values())} offsets")


def _send_row(producer: Any, trial: Trial, item_id: str, seq: int) -> Any:
    record = rows_record([item_id], {FIELD: vector_of(seq)[None, :]}, RowColumns(attributes=[{"seq": seq}]))
    partition = partition_of("murmur2", item_id.encode(), trial.record.partitions)
    return producer.send(trial.record.source_topic, record.value, key=item_id.encode(), headers=list(record.headers), partition=partition)


def compacted_request(trial: Trial) -> CollectionRequest:
    """A collection on somebody's compacted topic, which is filled and compacted before anybody reads it."""
    topic = f"compacted-{trial.folder.name}"
    engines = trial.engines
    engines.log.create_topic(TopicSpec(topic, trial.variant.partitions, retention_ms=-1))
    with admin(trial) as client:
        configs = {"cleanup.policy": "compact", "segment.ms": "300", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "300"}
        client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=configs)])
        client.alter_configs([ConfigResource(ConfigResourceType.BROKER, "1", configs={"log.cleaner.backoff.ms": "500"})])
    return replace(trial.request(), source_topic=topic)


def compacted_topic(trial: Trial) -> None:
    """16: of an older record nothing is left where a newer one has its key, and offsets have holes of any size."""
    entries = _fill_keyed(trial, range(400), 30)
    topic = trial.record.source_topic
    held = sum(b.next_offset - b.start_offset for b in trial.engines.log.bounds(topic).values())
    until(lambda: len(read_topic(trial, topic)) < held / 2, 90, "the topic is compacted", 0.5)
    left = {(record.partition, record.offset) for record in read_topic(trial, topic)}
    trial.note(f"{held} offsets, {len(left)} records left")
    for name in ("embed", "index"):
        trial.start(name)
    entries = [entry for entry in entries if (entry.partition, entry.offset) in left] + _fill_keyed(trial, range(400, 600), 30)
    trial.journals.append(trial.folder / "compacted.jsonl")
    write_journal(trial.journals[-1], entries)


def _fill_keyed(trial: Trial, numbers: range, ids: int) -> list[Acknowledged]:
    producer, sent = trial.engines.log.producer(), []
    for seq in numbers:
        item_id, kind = f"k{seq % ids}", "delete" if seq % 17 == 0 else "patch" if seq % 11 == 0 else "upsert"
        record = rows_record([item_id], {FIELD: vector_of(seq)[None, :]}, RowColumns(attributes=[{"seq": seq}]))
        record = delete_record(item_id) if kind == "delete" else patch_record(item_id, {PATCHED: seq}) if kind == "patch" else record
        partition = partition_of("murmur2", item_id.encode(), trial.record.partitions)
        future = producer.send(trial.record.source_topic, partition=partition, key=item_id.encode(), value=record.value, headers=record.headers)
        sent.append((kind, item_id, seq, future))
        time.sleep(0.004)  # several segments
    producer.flush(30)
    where = [(kind, item_id, seq, future.result()) for kind, item_id, seq, future in sent]
    producer.close()
    return [Acknowledged(kind, item_id, seq, at.partition, at.offset, 0, time.time()) for kind, item_id, seq, at in where]


# ---- 17: the group's offsets -------------------------------------------------------------------------------------------


def _move_groups(trial: Trial, to: Callable[[OffsetBounds], int] | None, parts: Sequence[str] = ()) -> None:
    """Stop both roles, move or delete their groups' offsets, and start them again."""
    for name in ("embed", "index"):
        trial.roles[name].stop()
    topics = {"embed": trial.record.source_topic, "index": trial.record.index().vectors_topic}
    with admin(trial) as client:
        for name, topic in topics.items():
            group = trial.record.group("main", name)  # type: ignore[arg-type]
            if to is not None:
                wanted = {TopicPartition(topic, p): OffsetAndMetadata(to(held), "", -1) for p, held in trial.engines.log.bounds(topic).items()}
                until(lambda g=group, w=wanted: _altered(client, g, w), 30, "the group is empty", 0.5)  # type: ignore[misc]
            else:
                until(lambda g=group: _deleted(client, g), 30, "the group is deleted", 0.5)  # type: ignore[misc]
    for name in ("embed", "index"):
        trial.start(name, parts=parts)


def _altered(client: Any, group: str, wanted: Any) -> bool:
    answers = client.alter_group_offsets(group, wanted)
    if all(answer is NoError for answer in answers.values()):
        return True
    _remove_members(client, group)
    return False


def _deleted(client: Any, group: str) -> bool:
    if client.delete_groups([group])[group] in ("OK", "NoError"):
        return True
    _remove_members(client, group)
    return False


def _remove_members(client: Any, group: str) -> None:
    """A static member that has stopped stays in its group until its session is over."""
    client.remove_group_members(group, [MemberToRemove(group_instance_id=group.rpartition(".")[2])])


def groups_lie(trial: Trial) -> None:
    """17: the groups' offsets are set to the beginning, to the end, and deleted; positions come from chains and manifests."""
    trial.wait_flowing()
    for what, to in (("beginning", lambda held: held.start_offset), ("end", lambda held: held.next_offset), ("deleted", None)):
        _move_groups(trial, to)  # type: ignore[arg-type]
        trial.wait_acknowledged(50)
        trial.wait_advanced()
        trial.note(f"groups: {what}")


# ---- 18: records that are gone -----------------------------------------------------------------------------------------


def forgotten_records(trial: Trial) -> None:
    """18: retention takes records that nobody has read: the partition stops and says so, until an operator gives them up."""
    trial.wait_flowing()
    trial.roles["embed"].kill()
    trial.wait_acknowledged(200)
    topic = trial.record.source_topic
    kept = {partition: held.next_offset for partition, held in trial.engines.log.bounds(topic).items()}
    with admin(trial) as client:
        client.delete_records({TopicPartition(topic, partition): offset for partition, offset in kept.items()})
    process = trial.start("embed")
    trial.wait_logged(process, "were removed by retention before they were embedded")
    time.sleep(1.5)
    lost_from = {partition: trial.checkpoint(partition) for partition in kept}
    trial.wait_acknowledged(50)
    assert all(trial.checkpoint(p) == lost_from[p] for p in kept), "a partition went on behind the gap"
    trial.note(f"stopped at {lost_from}, the topic begins at {kept}")
    done(command(trial.site, "skip", trial.record.name, "--to", "earliest", "--yes"))
    trial.wait_advanced(60)
    trial.given_up = {partition: (lost_from[partition], kept[partition]) for partition in kept}
    trial.note(f"an operator gave up {sum(end - start for start, end in trial.given_up.values())} records")


def overtaken_by_retention(trial: Trial) -> None:
    """18: retention takes records that nobody has embedded, but the archive has them: embedding goes on from there, and nothing is lost."""
    trial.wait_flowing()
    trial.roles["embed"].kill()
    stood = {partition: trial.checkpoint(partition) for partition in range(trial.record.partitions)}
    trial.wait_acknowledged(300)
    topic = trial.record.source_topic
    kept = {partition: held.next_offset for partition, held in trial.engines.log.bounds(topic).items()}
    chains = {partition: archive_chain(trial.engines.store, trial.record, partition) for partition in kept}
    until(
        lambda: all((read := chains[p].head()) is not None and read.manifest.checkpoint.media_offset >= offset for p, offset in kept.items()),
        60,
        "all that was sent by then is archived",
        0.2,
    )
    with admin(trial) as client:
        client.delete_records({TopicPartition(topic, partition): offset for partition, offset in kept.items()})
    trial.start("embed")
    until(lambda: all(trial.checkpoint(p) > offset for p, offset in kept.items()), 60, "embedding goes on in the topic", 0.1)
    trial.note(f"the topic begins at {kept}, embedding stood at {stood} at most")


def archived_request(trial: Trial) -> CollectionRequest:
    return replace(Trial.request(trial), archive="on")


# ---- 19, 20: another topic, more partitions ----------------------------------------------------------------------------


def topic_made_again(trial: Trial) -> None:
    """19: the media topic is deleted and made again: nothing of the new one is taken for the old one's, and everybody says so."""
    trial.wait_flowing()
    trial.wait_acknowledged(200)
    trial.over()
    account = trial.settle()
    assert account.is_whole, account.sentences
    before = {partition: trial.checkpoint(partition) for partition in range(trial.record.partitions)}
    topic = trial.record.source_topic
    trial.engines.log.delete_topic(topic)
    trial.engines.log.create_topic(TopicSpec(topic, trial.record.partitions, retention_ms=-1))
    producer = trial.engines.log.producer()
    record = rows_record(["stranger"], {FIELD: np.ones((1, 8), np.float32)}, RowColumns(attributes=[{"seq": 1}]))
    for partition in range(trial.record.partitions):
        for _ in range(before[partition] + 10):
            producer.send(topic, partition=partition, key=None, value=record.value, headers=record.headers)
    producer.flush(60)
    producer.close()
    time.sleep(8)
    for name in ("embed", "index"):
        trial.roles[name].end()
        trial.role(name).start()
    until(
        lambda: "made again" in trial.roles["embed"].stderr() or "the manifest was written for" in trial.roles["embed"].stderr(),
        40,
        "it is told",
        0.2,
    )
    time.sleep(3)
    assert {p: trial.checkpoint(p) for p in before} == before, "something of the new topic was committed"
    with trial.ground.query_service().client() as client:
        assert _is_absent(client, trial.record.name, "stranger"), "a record of the new topic is served"
        assert client.count(trial.record.name) == account.live, "what was there is no longer served"
    verified = command(trial.site, "verify", trial.record.name, "--json")
    counts = json.loads(verified.stdout)["counts"]
    assert verified.returncode == 6 and "topic_changed" in counts, f"verify says {verified.returncode} {counts}"
    trial.note(f"verify: {counts}")
    trial.account = account


def _is_absent(client: HeadwaterClient, name: str, item_id: str) -> bool:
    return all(hit.id != item_id for hit in client.scroll(name, page_size=500))


def partitions_added(trial: Trial) -> None:
    """20: the topic gets more partitions: the collection goes on with its own, doctor says what is wrong, a new collection begins at 0 everywhere."""
    trial.wait_flowing()
    topic, known = trial.record.source_topic, trial.record.partitions
    with admin(trial) as client:
        client.create_partitions({topic: NewPartitions(known + 2)})
    until(lambda: len(trial.engines.log.bounds(topic)) == known + 2, 30, "the partitions are there", 0.2)
    producer = trial.engines.log.producer()
    for partition in (known, known + 1):
        record = rows_record([f"new{partition}"], {FIELD: vector_of(partition)[None, :]}, RowColumns(attributes=[{"seq": partition}]))
        producer.send(topic, partition=partition, value=record.value, headers=record.headers).result(30)
    producer.close()
    trial.wait_acknowledged(300)
    trial.wait_advanced()
    told = command(trial.site, "doctor")
    assert f"has {known + 2} partitions" in told.stdout + told.stderr, f"doctor does not tell: {told.stdout[-1500:]}"
    trial.note("doctor names the topic and both numbers")
    trial.stop_loads()
    request = replace(trial.request(), source_topic=topic, partitioner="producer")
    wider = create_collection(trial.engines, request)
    for role in ("embed", "index"):
        trial.start(role, label=f"{role}-wider", collection=wider.name)
    ends = {partition: held.next_offset for partition, held in trial.engines.log.bounds(topic).items()}
    until(lambda: all(read_checkpoint(trial.engines, wider, p) >= end for p, end in ends.items()), 60, "the wider collection has caught up", 0.2)
    found = {row.id for row in stored_rows(trial.engines.store, wider, Account())}
    wanted = {f"new{known}", f"new{known + 1}", *trial.acknowledged().expected()[0]}
    assert found == wanted, f"{len(found ^ wanted)} ids differ, such as {sorted(found ^ wanted)[:5]}"
    delete_collection(trial.engines, wider.name)


VARIANTS = [
    Variant(14, "old records come again", delivered_again, roles=()),
    Variant(15, "everything sent once more", sent_again),
    Variant(16, "aborted transactions", aborted_transactions, rate=0),
    Variant(16, "a compacted topic", compacted_topic, roles=(), rate=0, request=compacted_request),
    Variant(17, "the groups' offsets lie", groups_lie),
    Variant(18, "retention took unread records", forgotten_records),
    Variant(
        18,
        "retention took records that were archived and not embedded",
        overtaken_by_retention,
        roles=("embed", "index", "archive"),
        request=archived_request,
        settings={"archive_seconds": 1.0},
    ),
    Variant(19, "the topic is made again", topic_made_again),
    Variant(20, "two partitions more", partitions_added, allowed=("partitions_differ",)),
]
