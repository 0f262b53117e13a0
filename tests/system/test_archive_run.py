"""The sample pictures are archived while they stream in, read back by the webdataset library, and three of them are purged without a trace.

`python -m tests.system.archive_run` prints the tables.
"""

from __future__ import annotations

import gc

import pytest

from tests.system.archive_run import VICTIMS, archive_run
from tests.system.sites import Site


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves its shards to the garbage collector
def test_purged_pictures_are_in_no_object_of_the_archive_and_all_others_are_byte_identical(site: Site) -> None:
    pytest.importorskip("webdataset")
    report = archive_run(site)
    gc.collect()
    assert report.faults == []
    assert (report.read_before, report.read_after) == (325, 325 - VICTIMS)
    assert sum(report.found_before.values()) > report.pieces > 0 and set(report.found_after.values()) == {0}
