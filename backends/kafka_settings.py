"""From our settings to kafka-python's: addresses, TLS, SASL, sizes and waits.

Takes: `Settings`. Gives: keyword arguments of kafka-python's clients. Owns: the refusal of unencrypted connections.
Never: logs a password.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaTimeoutError

from backends.kafka_errors import mapped
from backends.kafka_network import NetworkClient
from contracts.addresses import is_loopback
from contracts.errors import SettingsError, UnavailableError
from contracts.settings import MEBIBYTE, Settings

CONNECT_SECONDS = 10.0
"""How long opening may take, and how long an administrative request may."""

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_BATCH_OVERHEAD_BYTES = 4096
"""What Kafka counts beside key, value and headers: the batch's 61 bytes, lengths and offsets of the record and its headers."""


def brokers(log_url: str) -> list[str]:
    """Addresses in a ``kafka://HOST:PORT[,HOST:PORT]`` URL.

    Raises
    ------
    SettingsError
        An address has no port, or the URL carries a user name (those belong in their own settings).
    """
    addresses = [part.strip() for part in log_url.removeprefix("kafka://").rstrip("/").split(",")]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or "@" in address or "/" in address:
            raise SettingsError(
                "log_url names a Kafka broker without host and port",
                hint="set HEADWATER_LOG_URL to kafka://HOST:PORT[,HOST:PORT]; user and password have their own settings",
            )
    return addresses


def _is_loopback(address: str) -> bool:
    return is_loopback(address.rpartition(":")[0].strip("[]"))


def _check_security(settings: Settings, addresses: list[str]) -> None:
    protocol = settings.kafka_security_protocol
    if protocol not in _PROTOCOLS:
        raise SettingsError("kafka_security_protocol is unknown", hint=f"use one of {', '.join(_PROTOCOLS)}")
    if not protocol.endswith("SSL") and not settings.allow_plaintext and not all(map(_is_loopback, addresses)):
        raise SettingsError(
            "the connection to Kafka would not be encrypted",
            hint="set HEADWATER_KAFKA_SECURITY_PROTOCOL=SSL or SASL_SSL, or HEADWATER_ALLOW_PLAINTEXT=true on a network you trust",
        )
    if protocol.startswith("SASL"):
        if settings.kafka_sasl_mechanism not in _MECHANISMS:
            raise SettingsError("kafka_sasl_mechanism is unknown", hint=f"use one of {', '.join(_MECHANISMS)}")
        if not settings.kafka_username or not settings.kafka_password.get_secret_value():
            raise SettingsError("SASL needs a user and a password", hint="set HEADWATER_KAFKA_USERNAME and HEADWATER_KAFKA_PASSWORD")


def connection_options(settings: Settings) -> dict[str, Any]:
    """Options that all three clients share: addresses, security, bounded waits.

    Raises
    ------
    SettingsError
        The connection would be unencrypted beyond loopback, or the security settings do not fit together.
    """
    addresses = brokers(settings.log_url)
    _check_security(settings, addresses)
    options: dict[str, Any] = {
        "bootstrap_servers": addresses,
        "client_id": "headwater",
        "security_protocol": settings.kafka_security_protocol,
        "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000),
        "reconnect_backoff_max_ms": 2000,
        # A response holds a record of the largest size beside others; foreign topics may hold larger ones than ours.
        "receive_message_max_bytes": 4 * settings.max_record_bytes + 64 * MEBIBYTE,
    }
    if settings.kafka_security_protocol.endswith("SSL"):
        files = {"ssl_cafile": settings.kafka_ca_file, "ssl_certfile": settings.kafka_cert_file, "ssl_keyfile": settings.kafka_key_file}
        for path in files.values():
            if path is not None and not path.is_file():  # kafka-python would try again and again without a word
                raise SettingsError(f"file {path} does not exist", hint="check HEADWATER_KAFKA_CA_FILE, _CERT_FILE and _KEY_FILE")
        options |= {name: str(path) for name, path in files.items() if path is not None}
    if settings.kafka_security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_username,
            "sasl_plain_password": settings.kafka_password.get_secret_value(),
        }
    return options


