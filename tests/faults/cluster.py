"""A cluster of three Kafka nodes beside the ground's store: leadership moves, and a record is acknowledged by two before it counts.

Takes: a ground, whose store is used. Gives: a `Ground` with three brokers. Owns: the brokers and their data. Never: stops the ground's own servers.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import MSG_WAITALL, create_connection

from deploy.local.processes import ProcessRecord, end, launch, tail_of_log
from deploy.local.services import HOST, LOG4J_FILE, kafka_properties, random_cluster_id
from deploy.local.tools import inherited_environment, jars_dir
from tests.faults.ground import CACHE, Ground, lasting_port
from tests.system.processes import until

NODES = (1, 2, 3)
REPLICATED = ("default.replication.factor", "offsets.topic.replication.factor", "transaction.state.log.replication.factor")


class Cluster(Ground):
    """Three nodes, each broker and controller."""

    def __init__(self, below: Ground, folder: Path) -> None:
        super().__init__(folder)
        self.below = below
        self._cluster_id = random_cluster_id()
        self._ports = {node: lasting_port() for node in NODES}
        self._controllers = {node: lasting_port() for node in NODES}
        self.nodes: dict[int, ProcessRecord] = {}

    def start(self) -> None:
        """Start the nodes that do not run, and wait until they serve."""
        for node in NODES:
            if node not in self.nodes or not self.nodes[node].is_running():
                self.nodes[node] = self._start(node)
        for node in NODES:
            port = self._ports[node]
            until(lambda p=port: _serves(p), 90, f"broker {node} is ready: {tail_of_log(self._dir(node), 'kafka')}", 0.2)  # type: ignore[misc]

    def _end_all(self) -> None:
        if self.query is not None:
            self.query.end()
        for node, record in self.nodes.items():
            end([record], self._dir(node), 5.0)

    def _dir(self, node: int) -> Path:
        folder = self.folder / f"node{node}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _start(self, node: int) -> ProcessRecord:
        folder = self._dir(node)
        text = kafka_properties(folder / "data", self._ports[node], self._controllers[node])
        values = dict(line.split("=", 1) for line in text.splitlines())
        values |= {"node.id": str(node), "controller.quorum.voters": ",".join(f"{each}@{HOST}:{self._controllers[each]}" for each in NODES)}
        values |= {name: "3" for name in REPLICATED} | {"min.insync.replicas": "2", "transaction.state.log.min.isr": "2"}
        config = folder / "server.properties"
        config.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        java = ["java", "-Xms128m", "-Xmx512m", "-Djava.awt.headless=true", f"-Dlog4j2.configurationFile={LOG4J_FILE}", "-cp", f"{jars_dir(CACHE)}/*"]
        if not (folder / "data" / "meta.properties").exists():
            told = [*java, "kafka.tools.StorageTool", "format", "--cluster-id", self._cluster_id, "--config", str(config), "--ignore-formatted"]
            subprocess.run(told, env=inherited_environment(), capture_output=True, check=True, timeout=60)
        return launch("kafka", [*java, "kafka.Kafka", str(config)], inherited_environment(), self._ports[node], folder)

    def kill_node(self, node: int) -> None:
        """``kill -9`` a node; the two others elect leaders for what it led."""
        record = self.nodes[node]
        os.kill(record.pid, signal.SIGKILL)
        until(lambda: not record.is_running(), 10, f"node {node} is gone", 0.02)

    def environment(self) -> dict[str, str]:
        """These brokers, and a bucket of its own on the ground's store: a node is not ready while it finds collections of another log."""
        found, brokers = self.below.environment(), ",".join(f"{HOST}:{port}" for port in self._ports.values())
        found |= {"HEADWATER_LOG_URL": f"kafka://{brokers}", "HEADWATER_KAFKA_REPLICATION": "3"}
        return found | {"HEADWATER_STORE_URL": f"{found['HEADWATER_STORE_URL']}-of-three-brokers"}


def _serves(port: int) -> bool:
    """Whether a node names all three brokers (Kafka's Metadata v1, as `deploy.local.services.is_kafka_ready` asks for one)."""
    client = b"headwater-faults"
    body = struct.pack(">hhih", 3, 1, 1, len(client)) + client + struct.pack(">i", 0)
    try:
        with create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            answer = connection.recv(12, MSG_WAITALL)
    except OSError:
        return False
    return len(answer) == 12 and struct.unpack(">iii", answer)[2] == len(NODES)


@contextmanager
def three_brokers(ground: Ground, folder: Path) -> Iterator[Cluster]:
    """A cluster of its own for one variant."""
    with Cluster(ground, folder / "cluster") as cluster:
        yield cluster
