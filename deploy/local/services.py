"""The two servers of the local stack: how each is configured, started, and known to be ready.

Takes: jars, the MinIO program, ports, the run folder. Gives: running `ProcessRecord`s. Owns: the broker's and the store's settings.
Never: listens on anything but loopback, or uses a default password.
"""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import socket
import struct
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from deploy.local.processes import ProcessRecord, launch
from deploy.local.tools import StackError, inherited_environment, jars_dir, minio_program

HOST = "127.0.0.1"
MEBIBYTE = 1024 * 1024
RECORD_LIMIT_BYTES = 64 * MEBIBYTE
FORMAT_TIMEOUT_SECONDS = 60.0
LOG4J_FILE = Path(__file__).with_name("log4j2.properties")


def pick_port(preferred: int, taken: frozenset[int] = frozenset()) -> int:
    """`preferred` when nothing listens there on loopback, else a free port of the kernel's choice."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            if preferred not in taken:
                probe.bind((HOST, preferred))
                return preferred
        except OSError:
            pass  # somebody listens there: take another
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    return port if port not in taken else pick_port(port, taken)


# ---- Kafka ------------------------------------------------------------------------------------------------------


def kafka_properties(data_dir: Path, port: int, controller_port: int) -> str:
    """Text of ``server.properties``: one KRaft node for broker and controller (kafka.apache.org/41/documentation, brokerconfigs)."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "log.dirs": data_dir,
        # Media records: the default of 1 MiB is smaller than many a photograph.
        "message.max.bytes": RECORD_LIMIT_BYTES,
        "replica.fetch.max.bytes": RECORD_LIMIT_BYTES,
        "fetch.max.bytes": RECORD_LIMIT_BYTES,
        "socket.request.max.bytes": RECORD_LIMIT_BYTES + 36 * MEBIBYTE,
        # A misspelt topic is an error, not a new topic with one partition.
        "auto.create.topics.enable": "false",
        "num.partitions": 4,
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # One consumer is a whole group here: do not wait 3 s for others to join.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        "log.retention.check.interval.ms": 30000,
        "num.network.threads": 2,
        "num.io.threads": 4,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def random_cluster_id() -> str:
    """A KRaft cluster's id, which must not begin with a dash: the formatting tool takes such a one for an option."""
    while (made := base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
        pass
    return made


def start_kafka(cache: Path, run_dir: Path, port: int) -> ProcessRecord:
    """Format the data folder where that was not done yet, then start the broker."""
    data_dir = run_dir / "kafka-data"
    properties = run_dir / "server.properties"
    properties.write_text(kafka_properties(data_dir, port, pick_port(port + 1, taken=frozenset({port}))))
    java = ["java", "-Xms256m", "-Xmx768m", "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true"]
    java += [f"-Dlog4j2.configurationFile={LOG4J_FILE}", "-cp", f"{jars_dir(cache)}/*"]
    environment = inherited_environment()
    if not (data_dir / "meta.properties").exists():
        cluster_id = random_cluster_id()
        command = [*java, "kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", str(properties), "--ignore-formatted"]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=FORMAT_TIMEOUT_SECONDS)
        if answer.returncode != 0:
            raise StackError(f"kafka: its data folder cannot be formatted:\n{(answer.stdout + answer.stderr)[-2000:]}")
    return launch("kafka", [*java, "kafka.Kafka", str(properties)], environment, port, run_dir)


def is_kafka_ready(port: int) -> bool:
    """Ask for the cluster's metadata: an unfenced broker names itself, a starting one does not.

    Request and answer are Metadata v1 of Kafka's protocol (kafka.apache.org/protocol, api key 3).
    """
    client = b"headwater-stack"
    body = struct.pack(">hhih", 3, 1, 1, len(client)) + client + struct.pack(">i", 0)
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            answer = connection.recv(12, socket.MSG_WAITALL)
    except OSError:
        return False
    # size, correlation id, number of brokers
    return len(answer) == 12 and struct.unpack(">iii", answer)[1:] == (1, 1)


# ---- MinIO ------------------------------------------------------------------------------------------------------


def load_credentials(run_dir: Path) -> tuple[str, str]:
    """Access key and secret key of the local store: made at random once, readable by their owner alone."""
    path = run_dir / "credentials.json"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(json.dumps({"access_key": "headwater-" + secrets.token_hex(4), "secret_key": secrets.token_hex(20)}) + "\n")
    stored = json.loads(path.read_text())
    return stored["access_key"], stored["secret_key"]


@dataclass(frozen=True)
class NotificationTarget:
    """Where the store writes what happens in its buckets: a topic of the broker on this machine.

    A bucket's notification names it as ``arn:minio:sqs::<name>:kafka``. The topic has to be there before the first event.
    """

    name: str
    kafka_port: int
    topic: str

    def environment(self, events_dir: Path) -> dict[str, str]:
        """MinIO's variables for it; events wait in `events_dir` while the broker does not answer."""
        values = {"ENABLE": "on", "BROKERS": f"{HOST}:{self.kafka_port}", "TOPIC": self.topic, "QUEUE_DIR": str(events_dir)}
        return {f"MINIO_NOTIFY_KAFKA_{name}_{self.name}": value for name, value in values.items()}


def start_minio(cache: Path, run_dir: Path, port: int, target: NotificationTarget | None = None) -> ProcessRecord:
    """Start the store; secrets go by the environment, which other users cannot read."""
    access_key, secret_key = load_credentials(run_dir)
    data_dir = run_dir / "minio-data"
    data_dir.mkdir(exist_ok=True)
    environment = inherited_environment() | {
        "MINIO_ROOT_USER": access_key,
        "MINIO_ROOT_PASSWORD": secret_key,
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",  # no call home for newer versions
    }
    if target is not None:
        events_dir = run_dir / "minio-events"
        events_dir.mkdir(exist_ok=True)
        environment |= target.environment(events_dir)
    certificates = run_dir / "minio-certs"
    certificates.mkdir(exist_ok=True)
    command = [str(minio_program(cache)), "server", "--quiet", "--address", f"{HOST}:{port}", "--certs-dir", str(certificates), str(data_dir)]
    return launch("minio", command, environment, port, run_dir)


def is_minio_ready(port: int) -> bool:
    """Ask MinIO's own readiness probe whether it takes writes."""
    connection = http.client.HTTPConnection(HOST, port, timeout=1.0)
    try:
        connection.request("GET", "/minio/health/cluster")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
