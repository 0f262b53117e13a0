"""Fifty pictures are dead-lettered, twenty of their ids change, the rule is mended: replay brings back exactly thirty.

`python -m tests.system.replay_run` prints the table.
"""

from __future__ import annotations

import pytest

from tests.system.replay_run import replay_run
from tests.system.sites import Site


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(420)
def test_exactly_those_come_back_that_nothing_newer_replaced(site: Site) -> None:
    report = replay_run(site)
    assert report.faults == []
    assert (len(report.dead_lettered), len(report.updated) + len(report.deleted)) == (50, 20)
    assert (report.chosen, report.came_back, report.stayed) == (30, 30, 20)
    assert report.in_tail == report.committed == (50, 50) and report.stored == 50  # 30 came back, 10 updated, 10 neighbours
