"""One picture through every record form, producer and source, embedded and on Kafka and MinIO: each is found."""

from __future__ import annotations

import pytest

from tests.system.sites import Site
from tests.system.ways_in_run import ways_in_run


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
def test_a_picture_is_found_whatever_way_it_comes_in(site: Site) -> None:
    ways = ways_in_run(site)
    assert len({way.name for way in ways}) == len(ways) == 22
