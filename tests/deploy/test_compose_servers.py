"""Kafka and MinIO with exactly the environment that docker-compose.yml gives them, on the programs of the local stack.

Only addresses and folders are replaced. What the images' own scripts do around it is not covered, except Kafka's, whose step from environment to
`server.properties` is a class in its jar.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from backends.open_log import open_log
from contracts.errors import HeadwaterError
from contracts.log import TopicSpec
from contracts.settings import load_settings
from deploy.docker.environment import filled
from deploy.local.services import is_minio_ready
from deploy.local.tools import jars_dir, minio_program
from tests.deploy.dockerfile import read_stages
from tests.system.processes import until
from tests.system.sites import free_port

ROOT = Path(__file__).resolve().parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
CACHE = Path.home() / ".cache/headwater/stack"


def filled_environment(service: str) -> dict[str, str]:
    """A service's variables with fresh secrets."""
    given = dict(re.findall(r"^(\w+)=(.+)$", filled((ROOT / ".env.example").read_text()), re.MULTILINE))
    given["HEADWATER_KAFKA_PASSWORD"] = given["HEADWATER_STORE_SECRET_KEY"] = "a" * 48  # the same for server and client of one test
    return {name: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: given[found[1]], value) for name, value in SERVICES[service]["environment"].items()}


@contextmanager
def started(command: list[str], variables: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env={"PATH": os.environ["PATH"]} | variables, cwd=folder, stdout=log, stderr=log)  # noqa: TID251
    try:
        yield server
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.skipif(not (shutil.which("java") and jars_dir(CACHE).is_dir()), reason="no Kafka: run `make stack` once")
def test_kafkas_own_script_makes_a_broker_of_the_environment_that_takes_our_password_and_no_other(tmp_path: Path) -> None:
    port, controller = free_port(), free_port()
    variables = filled_environment("kafka")
    places = {"//kafka:": "//127.0.0.1:", "//:": "//127.0.0.1:", ":9092": f":{port}", ":9093": f":{controller}"}
    for old, new in places.items():
        variables = {name: value.replace(old, new) for name, value in variables.items()}
    variables |= {"KAFKA_LOG_DIRS": str(tmp_path / "data")}
    folders = [tmp_path / name for name in ("default", "mounted", "final")]
    for folder in folders:
        folder.mkdir()
    for name in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
        (folders[0] / name).write_text("")
    java = ["java", "-Xmx512m", "-cp", f"{jars_dir(CACHE)}/*"]
    options = [word for name, folder in zip(("default", "mounted", "final"), folders, strict=True) for word in (f"--{name}-configs-dir", str(folder))]
    setup = subprocess.run([*java, "kafka.docker.KafkaDockerWrapper", "setup", *options], env={"PATH": os.environ["PATH"]} | variables,  # noqa: TID251
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert setup.returncode == 0, setup.stdout + setup.stderr
    ours = {name: interpolated(value) for name, value in SERVICES["query"]["environment"].items()} | {
        "HEADWATER_LOG_URL": f"kafka://127.0.0.1:{port}"
    }
    settings = load_settings(**{name.removeprefix("HEADWATER_").lower(): value for name, value in ours.items()})
    with started([*java, "kafka.Kafka", str(folders[2] / "server.properties")], {}, tmp_path) as server:
        health = SERVICES["kafka"]["healthcheck"]["test"]
        assert health[:4] == ["CMD", "nc", "-z", "127.0.0.1"] and health[4] == "9092"
        until(lambda: server.poll() is not None or answers(settings), 60, "the broker answers", every_seconds=0.5)
        assert server.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
        log = open_log(settings)
        try:
            assert log.cluster_id() == variables["CLUSTER_ID"]
            log.create_topic(TopicSpec("headwater.photos.media", 2, retention_ms=-1))
            producer = log.producer()
            assert producer.send("headwater.photos.media", partition=1, key=b"k", value=bytes(20_000_000)).result(30).offset == 0
            producer.close()
        finally:
            log.close()
        assert not answers(settings.model_copy(update={"kafka_password": type(settings.kafka_password)("wrong")}))


def interpolated(value: str) -> str:
    return re.sub(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}", lambda found: found[2] or "a" * 48, value)


def answers(settings: object) -> bool:
    try:
        log = open_log(settings)  # type: ignore[arg-type]
        try:
            return bool(log.cluster_id())
        finally:
            log.close()
    except HeadwaterError:
        return False


@pytest.mark.minio
@pytest.mark.skipif(not minio_program(CACHE).is_file(), reason="no MinIO: run `make stack` once")
def test_minio_starts_as_its_image_says_is_healthy_where_it_is_asked_and_shows_its_metrics_where_they_are_scraped(tmp_path: Path) -> None:
    port = free_port()
    image = read_stages(ROOT / "deploy" / "docker" / "minio.Dockerfile")["final"]
    arguments = [
        word.replace(":9000", f"127.0.0.1:{port}").replace("/data", str(tmp_path / "data")) for word in re.findall(r'"([^"]+)"', image.all("CMD")[0])
    ]
    with started([str(minio_program(CACHE)), *arguments], filled_environment("minio"), tmp_path) as server:
        until(lambda: server.poll() is not None or is_minio_ready(port), 30, "MinIO is ready")
        jobs = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
        [metrics_path] = [job["metrics_path"] for job in jobs if job["job_name"] == "minio"]
        [health] = re.findall(r"http://127\.0\.0\.1:9000(/[a-z/]+)", image.all("HEALTHCHECK")[0])
        for path in (metrics_path, health):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                assert answer.status == 200
                assert path == health or b"\nminio_" in answer.read()