def producer_options(settings: Settings, linger_seconds: float) -> dict[str, Any]:
    """Options of the idempotent producer."""
    return connection_options(settings) | {
        "acks": "all",
        "enable_idempotence": True,
        "allow_auto_create_topics": False,
        "batch_size": MEBIBYTE,  # of one partition's batch; the default of 16 KiB would send every picture alone
        "linger_ms": int(linger_seconds * 1000),
        "max_request_size": settings.max_record_bytes + MEBIBYTE,
        "max_block_ms": int(CONNECT_SECONDS * 1000),
        "request_timeout_ms": 20_000,
        "delivery_timeout_ms": 45_000,
    }


def consumer_options(settings: Settings) -> dict[str, Any]:
    """Options of a consumer that answers at once and never moves by itself."""
    return connection_options(settings) | {
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
        "isolation_level": "read_committed",
        "metadata_max_age_ms": 30_000,  # how late a group notices new partitions; the default is five minutes
        "fetch_min_bytes": 1,
        "fetch_max_wait_ms": 100,
        # A broker always returns the first batch, however large (KIP-74): these bound memory, not the record.
        "max_partition_fetch_bytes": max(MEBIBYTE, min(settings.max_record_bytes, 8 * MEBIBYTE)),
        "fetch_max_bytes": max(settings.max_record_bytes, 48 * MEBIBYTE),
    }


def group_options(settings: Settings, group: str) -> dict[str, Any]:
    """Options of a consumer in a group, with the cooperative protocol (KIP-429); a static member (KIP-345) where the process has a name."""
    return consumer_options(settings) | {
        "group_id": group,
        "partition_assignment_strategy": [CooperativeStickyAssignor()],
        "session_timeout_ms": 15_000,
        "heartbeat_interval_ms": 1_000,
        "max_poll_interval_ms": 300_000,
        **({"group_instance_id": settings.kafka_instance_id} if settings.kafka_instance_id else {}),
    }


def topic_message_bytes(max_record_bytes: int) -> int:
    """The ``max.message.bytes`` of a topic that takes records of `max_record_bytes`."""
    return max_record_bytes + _BATCH_OVERHEAD_BYTES


def record_limit_bytes(max_message_bytes: int) -> int:
    """The inverse of `topic_message_bytes`: the largest record of a topic, ours or not."""
    return max_message_bytes - _BATCH_OVERHEAD_BYTES


def max_expanded_bytes(settings: Settings) -> int:
    """What a compressed batch may expand to: no client of ours fills one with more than a record of the largest size, others may a little."""
    return 4 * settings.max_record_bytes


def open_client(factory: Callable[..., Any], options: dict[str, Any], what: str) -> Any:
    """Make one of kafka-python's clients, or say in one line, within some ten seconds, why not.

    Raises
    ------
    UnavailableError
        Nobody listens, or who listens does not speak Kafka with these security settings.
    SettingsError
        The broker refused us.
    """
    _check_reachable(options["bootstrap_servers"])
    made: list[NetworkClient] = []

    def network(**chosen: Any) -> NetworkClient:
        made.append(NetworkClient(**chosen))
        return made[-1]

    try:
        with mapped(what):
            try:
                return factory(**options, kafka_client=network)
            except BaseException:
                for client in made:  # else its thread goes on, trying for ever
                    client.close()
                raise
    except UnavailableError as error:
        if isinstance(error.__cause__, KafkaTimeoutError):
            raise UnavailableError(
                f"{what}: a broker takes connections but gave no answer in {CONNECT_SECONDS:g} s",
                hint="check HEADWATER_KAFKA_SECURITY_PROTOCOL, user, password and certificates, then the broker's log",
            ) from error
        raise


def _check_reachable(addresses: list[str]) -> None:
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS / len(addresses)).close()
            return
        except OSError:
            continue
    raise UnavailableError(
        f"no Kafka broker answers at {', '.join(addresses)}", hint="start Kafka (make stack on this machine) or check HEADWATER_LOG_URL"
    )
