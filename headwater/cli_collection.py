"""`headwater collection ...`: create, list, describe, switch, drop-index, delete.

Takes: an operator's words. Gives: collections, and what is known of them. Owns: how options are spelled. Never: waits for a role.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import Annotated, Any

import typer
from rich.table import Table

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from backends.catalog.collections import CollectionCatalog
from backends.catalog.indexes import drop_index, named_index, switch_index
from backends.catalog.manifests import ManifestChain
from contracts.attributes import TYPE_PATTERN
from contracts.collection import CollectionRecord, FieldRecord
from contracts.engines import Engines
from contracts.errors import HeadwaterError, SettingsError
from contracts.object_keys import CollectionKeys
from contracts.settings import Settings, load_settings
from headwater.archive_report import archive_rows, archive_table
from headwater.console import output, print_json
from headwater.wiring import encoder_fields, open_engines, vector_field
from indexer.item_verdicts import committed_rejects
from indexer.partition_source import PartitionSource, chain_end
from indexer.reset import catch_up

collection_app = typer.Typer(help="Create, list, describe and delete collections.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_COLUMNS = ("embedded_offset", "committed_offset", "behind", "segments", "rows", "manifest")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@collection_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="1 to 63 letters, digits, _ and -.")],
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of the media topic, where the collection owns it.")] = 4,
    source_topic: Annotated[str | None, typer.Option(help="Index this existing topic instead of an own one.")] = None,
    start: Annotated[str, typer.Option(help="Where to begin: earliest, latest, or an RFC 3339 time.")] = "earliest",
    id_from: Annotated[str, typer.Option(help="Where ids come from: key, header:NAME or json:PATH.")] = "key",
    partitioner: Annotated[str, typer.Option(help="Who puts ids into partitions: producer, murmur2 or crc32.")] = "producer",
    retention: Annotated[str | None, typer.Option(help="Items expire this long after their time, such as 90d; never by default.")] = None,
    attribute: Annotated[list[str] | None, typer.Option(help="A typed attribute, NAME:TYPE (keyword, integer, datetime, keyword[], ...).")] = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder of pictures and text; lite, unless only --vector is given.")] = None,
    fields: Annotated[str, typer.Option(help="What the encoder's fields hold.")] = "image,text,fused",
    vector: Annotated[list[str] | None, typer.Option(help="A field of own vectors, NAME:DIMENSION[:METRIC[:DTYPE]].")] = None,
    on_reject: Annotated[str, typer.Option(help="What a rejected update does to the id's older row: keep or remove.")] = "keep",
    on_partial: Annotated[str, typer.Option(help="What becomes of an item of which one part is bad: keep the rest, or reject.")] = "keep",
    notifications: Annotated[bool, typer.Option(help="The source topic carries bucket notifications of S3 or MinIO.")] = False,
    codec: Annotated[
        str,
        typer.Option(help="How vectors are stored: auto, flat, or ivf_pq<M>x8+sq8 (or +float16) with codes of M bytes; flat until it is trained."),
    ] = "auto",
    archive: Annotated[str, typer.Option(help="on, or off to archive the records without their media, where those live elsewhere.")] = "on",
    as_json: AsJson = False,
) -> None:
    """Create a collection, with its topics."""
    settings = load_settings()
    request = CollectionRequest(
        name=name,
        fields=_fields(encoder, fields, vector or [], settings),
        partitions=partitions,
        source_topic=source_topic,
        start=start,
        id_from=id_from,
        partitioner=partitioner,
        retention_seconds=None if retention is None else seconds(retention),
        attributes=dict(_attribute(text) for text in attribute or []),
        on_reject=on_reject,
        on_partial=on_partial,
        notifications=notifications,
        archive=archive,
        codec=codec,
    )
    with open_engines(settings) as engines:
        record = create_collection(engines, request)
    if as_json:
        print_json(record.model_dump(mode="json"))
        return
    names = ", ".join(field.name for field in record.index().fields)
    output().print(f"created {record.name}: {record.partitions} partitions, fields {names}, media topic {record.source_topic}", soft_wrap=True)


def _fields(encoder: str | None, sources: str, vectors: list[str], settings: Settings) -> list[FieldRecord]:
    own = [vector_field(text) for text in vectors]
    if encoder is None and own:
        return own
    found = encoder_fields(encoder or "lite", [part.strip() for part in sources.split(",") if part.strip()], settings) + own
    names = [field.name for field in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"two fields are named {', '.join(twice)}", hint="give the own vectors another name")
    return found


def _attribute(text: str) -> tuple[str, str]:
    name, separator, kind = text.partition(":")
    if not separator or not TYPE_PATTERN.match(kind):
        raise SettingsError(
            f"attribute {text[:80]!r} is not valid",
            hint="write NAME:TYPE, with a type out of keyword, bool, integer, float, datetime, geo, text, each also as TYPE[]",
        )
    return name, kind


def seconds(text: str) -> int:
    """Seconds of a duration such as ``90d``, ``12h`` or ``30m``; SettingsError where it is none."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhdw])", text.strip())
    if not match:
        raise SettingsError(f"duration {text[:40]!r} is not valid", hint="write a number and s, m, h, d or w, such as 90d")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


