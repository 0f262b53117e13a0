"""`python -m bench [WORKLOAD ...] [--only WORKLOAD] [--quick | --full] [--out FOLDER]`: measure, write bench.json and bench.png, print a table.

Takes: names of workloads. Gives: files, a table, an exit code: 0 measured, 1 a workload could not be measured, 2 wrong arguments.
Owns: the list of workloads. Never: fails because of a timing.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.bill import RequestBill
from bench.e2e import EndToEnd
from bench.filters import Filters
from bench.frame import Bench, Outcome, Workload
from bench.http_overhead import HttpOverhead
from bench.machine import ROOT, facts
from bench.picture import draw, readable
from bench.prepared import PreparedIndex
from bench.results import FILE_NAME, MACHINE, measures, write_results
from bench.timing import LeftColumn, RunClock
from bench.w1_pictures import PicturesToSearchable
from bench.w1c_encoder import EncoderSpeed
from bench.w2_build import BuildSegments
from bench.w3_many_segments import ManySegments
from bench.w4_time_to_searchable import TimeToSearchable
from bench.w5_hot_load import HotLoad
from bench.w6_cold_start import ColdStart
from bench.w12_checks import CostOfChecks
from bench.w13_storage import Storage
from contracts.errors import HeadwaterError

SEED = 20261123
PICTURE_NAME = "bench.png"
ALL = "all workloads"


def workloads(prepared: PreparedIndex) -> dict[str, Workload]:
    """All workloads, by name; the last ones share a prepared index."""
    own_vectors: list[Workload] = [BuildSegments(), ManySegments(), TimeToSearchable(), HotLoad(), Filters(), HttpOverhead(), CostOfChecks()]
    of_prepared: list[Workload] = [EndToEnd(prepared), ColdStart(prepared), Storage(prepared)]
    made: list[Workload] = [PicturesToSearchable(), EncoderSpeed(), *own_vectors, *of_prepared, RequestBill()]
    return {workload.name: workload for workload in made}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code."""
    prepared = PreparedIndex()
    known = workloads(prepared)
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Headwater; docs/benchmarks.md says what each workload means.")
    parser.add_argument("workload", nargs="*", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--only", action="append", default=[], metavar="WORKLOAD", help="the same, as an option; may be given again")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="few repetitions: rough figures")
    length.add_argument("--full", action="store_true", help="as many rows as the goals speak of: about an hour")
    parser.add_argument("--out", type=Path, default=ROOT / "results", metavar="FOLDER", help="folder of bench.json and bench.png (default: results)")
    asked = parser.parse_args(arguments)
    names = list(dict.fromkeys([*asked.workload, *asked.only])) or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown workload {', '.join(unknown)}; choose from {', '.join(known)}")
    console = Console(stderr=True)
    machine = facts() | {"quick": asked.quick, "full": asked.full}
    documents: list[dict[str, Any]] = []

    def keep(name: str, outcome: Outcome) -> None:
        documents[:] = [write_results(asked.out, machine, {name: outcome})]  # at once: who stops a long run keeps what was measured

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # contexts end, and with them the processes that were started
    with closing(prepared):
        failures, clock = _measure([known[name] for name in names], asked, console, keep)
    for document in documents:
        _report(document, known, asked.out)
    print("took", *clock.lines(), sep="\n")
    for name, error in failures.items():
        console.print(f"{name} could not be measured: {error.message}\nhint: {error.hint}", style="red", markup=False)
    return 1 if failures else 0


def _measure(
    chosen: Sequence[Workload], asked: argparse.Namespace, console: Console, keep: Callable[[str, Outcome], None]
) -> tuple[dict[str, HeadwaterError], RunClock]:
    failures: dict[str, HeadwaterError] = {}
    clock = RunClock([workload.name for workload in chosen], Bench(asked.quick, SEED, Progress(disable=True), asked.full).which)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), LeftColumn(clock, ALL))
    with Progress(*columns, console=console) as progress:
        bench = Bench(asked.quick, SEED, progress, asked.full)
        all_of_them = progress.add_task(ALL, total=len(chosen))
        for workload in chosen:
            try:
                with clock.running(workload.name):
                    outcome = workload.run(bench)
                outcome.notes["took_seconds"] = clock.seconds()[workload.name]
                keep(workload.name, outcome)
            except HeadwaterError as error:
                failures[workload.name] = error
            progress.advance(all_of_them)
    return failures, clock


def _report(document: Mapping[str, Any], known: Mapping[str, Workload], folder: Path) -> None:
    found = measures(document)
    goals = {name: workload.goals for name, workload in known.items()}
    machine = document[MACHINE]
    changed = ", uncommitted changes" if machine["has_uncommitted_changes"] else ""
    length = next((f", {name}" for name in ("quick", "full") if machine[name]), "")
    caption = f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, commit {machine['commit'][:10]}{changed}{length}"
    draw(found, goals, {name: workload.title for name, workload in known.items()}, caption, folder / PICTURE_NAME)
    table = Table("workload", "mode", "value", "95 % interval", "n", "goal")
    for name, modes in found.items():
        for mode, measure in modes.items():
            goal = goals.get(name, {}).get(mode)
            told = "" if goal is None else f"{'<' if goal.smaller_is_better else '>'} {goal.limit:g}: {'met' if goal.is_met(measure) else 'missed'}"
            table.add_row(name, mode, readable(measure), f"{measure.low:.4g} .. {measure.high:.4g}", str(measure.n), told)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(caption, f"wrote {folder / FILE_NAME} and {folder / PICTURE_NAME}", sep="\n", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
