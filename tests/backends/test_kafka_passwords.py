"""A broker that asks for passwords: the right one works, a wrong one is a setting to fix, said at once and without the password.

The local stack's broker takes anybody, so this file starts one of its own.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.kafka_log import KafkaLog
from contracts.errors import SettingsError
from contracts.log import TopicSpec
from contracts.settings import Settings, load_settings
from deploy.local.processes import end, launch, tail_of_log
from deploy.local.services import HOST, is_kafka_ready, kafka_properties
from deploy.local.tools import inherited_environment, jars_dir
from tests.system.sites import free_port

CACHE = Path.home() / ".cache" / "headwater" / "stack"
START_SECONDS = 90.0
pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]


def properties(folder: Path, plain_port: int, sasl_port: int, controller_port: int) -> str:
    """The stack's broker with a second listener, which asks for a user; of a name that is there twice the last one counts."""
    module = "org.apache.kafka.common.security"
    extra = {
        "listeners": f"PLAINTEXT://{HOST}:{plain_port},ASKING://{HOST}:{sasl_port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{plain_port},ASKING://{HOST}:{sasl_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,ASKING:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "listener.name.asking.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.asking.plain.sasl.jaas.config": f'{module}.plain.PlainLoginModule required user_worker="right";',
        "listener.name.asking.scram-sha-512.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
    }
    return kafka_properties(folder / "data", plain_port, controller_port) + "".join(f"{name}={value}\n" for name, value in extra.items())


@pytest.fixture(scope="module")
def asking_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a broker that takes the user ``worker`` with the password ``right``, by PLAIN and by SCRAM."""
    if not jars_dir(CACHE).is_dir():
        pytest.skip("no Kafka on this machine: run `make stack`")
    folder, ports = tmp_path_factory.mktemp("asking"), [free_port(), free_port(), free_port()]
    file = folder / "server.properties"
    file.write_text(properties(folder, *ports))
    java = ["java", "-Xms128m", "-Xmx512m", "-Djava.awt.headless=true", "-cp", f"{jars_dir(CACHE)}/*"]
    user = "SCRAM-SHA-512=[name=worker,password=right]"
    form = [*java, "kafka.tools.StorageTool", "format", "--cluster-id", "aGVhZHdhdGVyLXRlc3QxMg", "--config", str(file), "--add-scram", user]
    subprocess.run(form, env=inherited_environment(), check=True, capture_output=True, timeout=START_SECONDS)
    broker = launch("kafka", [*java, "kafka.Kafka", str(file)], inherited_environment(), ports[0], folder)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_kafka_ready(ports[0]):
            assert broker.is_running() and time.monotonic() < deadline, tail_of_log(folder, "kafka")
            time.sleep(0.2)
        yield ports[1]
    finally:
        end([broker], folder)


def settings(port: int, mechanism: str, password: str, user: str = "worker") -> Settings:
    return load_settings(
        log_url=f"kafka://{HOST}:{port}",
        kafka_replication=1,
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_mechanism=mechanism,
        kafka_username=user,
        kafka_password=password,
    )


MECHANISMS = ("PLAIN", "SCRAM-SHA-512")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_right_password_produces_and_reads(asking_port: int, mechanism: str) -> None:
    log = KafkaLog(settings(asking_port, mechanism, "right"))
    name = f"t-{mechanism.lower()}"
    log.create_topic(TopicSpec(name, partitions=1, retention_ms=-1))
    log.producer().send(name, partition=0, value=b"v").result(30)
    found = log.read_at(name, 0, 0)
    assert found is not None and found.value == b"v"
    log.close()


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("user", ["worker", "nobody"])
def test_a_wrong_password_is_a_setting_to_fix_and_said_at_once(asking_port: int, mechanism: str, user: str) -> None:
    began = time.monotonic()
    with pytest.raises(SettingsError) as caught:
        KafkaLog(settings(asking_port, mechanism, "wrong-secret", user))
    assert time.monotonic() - began < 8.0
    assert "HEADWATER_KAFKA_USERNAME" in caught.value.hint and caught.value.exit_code == 2
    assert "wrong-secret" not in str(caught.value)


def test_a_password_that_is_taken_away_is_told_by_what_is_opened_next(asking_port: int) -> None:
    log = KafkaLog(settings(asking_port, "PLAIN", "right"))
    log.create_topic(TopicSpec("t-later", partitions=1, retention_ms=-1))
    log.producer().send("t-later", partition=0, value=b"v").result(30)
    log._settings = settings(asking_port, "PLAIN", "wrong-secret")
    opened = (lambda: log.reader("t-later", {0: 0}), lambda: log.group_reader("t-later", "g"), lambda: log.read_at("t-later", 0, 0), log.producer)
    for one in opened:
        with pytest.raises(SettingsError, match="SaslAuthenticationFailedError"):
            one()
    log.close()


def test_a_mechanism_that_the_broker_lacks_is_a_setting_to_fix(asking_port: int) -> None:
    with pytest.raises(SettingsError, match="UnsupportedSaslMechanism|SCRAM-SHA-256"):
        KafkaLog(settings(asking_port, "SCRAM-SHA-256", "right"))