@collection_app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the collections."""
    with open_engines(load_settings()) as engines:
        records = CollectionCatalog(engines.store).list()
    if as_json:
        print_json([record.model_dump(mode="json") for record in records])
        return
    table = Table("name", "partitions", "fields", "media topic", "created")
    for record in records:
        table.add_row(
            record.name, str(record.partitions), ", ".join(f.name for f in record.index().fields), record.source_topic, record.created_at[:19]
        )
    output().print(table if records else "no collections; `headwater collection create NAME` makes one")


@collection_app.command("describe")
def describe(name: Annotated[str, typer.Argument(help="Which collection.")], as_json: AsJson = False) -> None:
    """Show a collection: its fields, and where each partition stands."""
    with open_engines(load_settings()) as engines:
        record = CollectionCatalog(engines.store).get(name)
        rows = partition_rows(engines, record)
        rejected = rejected_items(engines, record)
        archive = archive_rows(engines, record)
        others = {index.name: catch_up(engines, record, index.name) for index in record.indexes if index.name != record.active_index}
    if as_json:
        told = {
            "collection": record.model_dump(mode="json"),
            "partitions": rows,
            "rejected_items": dict(sorted(rejected.items())),
            "archive": archive,
            "other_indexes": {other: {"done": found.done, "total": found.total} for other, found in others.items()},
        }
        print_json(told)
        return
    console = output()
    index = record.index()
    console.print(f"{record.name}  incarnation {record.incarnation}, created {record.created_at}", soft_wrap=True)
    console.print(
        f"media topic {record.source_topic} ({'own' if record.owns_source_topic else 'existing'}), start {record.start}, ids from {record.id_from}, "
        f"partitioner {record.partitioner}, on reject {record.on_reject}, on partial {record.on_partial}, codec {index.codec}"
        + (", bucket notifications" if record.notifications else ""),
        soft_wrap=True,
    )
    fields = Table("field", "holds", "encoder", "dimension", "metric", "space")
    for field in index.fields:
        fields.add_row(field.name, field.source, field.encoder or "-", str(field.dimension), field.metric, field.space_id)
    console.print(fields)
    table = Table("partition", "media log", "embedded to", "committed to", "behind", "segments", "stored rows", "manifest")
    for row in rows:
        log = f"{row['start_offset']}..{row['next_offset']}"
        table.add_row(str(row["partition"]), log, *(str(row[name]) for name in _COLUMNS))
    console.print(table)
    for other, found in others.items():
        console.print(f"index {other}, which does not answer: {found.done} of {found.total} offsets embedded", soft_wrap=True)
    if record.paused_partitions:
        console.print(f"paused partitions: {', '.join(map(str, record.paused_partitions))}; `headwater resume {name}` goes on", soft_wrap=True)
    reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
    console.print(f"rejected items so far: {reasons or 'none'}", soft_wrap=True)
    if rejected:
        console.print(f"`headwater dead-letter list {record.name}` shows which are still dead", soft_wrap=True)
    console.print(archive_table(record, archive))


def rejected_items(engines: Engines, record: CollectionRecord) -> Counter[str]:
    """Committed items of the active index that were rejected, or of which a part was, by reason."""
    index = CollectionKeys(record.name, record.incarnation).index(record.active_index)
    counts: Counter[str] = Counter()
    for partition in range(record.partitions):
        read = ManifestChain(engines.store, index.partition(partition)).head()
        counts += Counter() if read is None else committed_rejects(engines.store, read.manifest)
    return counts


def partition_rows(engines: Engines, record: CollectionRecord) -> list[dict[str, Any]]:
    """Where each partition of the active index stands: offsets of the media log, the chain's end, the committed checkpoint, segments and rows."""
    bounds = engines.log.bounds(record.source_topic)
    index = CollectionKeys(record.name, record.incarnation).index(record.active_index)
    rows = []
    for partition in range(record.partitions):
        read = ManifestChain(engines.store, index.partition(partition)).head()
        held = bounds[partition]
        source = PartitionSource(engines, record, record.index(), partition)
        committed = held.start_offset if read is None else read.manifest.checkpoint.media_offset
        rows.append(
            {
                "partition": partition,
                "start_offset": held.start_offset,
                "next_offset": held.next_offset,
                "embedded_offset": None if read is None else _embedded_offset(source),
                "committed_offset": committed,
                "paused": partition in record.paused_partitions,
                "behind": max(0, held.next_offset - committed),
                "segments": 0 if read is None else len(read.manifest.segments),
                "rows": 0 if read is None else read.manifest.rows,
                "manifest": 0 if read is None else read.manifest.version,
                "generation": {} if read is None else read.manifest.generation,
            }
        )
    return rows


