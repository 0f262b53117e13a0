"""`headwater verify`: whether everything that a collection was sent is accounted for, from its stored bytes.

Takes: a collection. Gives: tables or JSON, and an exit code: 0 whole, 1 warnings, 6 faults. Owns: asking before a repair.
Never: changes anything without `--repair` and a yes.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from backends.catalog.collections import CollectionCatalog
from contracts.clock import SystemClock
from contracts.errors import SettingsError
from contracts.settings import load_settings
from headwater.console import Steps, notes, one_line, output, print_json, progress_bar
from headwater.logging_setup import set_up_logging
from headwater.verify_report import advice, as_json, exit_code, findings_table, partition_table, plan_lines, verdict_line
from headwater.wiring import open_engines, open_store_alone
from indexer.verify.audit import Audit, AuditReport
from indexer.verify.repair import Repair, RepairPlan, RepairReport


def register(app: typer.Typer) -> None:
    """Add `verify` to the command line."""
    app.command("verify")(verify)


def verify(
    collection: Annotated[str, typer.Argument(help="Which collection.")],
    store_only: Annotated[
        bool, typer.Option("--store-only", help="Do not ask the log: audit a copy of the store, or while the log is away.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most findings of one kind in the table.")] = 10,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what is safe: missing dead letters, dead objects. Says first what it would do.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --repair: only say what it would do.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --repair: do not ask.")] = False,
    as_document: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove from stored bytes that every item is in exactly one state; exit code 0 whole, 1 warnings, 6 faults."""
    settings = load_settings()
    set_up_logging(settings)
    if repair and store_only:
        raise SettingsError("a repair needs the log", hint="leave --store-only out")
    if (dry_run or yes) and not repair:
        raise SettingsError("--dry-run and --yes belong to --repair", hint="verify alone never changes anything")
    if store_only:
        with open_store_alone(settings) as store:
            report = _run(Audit(store, None, CollectionCatalog(store).get(collection), settings.cache_dir, SystemClock().now_seconds()))
        _finish(report, None, None, as_document, limit)
        return
    with open_engines(settings) as engines:
        record = CollectionCatalog(engines.store).get(collection)
        report = _run(Audit(engines.store, engines.log, record, settings.cache_dir, engines.clock.now_seconds()))
        work = Repair(engines, report)
        plan = work.plan() if repair else None
        if not as_document:
            _print(report, limit)
        done = None if plan is None else _mend(work, plan, dry_run, yes, as_document)
    _finish(report, plan, done, as_document, None)


def _run(audit: Audit) -> AuditReport:
    with progress_bar() as bar:
        audit.tell = Steps(bar).tell
        return audit.run()


def _mend(work: Repair, plan: RepairPlan, dry_run: bool, yes: bool, as_document: bool) -> RepairReport | None:
    """Say what would be done, ask, and do it; None where nothing was done."""
    console = notes() if as_document else output()
    console.print("repair would:" if plan_lines(plan) else "repair: nothing to do", markup=False)
    for line in plan_lines(plan):
        console.print(f"  {one_line(line)}", markup=False, soft_wrap=True)
    if dry_run or plan.is_empty:
        return None
    if not yes:
        if not sys.stdin.isatty():
            raise SettingsError("a repair needs a yes", hint="add --yes, or --dry-run to look only")
        typer.confirm("Do this?", abort=True)
    with progress_bar() as bar:
        done = work.run(plan, Steps(bar).tell)
    console.print(f"repaired: {len(done.sent)} dead letters sent, {len(done.deleted)} dead objects deleted, {len(done.failed)} failed", markup=False)
    for place, why in done.failed.items():
        console.print(f"  {one_line(place)}: {one_line(why)}", markup=False, soft_wrap=True)
    return done


def _print(report: AuditReport, limit: int) -> None:
    console = output()
    console.print(partition_table(report))
    found = findings_table(report, limit)
    if found is not None:
        console.print(found)
    for line in advice(report):
        console.print(line, markup=False, soft_wrap=True)


def _finish(report: AuditReport, plan: RepairPlan | None, done: RepairReport | None, as_document: bool, limit: int | None) -> None:
    """The last line or the whole document, and the exit code."""
    if as_document:
        print_json(as_json(report, plan, done))
    else:
        if limit is not None:
            _print(report, limit)
        output().print(verdict_line(report, done), soft_wrap=True)
    if code := exit_code(report, done):
        raise typer.Exit(code)
