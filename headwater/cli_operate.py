"""`headwater pause`, `resume`, `skip`, `reset`: what an operator does to a collection while its workers run.

Takes: an operator's words. Gives: a change in the collection's record, in its chain of batches, or another index.
Owns: how it is told, and asked for.
Never: needs a worker to be stopped, or gives anything up without a yes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from backends.catalog.collections import CollectionCatalog
from backends.catalog.indexes import add_index, switch_index
from contracts.attributes import parse_time
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import SettingsError, SnapshotError
from contracts.settings import load_settings
from headwater.console import output, print_json, progress_bar
from headwater.wiring import open_engines
from indexer.reset import PlannedReset, catch_up, earliest_offsets, offsets_for_time, plan_reset
from indexer.skip import SkippedOffsets, plan_skip, skip

RETRIES = 5
WAIT_SECONDS = 1.0
Collection = Annotated[str, typer.Argument(help="Which collection.")]
Partition = Annotated[int | None, typer.Option("--partition", "-p", min=0, help="This partition only; all of them by default.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("skip")(skip_records)
    app.command("reset")(reset)


def chosen_partitions(record: CollectionRecord, partition: int | None) -> list[int]:
    """The partition that was named, or all; SettingsError where there is no such partition."""
    if partition is not None and partition >= record.partitions:
        raise SettingsError(f"{record.name} has no partition {partition}", hint=f"its partitions are 0 to {record.partitions - 1}")
    return list(range(record.partitions)) if partition is None else [partition]


def target_offsets(engines: Engines, record: CollectionRecord, partition: int | None, to: str, from_archive: bool = False) -> dict[int, int]:
    """Offset of each chosen partition that `to` means: an offset, an RFC 3339 time, ``earliest`` or ``latest``; of the archive, too, if it counts.

    Raises
    ------
    SettingsError
        It is none of these, or an offset for several partitions.
    """
    partitions = chosen_partitions(record, partition)
    if to == "earliest":
        earliest = earliest_offsets(engines, record, from_archive)
        return {p: earliest[p] for p in partitions}
    if to == "latest":
        bounds = engines.log.bounds(record.source_topic)
        return {p: bounds[p].next_offset for p in partitions}
    if to.isdecimal():
        if len(partitions) > 1:
            raise SettingsError(f"offset {to[:20]} means another record in each of {len(partitions)} partitions", hint="add --partition")
        return {partitions[0]: int(to)}
    try:
        found = offsets_for_time(engines, record, parse_time(to) // 1000, from_archive)
    except ValueError as error:
        raise SettingsError(f"{to[:40]!r} is no offset: {error}", hint="write an offset, an RFC 3339 time, earliest or latest") from None
    return {p: found[p] for p in partitions}


def confirm(question: str, yes: bool) -> None:
    """Ask, unless the command line said yes; SettingsError where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise SettingsError("this needs a yes", hint="add --yes")
    typer.confirm(question, abort=True)


# ---- pause and resume --------------------------------------------------------------------------------------------------


def pause(collection: Collection, partition: Partition = None, as_json: AsJson = False) -> None:
    """Stop embedding until `resume`: nothing is lost, queries and the archive go on, workers notice within seconds."""
    _change(collection, partition, lambda paused, named: paused | named, as_json)


def resume(collection: Collection, partition: Partition = None, as_json: AsJson = False) -> None:
    """Go on where `pause` stopped."""
    _change(collection, partition, lambda paused, named: paused - named, as_json)


def _change(name: str, partition: int | None, change: Callable[[set[int], set[int]], set[int]], as_json: bool) -> None:
    with open_engines(load_settings()) as engines:
        record = _changed(CollectionCatalog(engines.store), name, partition, change)
    if as_json:
        print_json({"collection": record.name, "version": record.version, "paused_partitions": record.paused_partitions})
        return
    output().print(f"{record.name}: {_paused(record)}", soft_wrap=True)


def _changed(
    catalog: CollectionCatalog, name: str, partition: int | None, change: Callable[[set[int], set[int]], set[int]], attempts: int = RETRIES
) -> CollectionRecord:
    """Write the record anew, again on top of what others wrote meanwhile; the present one where nothing changes."""
    record = catalog.get(name)
    paused = tuple(sorted(change(set(record.paused_partitions), set(chosen_partitions(record, partition)))))
    if paused == record.paused_partitions:
        return record
    try:
        return catalog.update(record, paused_partitions=paused)
    except SnapshotError:
        if attempts <= 1:
            raise
        return _changed(catalog, name, partition, change, attempts - 1)


def _paused(record: CollectionRecord) -> str:
    if not record.paused_partitions:
        return "no partition is paused"
    if len(record.paused_partitions) == record.partitions:
        return f"all {record.partitions} partitions are paused; `headwater resume {record.name}` goes on"
    return f"paused partitions: {', '.join(map(str, record.paused_partitions))}; `headwater resume {record.name}` goes on"


