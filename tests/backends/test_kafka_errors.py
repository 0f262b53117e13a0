"""Every error of the Kafka client has been decided about, and no Kafka connection is unencrypted by accident."""

from __future__ import annotations

import inspect
import socket
import ssl
import time
from pathlib import Path

import pytest
from kafka import errors as kafka_errors

from backends import kafka_log
from backends.kafka_errors import decision, kafka_error, mapped
from backends.kafka_settings import brokers, connection_options, consumer_options, producer_options
from backends.open_log import open_log
from contracts.errors import CorruptError, DataLossError, HeadwaterError, SettingsError, UnavailableError
from contracts.settings import Settings, load_settings

ALL = sorted(
    (kind for _, kind in inspect.getmembers(kafka_errors, inspect.isclass) if issubclass(kind, kafka_errors.KafkaError)),
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_kafka_error_is_decided_and_told_in_one_line(kind: type[kafka_errors.KafkaError]) -> None:
    ours = decision(kind)
    assert ours is not None, f"decide in backends/kafka_errors.py what {kind.__name__} means"
    raised = kind({}) if kind is kafka_errors.LogTruncationError else kind("line one\nline two " + "x" * 500)
    error = kafka_error(raised, "reading topic t")
    assert type(error) is ours
    assert str(error).startswith("reading topic t: ")
    assert "\n" not in str(error)
    assert error.hint
    assert len(str(error)) < 600


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        (kafka_errors.TopicAuthorizationFailedError, SettingsError),
        (kafka_errors.SaslAuthenticationFailedError, SettingsError),
        (kafka_errors.InvalidConfigurationError, SettingsError),
        (kafka_errors.KafkaConfigurationError, SettingsError),
        (kafka_errors.MessageSizeTooLargeError, SettingsError),
        (kafka_errors.RecordListTooLargeError, SettingsError),
        (kafka_errors.InvalidReplicationFactorError, SettingsError),
        (kafka_errors.OffsetOutOfRangeError, DataLossError),
        (kafka_errors.LogTruncationError, DataLossError),
        (kafka_errors.CorruptRecordError, CorruptError),
        (kafka_errors.KafkaTimeoutError, UnavailableError),
        (kafka_errors.KafkaConnectionError, UnavailableError),
        (kafka_errors.NotLeaderForPartitionError, UnavailableError),
        (kafka_errors.NotEnoughReplicasAfterAppendError, UnavailableError),
        (kafka_errors.OutOfOrderSequenceNumberError, UnavailableError),
        (kafka_errors.UnknownProducerIdError, UnavailableError),
        (kafka_errors.UnknownTopicOrPartitionError, UnavailableError),
        (kafka_errors.CommitFailedError, UnavailableError),
    ],
    ids=lambda value: value.__name__,
)
def test_the_errors_that_matter_mean_what_the_caller_must_do(kind: type[kafka_errors.KafkaError], ours: type[HeadwaterError]) -> None:
    assert decision(kind) is ours


