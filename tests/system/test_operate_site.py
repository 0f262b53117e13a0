"""An operator's commands against running processes: pause, resume, skip and reset, while queries go on."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from tests.indexer.conftest import make_collection, produce
from tests.system.processes import Process, command, done, role, until
from tests.system.sites import Site, open_site, unique

QUICK = {"seal_seconds": 0.5, "embed_watchdog_seconds": 0.5}


def told(site: Site, *arguments: str) -> Any:
    return json.loads(done(command(site, *arguments, "--json")))


def metric(process: Process, name: str, **labels: str) -> float:
    """A sample of the process's own /metrics; -1 where it has none."""
    with urllib.request.urlopen(f"{process.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    found = [line for line in lines if line.startswith(f"headwater_{name}{{") and all(part in line for part in wanted)]
    return float(found[0].rpartition(" ")[2]) if found else -1.0


def embedded(site: Site, name: str) -> list[int]:
    return [row["embedded_offset"] for row in told(site, "collection", "describe", name)["partitions"]]


def send(engines: Engines, collection: CollectionRecord, partition: int, prefix: str, count: int) -> None:
    for number in range(count):
        produce(engines, collection, partition, [f"{prefix}{number}"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.minio])])
def test_pause_resume_skip_and_reset_of_a_running_site(kind: str, tmp_path: Path) -> None:
    with open_site(kind, tmp_path, **QUICK) as site, site.engines() as engines:
        name = unique("operate")
        collection = make_collection(engines, name, partitions=2)
        process = role("up", site)
        process.start()
        try:
            process.wait_ready()
            for partition in (0, 1):
                send(engines, collection, partition, f"first{partition}-", 3)
            with process.client() as client:
                until(lambda: count(client, name) == 6, 30, "the first are served", alive=[process])

                told(site, "pause", name, "--partition", "1")
                until(lambda: metric(process, "paused_partitions", collection=name) == 1, 10, "the worker notices the pause", alive=[process])
                began = time.monotonic()
                for partition in (0, 1):
                    send(engines, collection, partition, f"second{partition}-", 4)
                until(lambda: count(client, name) == 10, 30, "the other partition goes on", alive=[process])
                until(lambda: metric(process, "lag_records", collection=name, stage="embed", partition="1") == 4, 10, "its lag is told")
                time.sleep(2)
                assert embedded(site, name) == [7, 3] and count(client, name) == 10, "queries go on, nothing of the paused partition is embedded"
                waited = metric(process, "lag_seconds", collection=name, stage="embed")
                assert 2 < waited <= time.monotonic() - began + 1

                lost = told(site, "skip", name, "--partition", "1", "--to", "5", "--yes")["skipped"]
                assert [(one["start_offset"], one["next_offset"]) for one in lost] == [(3, 5)]
                told(site, "resume", name)
                until(lambda: count(client, name) == 12, 30, "the partition goes on behind what was given up", alive=[process])
                until(lambda: metric(process, "lag_seconds", collection=name, stage="embed") == 0, 10, "nothing waits")

                begun = told(site, "reset", name, "--to", "earliest", "--yes")
                assert begun["active_index"] == begun["index"] != "main"
                until(lambda: count(client, name) == 14, 30, "what was given up is embedded again", alive=[process])
                told_now = told(site, "collection", "describe", name)
                assert told_now["collection"]["active_index"] == begun["index"] and embedded(site, name) == [7, 7]
                done(command(site, "collection", "drop-index", name, "main", "--yes"))
                send(engines, collection, 0, "third", 1)
                until(lambda: count(client, name) == 15, 30, "the new index follows the stream", alive=[process])
            assert process.stop() == 0
        finally:
            process.end()


def count(client: Any, name: str) -> int:
    found: int = client.count(name)
    return found