# ---- skip --------------------------------------------------------------------------------------------------------------


def skip_records(
    collection: Collection,
    to: Annotated[str, typer.Option("--to", help="Go on here: an offset (with --partition), an RFC 3339 time, earliest (what is left) or latest.")],
    partition: Partition = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give up records that were not embedded, forwards to an offset or time; their verdict is `lost`, for good."""
    with open_engines(load_settings()) as engines:
        record = CollectionCatalog(engines.store).get(collection)
        planned = plan_skip(engines, record, target_offsets(engines, record, partition, to))
        if not planned:
            _nothing_to_skip(record, as_json)
            return
        if not as_json:
            _print_skips("to be given up, never to be found in this collection", planned)
        confirm(f"Give up {sum(one.count for one in planned)} offsets of {record.name!r} for good?", yes)
        done = [one for one in (skip(engines, record, one) for one in planned) if one is not None]
    if as_json:
        print_json({"collection": record.name, "skipped": [_as_json(one) for one in done]})
        return
    if done != planned:
        _print_skips("given up (workers embedded the rest meanwhile)", done)
    output().print(f"{record.name}: {sum(one.count for one in done)} offsets are lost; embedding goes on behind them", soft_wrap=True)


def _nothing_to_skip(record: CollectionRecord, as_json: bool) -> None:
    if as_json:
        print_json({"collection": record.name, "skipped": []})
        return
    output().print(f"{record.name}: nothing to give up, embedding is past that; `headwater reset` goes backwards", soft_wrap=True)


def _as_json(one: SkippedOffsets) -> Mapping[str, Any]:
    return {**asdict(one), "count": one.count}


def _print_skips(title: str, skips: Sequence[SkippedOffsets]) -> None:
    table = Table("index", "partition", "offsets", "count", "still in the topic", title=title, title_justify="left")
    for one in skips:
        table.add_row(one.index, str(one.partition), f"{one.start_offset}..{one.next_offset}", str(one.count), str(one.in_log))
    output().print(table)


# ---- reset -------------------------------------------------------------------------------------------------------------


def reset(
    collection: Collection,
    to: Annotated[str, typer.Option("--to", help="Begin here: an offset (with --partition), an RFC 3339 time, or earliest (what is left).")],
    partition: Partition = None,
    from_archive: Annotated[
        bool, typer.Option("--from-archive", help="Begin before the media topic does: what it holds no longer comes from the archive.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until the new index has caught up, and switch to it; else `collection switch` does.")] = True,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Embed records again, backwards from an offset or time: in a new index, which answers once it has caught up with the old one."""
    with open_engines(load_settings()) as engines:
        record = CollectionCatalog(engines.store).get(collection)
        planned = plan_reset(engines, record, target_offsets(engines, record, partition, to, from_archive), from_archive)
        if not as_json:
            _print_reset(record, planned)
        confirm(f"Build another index of {record.name!r} from there?", yes)
        begun = add_index(engines, record, {one.partition: one.origin_offset for one in planned})
        name = begun.indexes[-1].name
        newest = _switched_when_ready(engines, begun, name) if wait else begun
    if as_json:
        print_json({"collection": record.name, "index": name, "active_index": newest.active_index, "partitions": [asdict(one) for one in planned]})
        return
    if not wait:
        output().print(
            f"{record.name}: index {name} is being built; `headwater collection switch {record.name} {name}` once it is there", soft_wrap=True
        )
        return
    output().print(
        f"{record.name}: index {name} answers now; the old one is kept up to date, and `headwater collection switch {record.name} "
        f"{record.active_index}` goes back, until `headwater collection drop-index {record.name} {record.active_index}` ends it",
        soft_wrap=True,
    )


def _print_reset(record: CollectionRecord, planned: Sequence[PlannedReset]) -> None:
    columns = ("partition", "from offset", "embedded to", "to embed again", "of them archived", "rows that may be left out")
    table = Table(*columns, title="new index", title_justify="left")
    for one in planned:
        again = one.embedded_offset - one.origin_offset
        table.add_row(*map(str, (one.partition, one.origin_offset, one.embedded_offset, again, one.archived_offsets, one.left_out_rows)))
    output().print(table)
    if any(one.left_out_rows for one in planned):
        output().print(
            f"items of {record.name} that were sent before these offsets, and not again since, will not be in the new index", soft_wrap=True
        )


def _switched_when_ready(engines: Engines, record: CollectionRecord, name: str) -> CollectionRecord:
    """Wait for the workers; Ctrl-C leaves the index being built, and the old one answering."""
    with progress_bar() as bar:
        task = bar.add_task("embedding again", total=None, note="")
        while not (found := catch_up(engines, record, name)).is_complete:
            bar.update(task, completed=found.done, total=found.total)
            time.sleep(WAIT_SECONDS)
    return switch_index(engines, CollectionCatalog(engines.store).get(record.name), name)
