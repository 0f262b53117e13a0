"""Bad input of every kind through real processes: explained, kept byte for byte, and the stream goes on."""

from __future__ import annotations

import pytest

from tests.system.bad_input_run import run_poisoned, run_table
from tests.system.sites import Site

RECORDS = 400


def roles_of(site: Site) -> tuple[str, ...]:
    return ("up",) if site.kind == "sqlite" else ("embed", "index", "query")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
def test_every_bad_input_has_the_outcome_that_is_promised(site: Site) -> None:
    wrong = [(one.bad.name, one.verdict, one.reason, one.identical, one.sentence) for one in run_table(site, roles_of(site)) if not one.is_kept]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
def test_poison_in_a_stream_is_explained_and_the_rest_is_indexed(embedded_site: Site) -> None:
    report = run_poisoned(embedded_site, ("up",), RECORDS)
    assert report.faults == []
    assert (report.indexed, report.explained.total(), report.restarts) == (RECORDS - RECORDS // 100, RECORDS // 100, 0)
