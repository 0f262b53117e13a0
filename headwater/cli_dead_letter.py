"""`headwater dead-letter ...`: what was rejected, why, whether it is still dead, and its way back.

Takes: an operator's words. Gives: tables, the original bytes, records on the media topic. Owns: how dead letters are named and shown.
Never: replays without a yes.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from backends.catalog.collections import CollectionCatalog
from contracts.attributes import MAX_TIME_US, parse_time
from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError, SettingsError
from contracts.log import LogRecord
from contracts.settings import load_settings
from headwater.cli_collection import seconds
from headwater.console import cell, megabytes, notes, one_line, output, print_json, progress_bar
from headwater.wiring import open_engines
from indexer.dead_letter_states import STATES, LetterFilter, ListedLetter, list_letters
from indexer.dead_letter_topic import read_original
from indexer.replay import ReplayPlan, ReplayReport, plan_replay, replay

dead_letter_app = typer.Typer(help="List, show and replay records that could not be indexed.", no_args_is_help=True)
HEAD_BYTES = 64
Collection = Annotated[str, typer.Argument(help="Which collection.")]
Reasons = Annotated[list[str] | None, typer.Option("--reason", help="Rejected for this reason; repeat for more.")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="With this id; repeat for more.")]
Partition = Annotated[int | None, typer.Option(min=0, help="In this partition.")]
Since = Annotated[str | None, typer.Option(help="Written since then: a duration such as 2h or 7d, or an RFC 3339 time.")]
Index = Annotated[str | None, typer.Option(help="Of this index; the active one by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _filter(
    reasons: list[str] | None, ids: list[str] | None, partition: int | None, since: str | None, places: list[str] | None = None
) -> LetterFilter:
    return LetterFilter(
        frozenset(reasons or ()), frozenset(ids or ()), partition, None if since is None else _since_ms(since), frozenset(map(_place, places or ()))
    )


def _since_ms(text: str) -> int:
    try:
        return parse_time(text) // 1000
    except ValueError:
        return int((datetime.now(UTC).timestamp() - seconds(text)) * 1000)


def _place(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,18})", text)
    if not match:
        raise SettingsError(
            f"{text[:40]!r} is no record of the media topic", hint="write PARTITION/OFFSET, such as 0/42, as `dead-letter list` shows it"
        )
    return int(match[1]), int(match[2])


@contextmanager
def _opened(collection: str, index: str | None) -> Iterator[tuple[Engines, CollectionRecord, IndexRecord]]:
    with open_engines(load_settings()) as engines:
        record = CollectionCatalog(engines.store).get(collection)
        found = next((one for one in record.indexes if one.name == (index or record.active_index)), None)
        if found is None:
            raise NotFoundError(f"collection {collection!r} has no index {index!r}", hint=f"it has {', '.join(one.name for one in record.indexes)}")
        yield engines, record, found


def _read(engines: Engines, record: CollectionRecord, index: IndexRecord, wanted: LetterFilter) -> list[ListedLetter]:
    bounds = engines.log.bounds(record.dead_letter_topic)
    total = sum(bounds[partition].next_offset - bounds[partition].start_offset for partition in wanted.partitions(record))
    with progress_bar() as bar:
        task = bar.add_task("reading dead letters", total=total, note="")

        def show(read: int) -> None:
            bar.update(task, completed=read)

        return list_letters(engines, record, index, wanted, show)


# ---- list ------------------------------------------------------------------------------------------------------------


@dead_letter_app.command("list")
def list_all(
    collection: Collection,
    reason: Reasons = None,
    item_id: Ids = None,
    partition: Partition = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=0, help="Most rows to show, the newest; the counts are of all.")] = 20,
    index: Index = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first, with counts by reason, and which are still dead."""
    with _opened(collection, index) as (engines, record, found):
        listed = _read(engines, record, found, _filter(reason, item_id, partition, since))
    newest = sorted(listed, key=lambda one: (-one.summary.letter.written_ms, one.place))[:limit]
    counts = reason_counts(listed)
    if as_json:
        print_json({"collection": record.name, "count": len(listed), "reasons": counts, "dead_letters": [_as_json(one) for one in newest]})
        return
    if not listed:
        output().print("no dead letters")
        return
    output().print(_counts_table(counts))
    if newest:
        output().print(_letters_table(newest))
    if len(newest) < len(listed):
        notes().print(f"{len(listed) - len(newest)} older ones are not shown; --limit shows more", soft_wrap=True)


def reason_counts(listed: Sequence[ListedLetter]) -> dict[str, dict[str, int]]:
    """Dead letters by reason and state; one with two reasons counts for both."""
    counts: dict[str, Counter[str]] = {}
    for one in listed:
        for reason in one.summary.letter.reasons:
            counts.setdefault(reason, Counter())[one.state] += 1
    return {reason: {state: counts[reason][state] for state in STATES if counts[reason][state]} for reason in sorted(counts)}


