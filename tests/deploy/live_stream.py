"""A small live deployment: `headwater up` on files, a stream of own vectors with bad records in it, and a real Prometheus that scrapes it.

    python -m tests.deploy.live_stream --seconds 90 --out results/overview.png      (draws the dashboard from it)

Takes: a folder. Gives: Prometheus' address. Owns: both processes and the stream. Never: needs a model, Kafka, MinIO or Docker.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord
from headwater.client import HeadwaterClient
from headwater.wiring import vector_field
from ingest.producer import MediaProducer
from ingest.records import plain_record
from tests.system.processes import running, until
from tests.system.sites import Site, free_port, open_site

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS_FOLDER = ROOT / "deploy" / "prometheus"
DIMENSION = 16
PAUSE_SECONDS = 0.05
BAD_EVERY = 40
RATE_SECONDS = 10


def scrape_config(headwater_port: int, own_port: int) -> dict[str, object]:
    """Our own `prometheus.yml`, every second, with the addresses of this run: all roles are one process here, so it is scraped once."""
    config = yaml.safe_load((PROMETHEUS_FOLDER / "prometheus.yml").read_text())
    jobs = {"query": headwater_port, "prometheus": own_port}
    return config | {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(PROMETHEUS_FOLDER / name) for name in config["rule_files"]],
        "scrape_configs": [{"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for name, port in jobs.items()],
    }


@contextmanager
def prometheus(folder: Path, headwater_port: int) -> Iterator[str]:
    """A real Prometheus on a free port of loopback; gives its address once it is ready."""
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(scrape_config(headwater_port, port)))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        until(lambda: child.poll() is not None or answers(f"http://127.0.0.1:{port}/-/ready"), 30, "Prometheus is ready")
        assert child.poll() is None, (folder / "prometheus.log").read_text()[-3000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def stream(site: Site, made: CollectionRecord, url: str, stop: threading.Event) -> None:
    """Own vectors, now and then a record that is none, and a query after each, until `stop` is set."""
    random = np.random.default_rng(5)
    with site.engines() as engines, MediaProducer(engines.log, made, engines.settings) as producer, HeadwaterClient(url) as client:
        number = 0
        while not stop.wait(PAUSE_SECONDS):
            number += 1
            vectors = random.standard_normal((8, DIMENSION)).astype(np.float32)
            producer.send_vectors([f"{number}-{row}" for row in range(len(vectors))], {"v": vectors})
            if number % BAD_EVERY == 0:
                producer.send(plain_record(f"bad-{number}", b"%PDF-1.7", "application/pdf"), f"bad-{number}")
            client.search(made.name, vector=[float(value) for value in vectors[0]], limit=3)


@contextmanager
def live_stream(folder: Path) -> Iterator[tuple[str, str]]:
    """Everything running; gives the addresses of Prometheus and of Headwater's metrics."""
    with open_site(
        "sqlite", folder, seal_seconds=1.0, archive_seconds=1.0, query_poll_seconds=5.0, train_rows=300, maintain_seconds=1.0, gc_seconds=10.0
    ) as site:
        with site.engines() as engines:
            made = create_collection(engines, CollectionRequest("live", [vector_field(f"v:{DIMENSION}")], partitions=2))
        with running(site, "up") as processes:
            up = processes["up"]
            stop = threading.Event()
            sender = threading.Thread(target=stream, args=(site, made, up.url, stop), name="stream")
            with prometheus(folder, int(up.variables["HEADWATER_QUERY_PORT"])) as url:
                sender.start()
                try:
                    yield url, f"{up.url}/metrics"
                finally:
                    stop.set()
                    sender.join(30)


def main() -> None:
    """Run for a while, then draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.live_stream")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "overview.png")
    options = parser.parse_args()
    assert shutil.which("prometheus"), "apt-get install prometheus"
    from deploy.grafana.picture import draw

    with tempfile.TemporaryDirectory() as folder, live_stream(Path(folder)) as (url, _):
        time.sleep(options.seconds)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        draw(url, options.seconds / 60, RATE_SECONDS).savefig(options.out)
        with urllib.request.urlopen(f"{url}/api/v1/targets", timeout=10) as answer:
            print([target["health"] for target in json.load(answer)["data"]["activeTargets"]])


if __name__ == "__main__":
    main()