def _embedded_offset(source: PartitionSource) -> int | None:
    """First media offset that is not embedded; None where the chain cannot be read now (`doctor` says why)."""
    try:
        return chain_end(source).chain.expected
    except HeadwaterError:
        return None


@collection_app.command("switch")
def switch(
    name: Annotated[str, typer.Argument(help="Which collection.")],
    index: Annotated[str, typer.Argument(help="The index that is to answer.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Also where it has not caught up: answers are then older than before.")] = False,
) -> None:
    """Have another index of the collection answer, such as one that `reset` began; going back is the same."""
    with open_engines(load_settings()) as engines:
        record = CollectionCatalog(engines.store).get(name)
        named_index(record, index)
        found = catch_up(engines, record, index)
        if not found.is_complete and not anyway:
            raise SettingsError(f"index {index} has embedded {found.done} of {found.total} offsets", hint="wait, or add --anyway")
        record = switch_index(engines, record, index)
    output().print(f"{record.name}: index {record.active_index} answers, on every query node once it is loaded there", soft_wrap=True)


@collection_app.command("drop-index")
def drop(
    name: Annotated[str, typer.Argument(help="Which collection.")],
    index: Annotated[str, typer.Argument(help="An index that does not answer.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End an index that does not answer: no worker embeds for it any more, and its topic is deleted."""
    with open_engines(load_settings()) as engines:
        record = CollectionCatalog(engines.store).get(name)
        named_index(record, index)
        if not yes:
            if not sys.stdin.isatty():
                raise SettingsError(f"dropping index {index!r} of {name!r} needs a yes", hint="add --yes")
            typer.confirm(f"Drop index {index!r} of {name!r} and its topic?", abort=True)
        record = drop_index(engines, record, index)
    output().print(f"{record.name}: index {index} is dropped")


@collection_app.command("delete")
def delete(
    name: Annotated[str, typer.Argument(help="Which collection.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a collection and the topics that it owns; a topic named by --source-topic stays."""
    with open_engines(load_settings()) as engines:
        record = CollectionCatalog(engines.store).get(name)
        if not yes:
            if not sys.stdin.isatty():
                raise SettingsError(f"deleting {name!r} needs a yes", hint="add --yes")
            typer.confirm(f"Delete collection {name!r} and its topics?", abort=True)
        delete_collection(engines, record.name)
    output().print(f"deleted {record.name}")
