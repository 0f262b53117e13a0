"""Bad input of every kind through real processes: explained, kept byte for byte, and the stream goes on."""

from __future__ import annotations

import pytest
from rich.console import Console

from tests.system.bad_input_run import growth_faults, run_poisoned, run_table, show_poisoned, show_table
from tests.system.sites import Site

RECORDS = 400


def roles_of(site: Site) -> tuple[str, ...]:
    return ("up",) if site.kind == "sqlite" else ("embed", "index", "query")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
def test_every_bad_input_has_the_outcome_that_is_promised(site: Site) -> None:
    found = run_table(site, roles_of(site))
    show_table(found, site.kind, Console(width=220, highlight=False))  # pytest -rP shows it
    assert [(one.bad.name, one.verdict, one.reason, one.identical, one.sentence) for one in found if not one.is_kept] == []


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
def test_poison_in_a_stream_is_explained_and_the_rest_is_indexed(embedded_site: Site) -> None:
    report = run_poisoned(embedded_site, ("up",), RECORDS)
    show_poisoned(report, embedded_site.kind, Console(width=220, highlight=False))
    assert report.faults == []
    assert (report.indexed, report.explained.total(), report.restarts) == (RECORDS - RECORDS // 100, RECORDS // 100, 0)


def test_memory_that_grows_along_a_stream_is_a_fault_and_a_buffer_is_none() -> None:
    assert growth_faults({"embed": (900, 1000, 1100, 1200, 1300, 1400, 1300), "query": (100, 200, 400, 800, 1600, 1600, 1600)}) == []
    assert len(growth_faults({"up": (900, 1000, 1200, 1350, 1500, 1500, 1500)})) == 1
