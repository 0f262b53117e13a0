"""Where a collection's archive stands, for `collection describe`.

Takes: engines, a collection. Gives: a row per partition, and a table of them. Owns: how it is shown. Never: changes anything.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from backends.catalog.archive import archive_chain
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from headwater.console import megabytes


def archive_rows(engines: Engines, record: CollectionRecord) -> list[dict[str, Any]]:
    """Per partition: archived offset, tars, records, bytes, and how many offsets retention took before they were archived."""
    bounds = engines.log.bounds(record.source_topic)
    rows = []
    for partition in range(record.partitions):
        read = archive_chain(engines.store, record, partition).head()
        held = bounds[partition]
        archived = held.start_offset if read is None else read.manifest.checkpoint.media_offset
        rows.append(
            {
                "partition": partition,
                "archived_offset": archived,
                "behind": max(0, held.next_offset - archived),
                "tars": 0 if read is None else len(read.manifest.tars),
                "records": 0 if read is None else read.manifest.records,
                "bytes": 0 if read is None else read.manifest.size_bytes,
                "lost": 0 if read is None else sum(run.next_offset - run.start_offset for run in read.manifest.lost),
                "manifest": 0 if read is None else read.manifest.version,
            }
        )
    return rows


def archive_table(record: CollectionRecord, rows: list[dict[str, Any]]) -> Table | str:
    """The rows as a table, or a sentence where nothing is archived."""
    if not any(row["manifest"] for row in rows):
        return "nothing is archived; `headwater run archive` does it"
    kept = "" if record.archive == "on" else ", without media"
    table = Table("partition", f"archived to{kept}", "behind", "tars", "records", "bytes", "lost", title="archive", title_justify="left")
    for row in rows:
        names = ("partition", "archived_offset", "behind", "tars", "records")
        table.add_row(*(str(row[name]) for name in names), megabytes(row["bytes"]), str(row["lost"]))
    return table
