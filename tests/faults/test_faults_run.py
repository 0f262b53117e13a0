"""Two quick faults on real processes, a Kafka and a MinIO of their own; the whole matrix is `make faults`."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.tools import missing_tools
from tests.faults.ground import CACHE, Ground
from tests.faults.matrix import matrix
from tests.faults.trial import attempt

QUICK = {5: "builder: manifest answered, nobody told", 11: "builder asleep before its commit"}


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.minio
@pytest.mark.timeout(600)
def test_a_kill_after_the_commit_and_a_zombie_lose_and_double_nothing(tmp_path: Path) -> None:
    if missing := missing_tools(CACHE):
        pytest.skip(f"no servers of their own: {missing}")
    chosen = [variant for fault in matrix() for variant in fault.variants if variant.name == QUICK.get(fault.number)]
    assert len(chosen) == len(QUICK)
    with Ground(tmp_path / "ground") as ground:
        outcomes = [attempt(ground, variant, tmp_path / str(variant.number)) for variant in chosen]
    assert all(one.ok and one.acknowledged for one in outcomes), outcomes
