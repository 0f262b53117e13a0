"""The Kafka producer: every future ends, also where kafka-python's own would wait for ever."""

from __future__ import annotations

import threading

import pytest
from kafka.producer.transaction_manager import NO_PRODUCER_EPOCH, NO_PRODUCER_ID, ProducerIdAndEpoch

from backends import kafka_producer
from backends.kafka_producer import KafkaProducer
from contracts.errors import HeadwaterError, UnavailableError
from contracts.log import Log

pytestmark = [pytest.mark.kafka, pytest.mark.parametrize("log", ["kafka"], indirect=True)]


def opened(log: Log) -> KafkaProducer:
    producer = log.producer()
    assert isinstance(producer, KafkaProducer)
    return producer


def test_after_a_record_has_expired_the_producer_goes_on(log: Log, topic: str) -> None:
    """What the client's sender does when a record expires that was on its way to a broker which is gone."""
    producer = opened(log)
    assert producer.send(topic, partition=0, value=b"before").result(30).offset == 0
    producer._client._transaction_manager.reset_producer_id()
    assert [producer.send(topic, partition=0, value=b"%d" % n).result(30).offset for n in range(3)] == [1, 2, 3]
    producer.close()


def test_closing_ends_every_future_and_the_thread_where_nothing_can_be_flushed(log: Log, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_producer, "_CLOSE_SECONDS", 1.0)
    producer = opened(log)
    producer.send(topic, partition=0, value=b"before").result(30)
    sender = producer._client._sender
    sender._transaction_manager.set_producer_id_and_epoch(ProducerIdAndEpoch(NO_PRODUCER_ID, NO_PRODUCER_EPOCH))  # it sends nothing any more
    waiting = [producer.send(topic, partition=0, value=b"%d" % n) for n in range(3)]
    with pytest.raises(HeadwaterError, match="closing a Kafka producer"):
        producer.close()
    for future in waiting:
        assert isinstance(future.exception(30), UnavailableError)
    sender.join(30)
    assert sender not in threading.enumerate()
    assert log.bounds(topic)[0].next_offset == 1
