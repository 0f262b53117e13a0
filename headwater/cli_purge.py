"""`headwater purge`: what is stored of some ids goes (privacy).

Takes: ids. Gives: what was found, what was removed, and where copies stay for how long. Owns: how that is said.
Never: claims that something is gone which is not.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from backends.catalog.collections import CollectionCatalog
from contracts.collection import CollectionRecord
from contracts.errors import RecordError, SettingsError
from contracts.log import Log
from contracts.settings import load_settings
from headwater.console import Steps, megabytes, notes, output, print_json, progress_bar
from headwater.logging_setup import set_up_logging
from headwater.wiring import open_engines
from indexer.purge import Findings, Purge, PurgeReport


def register(app: typer.Typer) -> None:
    """Add `purge` to the command line."""
    app.command("purge")(purge)


def purge(
    collection: Annotated[str, typer.Argument(help="Which collection.")],
    ids: Annotated[list[str], typer.Argument(help="Ids, all versions of which go.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look for what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Delete ids, and rewrite the archive's tars without their records (privacy); says what stays elsewhere, and until when."""
    settings = load_settings()
    set_up_logging(settings)
    with open_engines(settings) as engines:
        record = CollectionCatalog(engines.store).get(collection)
        with progress_bar() as bar:
            task = Steps(bar)
            try:
                work = Purge(engines, record, ids, task.tell)
            except RecordError as error:
                raise SettingsError(error.message) from None
            findings = work.find()
        if not record.owns_source_topic:
            notes().print(f"warning: {_others(record, len(work.ids))}", soft_wrap=True)
        if not dry_run:
            _ask(findings, len(work.ids), yes)
        with progress_bar() as bar:
            work.tell = Steps(bar).tell
            report = None if dry_run else work.run(findings)
        stays = _what_stays(engines.log, record, report)
    if as_json:
        print_json(_as_json(record, work.ids, findings, report, stays))
        return
    _print(findings, report, stays)


def _others(record: CollectionRecord, ids: int) -> str:
    """What the deletes are to whoever else uses the topic."""
    where = f"each of its {record.partitions} partitions" if record.partitioner == "producer" else "the id's partition"
    return (
        f"topic {record.source_topic} is not Headwater's own: {ids} ids are deleted there by a record without a value in {where}, "
        "which other readers of the topic see and may take for a delete too"
    )


def _ask(findings: Findings, ids: int, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise SettingsError("a purge cannot be undone and needs a yes", hint="add --yes, or --dry-run to look first")
    typer.confirm(f"Purge {ids} ids: {_found(findings)}?", abort=True)


def _found(findings: Findings) -> str:
    return (
        f"{sum(findings.archived.values())} archived records in {len(findings.tars)} tars "
        f"({megabytes(sum(tar.size_bytes for tar in findings.tars))}), {sum(findings.unarchived.values())} not archived yet, "
        f"{len(findings.claims)} payloads of their own"
    )


def _what_stays(log: Log, record: CollectionRecord, report: PurgeReport | None) -> list[str]:
    """Copies that a purge cannot take back at once, each with when it goes."""
    where = "" if report is None else f" (deletes at {', '.join(f'{p}/{offset}' for p, offset in sorted(report.deletes.items()))})"
    buckets = ["the objects in notified buckets, which belong to their owners; delete them there, or the next event about one brings its item back"]
    return [
        f"topic {record.source_topic} keeps the records until its retention ends ({_retention(log, record.source_topic)}); a picture can be asked "
        f"for until the delete is applied{where}",
        f"topic {record.dead_letter_topic} keeps copies of rejected records until its retention ends ({_retention(log, record.dead_letter_topic)})",
        "segments and vectors topics keep vectors, captions and attributes of the items, hidden by the deletes, until `headwater run maintain` has "
        "compacted them and its gc_seconds have passed",
        *(buckets if record.notifications else []),
    ]


def _retention(log: Log, topic: str) -> str:
    found = log.describe_topic(topic)
    text = None if found is None else found.config.get("retention.ms")
    if text is None:
        return "not known"
    return "never" if int(text) < 0 else f"{int(text) / 86_400_000:g} days"


def _as_json(record: CollectionRecord, ids: list[str], findings: Findings, report: PurgeReport | None, stays: list[str]) -> dict[str, Any]:
    return {
        "collection": record.name,
        "ids": ids,
        "found": {
            "archived_records": sum(findings.archived.values()),
            "tars": len(findings.tars),
            "tar_bytes": sum(tar.size_bytes for tar in findings.tars),
            "records_not_archived": sum(findings.unarchived.values()),
            "payloads": len(findings.claims),
        },
        "done": None if report is None else asdict(report),
        "stays": stays,
    }


def _print(findings: Findings, report: PurgeReport | None, stays: list[str]) -> None:
    console = output()
    console.print(f"found: {_found(findings)}", soft_wrap=True)
    if report is None:
        console.print("nothing was changed (--dry-run)")
    else:
        console.print(
            f"done: {report.tars_rewritten} tars rewritten ({megabytes(report.tar_bytes)}), {report.records_removed} records removed, "
            f"{report.records_emptied} emptied of single rows, {report.dead_tars_deleted} left-over tars deleted, "
            f"{report.claims_deleted} payloads deleted, {report.claims_kept} kept because other ids use them",
            soft_wrap=True,
        )
    for line in stays:
        console.print(f"stays: {line}", soft_wrap=True)
