"""Collections whose settings do not fit this machine: they stop alone, which is told, and a role that has no other ends."""

from __future__ import annotations

import threading

import pytest

from contracts.engines import Engines
from contracts.errors import SettingsError
from indexer.role import run_collections
from tests.indexer.conftest import eventually, make_collection, running
from tests.indexer.test_outages import Flaky


def stopped(engines: Engines, collection: str) -> float | None:
    labels = {"collection": collection, "stage": "embed", "outcome": "stopped"}
    return engines.metrics.registry.get_sample_value("headwater_records_total", labels)


def test_a_collection_that_is_stopped_is_counted_and_the_others_go_on(engines: Engines) -> None:
    for name in ("misfit", "fine"):
        make_collection(engines, name)
    lives: list[str] = []
    wrong = [SettingsError("no such encoder")]
    with running(
        lambda stop: run_collections(
            engines, None, stop, lambda c: Flaky(lives, c.name, wrong if c.name == "misfit" else ()), stage="embed", ends_without_work=True
        )
    ):
        eventually(lambda: stopped(engines, "misfit") == 1)
        make_collection(engines, "new")
        eventually(lambda: "new" in lives)
    assert sorted(lives) == ["fine", "misfit", "new"] and stopped(engines, "fine") is None


@pytest.mark.parametrize("ends", [True, False])
def test_a_role_whose_collections_are_all_stopped_ends_with_their_error_where_it_is_alone(engines: Engines, ends: bool) -> None:
    for name in ("a", "b"):
        make_collection(engines, name)
    errors: list[SettingsError] = []
    stop = threading.Event()

    def run() -> None:
        try:
            run_collections(engines, None, stop, lambda c: Flaky([], c.name, [SettingsError("misfit")]), stage="embed", ends_without_work=ends)
        except SettingsError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: stopped(engines, "a") == stopped(engines, "b") == 1)
    thread.join(60 if ends else 0.5)
    assert thread.is_alive() != ends
    stop.set()
    thread.join(60)
    assert [error.message for error in errors] == (["misfit"] if ends else [])


def test_a_role_without_any_collection_waits_for_one(engines: Engines) -> None:
    lives: list[str] = []
    with running(lambda stop: run_collections(engines, None, stop, lambda c: Flaky(lives, c.name, ()), stage="embed", ends_without_work=True)):
        make_collection(engines, "first")
        eventually(lambda: lives == ["first"])
