"""Lengths and seconds: every workload has a budget, the usual run fits, and what is left is told."""

from __future__ import annotations

import numpy as np
import pytest
from rich.progress import Progress

from bench.__main__ import main, workloads
from bench.budget import BUDGETS, MOST_USUAL_SECONDS, ByRun, seconds_of
from bench.generated_rows import MOST_ROWS, GeneratedRows, generated_rows, rows_of
from bench.prepared import PreparedIndex
from bench.timing import LeftColumn, RunClock


def test_every_workload_has_a_budget_and_all_of_them_fit_into_twenty_minutes() -> None:
    names = list(workloads(PreparedIndex()))
    assert set(names) == set(BUDGETS)
    quick, usual, full = (seconds_of(names, at) for at in range(3))
    assert quick < usual <= MOST_USUAL_SECONDS < full


def test_longer_runs_measure_more_and_never_less() -> None:
    for name, budget in BUDGETS.items():
        for what, by_run in {"seconds": budget.seconds, **budget.lengths}.items():
            assert 0 < by_run.quick <= by_run.usual <= by_run.full, (name, what)


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left_are_the_workloads_to_come_and_the_rest_of_this_one() -> None:
    now = _Clock()
    clock = RunClock(["W2", "W3"], ByRun._fields.index("usual"), now)
    w2, w3 = (BUDGETS[name].seconds.usual for name in ("W2", "W3"))
    assert clock.left_seconds() == w2 + w3
    with clock.running("W2"):
        now.now += 10
        assert clock.left_seconds() == w2 - 10 + w3
        now.now += 10 * w2  # longer than planned: nothing is left of it
        assert clock.left_seconds() == w3
    assert clock.left_seconds() == w3 and clock.seconds() == {"W2": 10.0 + 10 * w2}
    with clock.running("W3"):
        now.now += 5
    first, second, total, *_ = clock.lines()
    assert first.startswith("W2") and "longer than planned" in first and "longer" not in second and total.startswith("all")
    assert clock.total_seconds == 15 + 10 * w2


def test_a_usual_run_of_more_than_twenty_minutes_is_told() -> None:
    now = _Clock()
    clocks = [RunClock(["W2"], which, now) for which in range(3)]
    now.now += MOST_USUAL_SECONDS + 1
    assert [any("of its own" in line for line in clock.lines()) for clock in clocks] == [False, True, False]


def test_only_the_bar_of_all_workloads_tells_what_is_left() -> None:
    clock = RunClock(["W6"], 1, _Clock())
    with Progress(disable=True) as progress:
        whole, part = progress.add_task("all"), progress.add_task("part")
        column = LeftColumn(clock, "all")
        told = {task.id: column.render(task).plain for task in progress.tasks}
    minutes, seconds = divmod(BUDGETS["W6"].seconds.usual, 60)
    assert told == {whole: f"about {minutes}:{seconds:02d} left", part: ""}


def test_a_failed_workload_counts_as_done() -> None:
    clock = RunClock(["W2"], 1, _Clock())
    with pytest.raises(ValueError, match="x"), clock.running("W2"):
        raise ValueError("x")
    assert clock.left_seconds() == 0 and "W2" in clock.took


def test_only_is_a_workload_as_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--only", "W98", "W99"])
    assert refused.value.code == 2 and "W99, W98" in capsys.readouterr().err


def test_rows_are_made_once_and_are_the_same_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    first_block = 500
    monkeypatch.setattr("bench.generated_rows.FIRST_BLOCK_ROWS", first_block)
    monkeypatch.setattr("bench.generated_rows.BLOCK_ROWS", first_block)
    rows = GeneratedRows(3)
    few = rows.first(10)
    assert not few.flags.writeable and np.shares_memory(few, rows.first(20))
    first = rows.first(100).copy()
    more = rows.first(first_block + 5)
    assert (more[:100] == first).all() and not np.isclose(more[:5], more[first_block:]).all(axis=1).any()
    assert len(rows.first_clusters(30)) == 30 and rows.queries(4).shape == (4, 512)
    assert np.linalg.norm(more[first_block:], axis=1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="more than"):
        rows.first(MOST_ROWS + 1)
    monkeypatch.undo()  # these are everybody's
    assert generated_rows(1) is generated_rows(1) and rows_of(7, 1).dtype == np.float16
