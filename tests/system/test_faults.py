"""What an operator meets when a part is missing or wrong, and a query node that comes back empty."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np
import pytest

from contracts.collection import CollectionRecord
from headwater.client import Freshness, HeadwaterClient
from ingest.producer import MediaProducer
from tests.system.accounts import read_checkpoint
from tests.system.processes import command, done, role, running, until
from tests.system.sites import Site, free_port, unique

DIMENSION = 8
ROLES = ("embed", "index", "query")


def assert_one_line(stderr: str) -> None:
    """One line that says what is wrong, at most one more that says what to do, no traceback."""
    lines = [line for line in stderr.splitlines() if not line.startswith("{")]  # log records are JSON lines
    assert "Traceback" not in stderr
    assert lines[0].startswith("error: ")
    assert [line.split(":")[0] for line in lines[1:]] in ([], ["hint"]), lines


@pytest.mark.parametrize("name", ROLES)
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
        processes["index"].kill()  # so that the second half stays in the tail
        ends = produce(site, record, ids[300:], matrix[300:], ids[20:30])
        query = processes["query"]
        with query.client() as client:
            client.wait_for(name, ends, 30)
            before, counted, seen = answers(client, name, matrix[::50]), client.count(name), client.freshness(name)
        query.kill()
        shutil.rmtree(site.folder / "cache", ignore_errors=True)
        fresh = role("query", site)
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