@pytest.mark.parametrize(
    ("raised", "ours"),
    [
        (ConnectionRefusedError(111, "refused"), UnavailableError),
        (socket.gaierror(-2, "unknown host"), UnavailableError),
        (ssl.SSLError(1, "certificate verify failed"), SettingsError),
        (FileNotFoundError(2, "ca.pem"), SettingsError),
        (RuntimeError("Failed to find active controller id!"), UnavailableError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_socket_and_tls_errors_are_ours_too(raised: Exception, ours: type[HeadwaterError]) -> None:
    with pytest.raises(ours) as caught, mapped("connecting"):
        raise raised
    assert caught.value.__cause__ is raised


def test_a_broker_that_is_not_there_is_told_in_one_line_and_in_time() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}") as caught:
        open_log(load_settings(log_url=f"kafka://127.0.0.1:{port}"))
    assert time.monotonic() - begun < 11
    assert "make stack" in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["kafka://", "kafka://host", "kafka://host:", "kafka://user:secret@host:9092", "kafka://a:1,,b:2", "kafka://a:1/x"])
def test_an_address_that_cannot_be_right_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        brokers(url)
    assert "secret" not in str(caught.value)


def test_several_brokers_are_read_from_one_url() -> None:
    assert brokers("kafka://a:1,[::1]:2/") == ["a:1", "[::1]:2"]


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SASL_PLAINTEXT"])
@pytest.mark.parametrize("address", ["10.0.0.1:9092", "kafka.example:9092", "127.0.0.1:9092,10.0.0.1:9092"])
def test_an_unencrypted_connection_beyond_loopback_needs_a_word(protocol: str, address: str) -> None:
    settings = load_settings(log_url=f"kafka://{address}", kafka_security_protocol=protocol, kafka_username="u", kafka_password="p")
    with pytest.raises(SettingsError, match="not be encrypted"):
        connection_options(settings)
    allowed = settings.model_copy(update={"allow_plaintext": True})
    assert connection_options(allowed)["bootstrap_servers"] == address.split(",")


@pytest.mark.parametrize("address", ["127.0.0.1:9092", "localhost:9092", "[::1]:9092"])
def test_loopback_may_be_unencrypted(address: str) -> None:
    assert connection_options(load_settings(log_url=f"kafka://{address}"))["security_protocol"] == "PLAINTEXT"


def test_tls_and_sasl_reach_the_client(tmp_path: Path) -> None:
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    for file in (ca, cert, key):
        file.touch()
    settings = load_settings(
        log_url="kafka://kafka.example:9093",
        kafka_security_protocol="SASL_SSL",
        kafka_username="worker",
        kafka_password="secret",
        kafka_ca_file=ca,
        kafka_cert_file=cert,
        kafka_key_file=key,
    )
    options = connection_options(settings)
    assert (options["ssl_cafile"], options["ssl_certfile"], options["ssl_keyfile"]) == (str(ca), str(cert), str(key))
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("worker", "secret")
    assert options.get("ssl_check_hostname", True) is True
    key.unlink()
    with pytest.raises(SettingsError, match=r"key\.pem does not exist"):
        connection_options(settings)


@pytest.mark.parametrize(
    "change",
    [{"kafka_security_protocol": "ssl"}, {"kafka_sasl_mechanism": "GSSAPI"}, {"kafka_username": ""}, {"kafka_password": ""}],
    ids=lambda change: next(iter(change)),
)
def test_security_settings_that_do_not_fit_are_refused(change: dict[str, str]) -> None:
    good = {"log_url": "kafka://k.example:9093", "kafka_security_protocol": "SASL_SSL", "kafka_username": "u", "kafka_password": "secret"}
    connection_options(load_settings(**good))
    with pytest.raises(SettingsError) as caught:
        connection_options(load_settings(**(good | change)))
    assert "secret" not in str(caught.value)


def test_the_client_is_set_up_to_lose_nothing() -> None:
    settings = load_settings(log_url="kafka://127.0.0.1:9092", max_record_bytes=40 * 1024 * 1024)
    producer, consumer = producer_options(settings, 0.005), consumer_options(settings)
    assert producer["acks"] == "all"
    assert producer["enable_idempotence"] is True
    assert producer["linger_ms"] == 5
    assert producer["max_request_size"] > settings.max_record_bytes
    assert consumer["auto_offset_reset"] == "none"
    assert consumer["enable_auto_commit"] is False
    assert consumer["receive_message_max_bytes"] > consumer["fetch_max_bytes"] + settings.max_record_bytes
    assert producer["allow_auto_create_topics"] is consumer["allow_auto_create_topics"] is False


@pytest.mark.kafka
def test_a_consumer_that_stalls_is_opened_anew_where_it_was(kafka_settings: Settings) -> None:
    from backends.kafka_consumer import KafkaReader
    from contracts.log import TopicSpec

    log = open_log(kafka_settings)
    topic = f"headwater-test.stall-{time.time_ns()}"
    log.create_topic(TopicSpec(topic, partitions=1, retention_ms=-1))
    producer = log.producer()
    for n in range(5):
        producer.send(topic, partition=0, value=b"%d" % n).result(30)
    reader = KafkaReader(kafka_settings, topic, {0: 2}, log.bounds, watchdog_seconds=0.4)
    reader._client.pause(reader._at(0))  # the client stops fetching and nobody told the reader: a stall
    found = []
    deadline = time.monotonic() + 20
    while len(found) < 3 and time.monotonic() < deadline:
        found += reader.poll(0.1)
    assert [record.offset for record in found] == [2, 3, 4]
    reader.close()
    log.delete_topic(topic)
    log.close()


@pytest.mark.kafka
def test_a_partition_that_stalls_is_noticed_while_others_flow(kafka_settings: Settings) -> None:
    """As kafka-python #3131: one partition brought nothing any more, and the records of the others hid it."""
    from backends.kafka_consumer import KafkaReader
    from contracts.log import TopicSpec

    log = open_log(kafka_settings)
    topic = f"headwater-test.stall-{time.time_ns()}"
    log.create_topic(TopicSpec(topic, partitions=2, retention_ms=-1))
    producer = log.producer()
    for n in range(5):
        producer.send(topic, partition=0, value=b"%d" % n).result(30)
    reader = KafkaReader(kafka_settings, topic, {0: 2, 1: 0}, log.bounds, watchdog_seconds=0.4)
    reader._client.pause(reader._at(0))
    found = []
    deadline = time.monotonic() + 20
    while [record.partition for record in found].count(0) < 3 and time.monotonic() < deadline or len(found) < 9:
        producer.send(topic, partition=1, value=b"more").result(30)
        found += reader.poll(0.1)
    assert [record.offset for record in found if record.partition == 0] == [2, 3, 4]
    flowed = [record.offset for record in found if record.partition == 1]
    assert flowed == list(range(len(flowed))) and len(flowed) > 5
    producer.close()
    reader.close()
    log.delete_topic(topic)
    log.close()


def test_a_request_that_was_not_sent_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """kafka-python refuses it while the connection to the only broker is being opened by another thread's request."""
    monkeypatch.setattr(kafka_log, "_NOT_READY_SECONDS", 0.001)
    log = kafka_log.KafkaLog.__new__(kafka_log.KafkaLog)
    refusals = [kafka_errors.NodeNotReadyError("No node_id provided")] * 3

    def describe(name: str, *, timeout_ms: int) -> str:
        if refusals:
            raise refusals.pop()
        return f"{name} within {timeout_ms}"

    assert log._ask(describe, "topic", timeout_ms=5) == "topic within 5" and not refusals
    monkeypatch.setattr(kafka_log, "CONNECT_SECONDS", 0.01)
    refusals += [kafka_errors.NodeNotReadyError("No node_id provided")] * 10_000
    with pytest.raises(kafka_errors.NodeNotReadyError):
        log._ask(describe, "topic", timeout_ms=5)