def _counts_table(counts: dict[str, dict[str, int]]) -> Table:
    shown = [state for state in STATES if any(state in by_state for by_state in counts.values())]
    table = Table("reason", "dead letters", *shown)
    for reason, by_state in counts.items():
        table.add_row(cell(reason), str(sum(by_state.values())), *(str(by_state.get(state, 0)) for state in shown))
    return table


def _letters_table(listed: Sequence[ListedLetter]) -> Table:
    table = Table("record", "state", "written", "reason", "items", "id", "bytes", "what is wrong")
    for one in listed:
        letter = one.summary.letter
        ids = [item_id for item_id in one.summary.ids.values() if item_id is not None]
        more = f" +{len(ids) - 1}" if len(ids) > 1 else ""
        state = f"{one.state}, too old" if one.is_too_old and one.dead_items else one.state
        table.add_row(
            f"{letter.partition}/{letter.offset}",
            state,
            _time(letter.written_ms),
            cell(",".join(letter.reasons)),
            str(letter.items),
            cell((ids[0][:40] if ids else "-") + more),
            str(letter.size_bytes),
            cell(letter.message[:80]),
        )
    return table


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(min(max(0, milliseconds), MAX_TIME_US // 1000) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _as_json(one: ListedLetter) -> dict[str, Any]:
    summary, letter = one.summary, one.summary.letter
    return {
        "partition": letter.partition,
        "offset": letter.offset,
        "state": one.state,
        "reasons": letter.reasons,
        "message": letter.message,
        "items": {str(item): state for item, state in one.states.items()},
        "ids": {str(item): item_id for item, item_id in summary.ids.items()},
        "is_partial": letter.is_partial,
        "is_too_old": one.is_too_old,
        "origin_offset": None if summary.origin is None else summary.origin.offset,
        "size_bytes": letter.size_bytes,
        "value_sha256": summary.value_sha256,
        "written_ms": letter.written_ms,
        "timestamp_ms": letter.timestamp_ms,
        "copies": summary.copies,
        "dead_letter_offset": letter.stored_offset,
    }


# ---- show ------------------------------------------------------------------------------------------------------------


@dead_letter_app.command("show")
def show(
    collection: Collection,
    place: Annotated[str, typer.Argument(help="PARTITION/OFFSET of the record in the media topic, as `list` shows it.")],
    out: Annotated[Path | None, typer.Option(help="Write the original value to this new file.")] = None,
    index: Index = None,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: why, its headers, its size, sha256 and first bytes."""
    with _opened(collection, index) as (engines, record, found):
        listed = _read(engines, record, found, _filter(None, None, None, None, [place]))
        if not listed:
            raise NotFoundError(
                f"no dead letter of {place} in {collection}", hint="`headwater dead-letter list` shows them", code="dead_letter_not_found"
            )
        original = read_original(engines, record, listed[0].summary.letter)
    if as_json:
        print_json(_as_json(listed[0]) | _original_json(original))
    else:
        _print_letter(listed[0], original)
    if out is not None:
        _write(out, original)


def _original_json(original: LogRecord | None) -> dict[str, Any]:
    if original is None:
        return {"key": None, "headers": None, "value_head_hex": None}
    return {
        "key": None if original.key is None else original.key.decode("utf-8", "replace"),
        "headers": [[name, None if value is None else value.decode("utf-8", "replace")] for name, value in original.headers],
        "value_head_hex": None if original.value is None else original.value[:HEAD_BYTES].hex(),
    }


def _print_letter(one: ListedLetter, original: LogRecord | None) -> None:
    letter = one.summary.letter
    copies = f", {one.summary.copies} copies" if one.summary.copies > 1 else ""
    lines = [
        ("record", f"{letter.topic}/{letter.partition}/{letter.offset}, produced {_time(letter.timestamp_ms)}"),
        ("dead letter", f"offset {letter.stored_offset}{copies}, written {_time(letter.written_ms)}"),
        ("state", one.state + (", too old to be replayed" if one.is_too_old else "")),
        ("reason", ",".join(letter.reasons)),
        ("what is wrong", letter.message),
        ("items", str(letter.items)),
        ("ids", ", ".join(item_id for item_id in list(one.summary.ids.values())[:10] if item_id is not None) or "-"),
    ]
    if one.summary.origin is not None:
        lines.append(("replay of", f"{letter.partition}/{one.summary.origin.offset}"))
    if original is None:
        lines.append(("bytes", f"{letter.size_bytes}, which are not in the dead-letter topic and cannot be had from the media topic (any more)"))
    else:
        lines += [("key", "-" if original.key is None else original.key[:200].decode("utf-8", "replace"))]
        lines += [(f"header {name}", "null" if value is None else value[:200].decode("utf-8", "replace")) for name, value in original.headers]
        lines += [
            ("value", "null (a delete)" if original.value is None else f"{len(original.value)} bytes, sha256 {one.summary.value_sha256 or '-'}")
        ]
        lines += [("first bytes", f"{original.value[:HEAD_BYTES].hex(' ')}  {_printable(original.value[:HEAD_BYTES])}")] if original.value else []
    for name, text in lines:
        output().print(f"{one_line(name)}: {one_line(text)}", markup=False, soft_wrap=True)


def _printable(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def _write(out: Path, original: LogRecord | None) -> None:
    if original is None or original.value is None:
        raise SettingsError("the record has no bytes to write", hint="a delete has none, and too large ones live in the media topic alone")
    try:
        with out.open("xb") as file:
            file.write(original.value)
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}", hint="name a new file in a folder that you may write to") from None
    notes().print(f"wrote {len(original.value)} bytes to {out}", soft_wrap=True)


# ---- replay ----------------------------------------------------------------------------------------------------------


@dead_letter_app.command("replay")
def replay_letters(
    collection: Collection,
    places: Annotated[
        list[str] | None, typer.Argument(help="PARTITION/OFFSET of the records; all that the filters take where none is named.")
    ] = None,
    reason: Reasons = None,
    item_id: Ids = None,
    partition: Partition = None,
    since: Since = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most records to replay, the oldest first.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    index: Index = None,
    as_json: AsJson = False,
) -> None:
    """Produce rejected records again, once what was wrong is mended; whatever came since for the same ids wins."""
    with _opened(collection, index) as (engines, record, found):
        wanted = _filter(reason, item_id, partition, since, places)
        listed = _read(engines, record, found, wanted)
        missing = sorted(wanted.places - {one.place for one in listed})
        if missing:
            where = ", ".join(f"{p}/{o}" for p, o in missing[:5])
            raise NotFoundError(
                f"no dead letter of {where} in {collection}", hint="`headwater dead-letter list` shows them", code="dead_letter_not_found"
            )
        plan = plan_replay(listed, are_named=bool(places))
        plan = ReplayPlan(plan.letters[:limit], plan.left_out)
        if not as_json:
            _print_plan(plan, record)
        report = ReplayReport() if dry_run or not plan.letters or not _agreed(plan, record, yes) else _replay(engines, record, plan)
    if as_json:
        print_json(_report_json(plan, report, dry_run))
    elif report.replayed or report.failed:
        _print_report(report, collection)
    if report.failed:
        raise typer.Exit(1)


def _print_plan(plan: ReplayPlan, record: CollectionRecord) -> None:
    size = megabytes(sum(one.summary.letter.size_bytes for one in plan.letters))
    output().print(f"{len(plan.letters)} records to replay onto {record.source_topic}, {size}", soft_wrap=True)
    for reason, by_state in reason_counts(plan.letters).items():
        output().print(f"  {one_line(reason)}: {sum(by_state.values())}", markup=False, soft_wrap=True)
    for why, count in sorted(plan.left_out.items()):
        output().print(f"  left out, {why}: {count}", soft_wrap=True)


def _agreed(plan: ReplayPlan, record: CollectionRecord, yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise SettingsError(f"replaying {len(plan.letters)} records needs a yes", hint="add --yes, or --dry-run to look only")
    others = "" if record.owns_source_topic else " Other readers of the topic will see them again."
    return typer.confirm(f"Produce {len(plan.letters)} records to {record.source_topic}?{others}", abort=True)


def _replay(engines: Engines, record: CollectionRecord, plan: ReplayPlan) -> ReplayReport:
    with progress_bar() as bar:
        task = bar.add_task("replaying", total=len(plan.letters), note="")
        update: Callable[[int], None] = lambda done: bar.update(task, completed=done)  # noqa: E731
        return replay(engines, record, plan.letters, update)


def _print_report(report: ReplayReport, collection: str) -> None:
    output().print(f"{len(report.replayed)} records replayed; `headwater dead-letter list {collection}` shows what becomes of them", soft_wrap=True)
    for (partition, offset), why in list(report.failed.items())[:20]:
        notes().print(f"not replayed {partition}/{offset}: {one_line(why)}", markup=False, soft_wrap=True)
    if len(report.failed) > 20:
        notes().print(f"and {len(report.failed) - 20} more", soft_wrap=True)


def _report_json(plan: ReplayPlan, report: ReplayReport, dry_run: bool) -> dict[str, Any]:
    return {
        "planned": [f"{one.place[0]}/{one.place[1]}" for one in plan.letters],
        "left_out": dict(plan.left_out),
        "dry_run": dry_run,
        "replayed": {f"{p}/{o}": f"{at.partition}/{at.offset}" for (p, o), at in report.replayed.items()},
        "failed": {f"{p}/{o}": why for (p, o), why in report.failed.items()},
    }
