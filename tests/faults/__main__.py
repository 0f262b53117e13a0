"""Runs the matrix of faults, and prints and writes what became of each.

    python -m tests.faults [--only 4,9] [--jobs 2] [--json results/faults.json] [--keep]
    python -m tests.faults --soak --minutes 30 [--rate 100] [--seed 1]

Exit code 0 when every fault that was run lost nothing, doubled nothing and recovered in its time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults.ground import Ground
from tests.faults.matrix import Fault, matrix
from tests.faults.soak import soak
from tests.faults.trial import Outcome, Variant, attempt

LEAST_RUN = 40


def chosen(only: str | None) -> list[Fault]:
    """The faults that were asked for."""
    wanted = None if only is None else {int(each) for each in only.split(",")}
    return [fault for fault in matrix() if wanted is None or fault.number in wanted]


def run(faults: Sequence[Fault], folder: Path, console: Console, jobs: int) -> list[Outcome]:
    """Run every variant on one ground: those that leave the servers alone a few at a time, then each of the others by itself."""
    planned = [(fault, variant, folder / f"fault{fault.number}-{at}") for fault in faults for at, variant in enumerate(fault.variants)]
    outcomes = [Outcome(fault.number, fault.name, "skipped", fault.reason or "not written") for fault in faults if not fault.variants]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar, Ground(folder / "ground") as ground:
        task = bar.add_task("faults", total=len(planned))
        ground.query_service()

        def one(fault: Fault, variant: Variant, place: Path) -> None:
            outcome = attempt(ground, variant, place)
            outcomes.append(outcome)
            bar.advance(task)
            bar.console.print(line_of(outcome), markup=False, soft_wrap=True)

        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(one, *each) for each in planned if not each[1].is_alone]:
                done.result()
        for each in planned:
            if each[1].is_alone:
                one(*each)
    return sorted(outcomes, key=lambda outcome: outcome.fault)


def line_of(one: Outcome) -> str:
    """What is said of a variant as soon as it is over."""
    told = f"{'ok    ' if one.ok else 'FAILED'} {one.fault:2} {one.name}: {one.seconds:.0f} s"
    counts = "" if one.acknowledged is None else f", {one.acknowledged} acknowledged, {one.lost} lost, {one.duplicated} twice"
    return "\n       ".join([f"{told}{counts}, recovers in {one.recover_seconds} s", *one.notes, *(f"FAULT {each}" for each in one.sentences)])


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """One line per variant."""
    table = Table("fault", "what", "acknowledged", "live", "lost", "twice", "recovers (s)", "took (s)", "")
    for one in outcomes:
        counts = ("" if each is None else str(each) for each in (one.acknowledged, one.live, one.lost, one.duplicated, one.recover_seconds))
        verdict = one.reason if one.status == "skipped" else "ok" if one.ok else "; ".join(one.sentences)[:300] or "FAILED"
        table.add_row(str(one.fault), one.name, *counts, f"{one.seconds:.0f}", verdict)
    console.print(table)


def run_soak(asked: argparse.Namespace, folder: Path, console: Console) -> int:
    """Random faults for a while."""
    path = asked.json or Path("results/soak.json")
    seed = asked.seed if asked.seed is not None else int(time.time()) % 100_000
    console.print(f"soak of {asked.minutes:g} minutes at {asked.rate:g} items/s, seed {seed}", soft_wrap=True)
    with Ground(folder / "ground") as ground:
        report = soak(ground, folder / "soak", asked.minutes, asked.rate, seed, lambda line: console.print(line, soft_wrap=True))
    table = Table("fault", "times")
    for kind, count in sorted(report.faults.items()):
        table.add_row(kind, str(count))
    console.print(table)
    console.print(
        f"{report.acknowledged:,} acknowledged, {report.live:,} live, {report.lost} lost, {report.duplicated} duplicated; time to searchable p50 "
        f"{report.searchable_p50_seconds} s, p99 {report.searchable_p99_seconds} s, at most {report.searchable_max_seconds} s; {report.restarts} "
        f"restarts; lag 0 after {report.recover_seconds} s; seed {seed}",
        soft_wrap=True,
    )
    for sentence in report.sentences:
        console.print(f"FAULT: {sentence}", markup=False, soft_wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(report), indent=1) + "\n")
    return finish(folder, not report.ok or asked.keep, console, 0 if report.ok else 1)


def finish(folder: Path, is_kept: bool, console: Console, code: int) -> int:
    """Keep what an investigation needs, else remove it."""
    if is_kept:
        console.print(f"kept: {folder}", soft_wrap=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="numbers of faults, such as 4,9")
    parser.add_argument("--json", type=Path, help="where results go; results/faults.json, or results/soak.json")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time, of those that leave the servers alone")
    parser.add_argument("--keep", action="store_true", help="keep journals and the processes' standard error")
    parser.add_argument("--soak", action="store_true", help="random faults under load instead of the matrix")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=100.0, help="items per second of the soak")
    parser.add_argument("--seed", type=int, help="of the soak")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that all processes end with this one
    console, began = Console(width=180, highlight=False), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="headwater-faults-"))
    if asked.soak:
        return run_soak(asked, folder, console)
    faults, path = chosen(asked.only), asked.json or Path("results/faults.json")
    outcomes = run(faults, folder, console, asked.jobs)
    show(outcomes, console)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    failed = [one for one in outcomes if one.status == "run" and not one.ok]
    ran = {one.fault for one in outcomes if one.status == "run"}
    console.print(
        f"{len(ran)} of {len(faults)} faults run, {sum(one.acknowledged or 0 for one in outcomes):,} acknowledged, "
        f"{sum(one.lost or 0 for one in outcomes)} lost, {sum(one.duplicated or 0 for one in outcomes)} duplicated, "
        f"{time.monotonic() - began:.0f} s; {path}",
        soft_wrap=True,
    )
    return finish(folder, bool(failed) or asked.keep, console, 1 if failed or (asked.only is None and len(ran) < LEAST_RUN) else 0)


if __name__ == "__main__":
    sys.exit(main())
