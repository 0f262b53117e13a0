"""`headwater ingest` and `headwater search`: media in, hits out.

Takes: paths, queries. Gives: records on the media topic, hits of a running query service. Owns: what is shown of both.
Never: embeds anything in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from backends.catalog.collections import CollectionCatalog
from contracts import canonical_json
from contracts.errors import SettingsError
from contracts.settings import load_settings
from headwater.client import HeadwaterClient, Hit, SearchAnswer
from headwater.console import cell, megabytes, notes, one_line, output, print_json, progress_bar
from headwater.logging_setup import set_up_logging
from headwater.wiring import open_engines
from ingest.ingest_run import IngestReport, ingest_files, skipped_summary
from ingest.producer import MediaProducer
from ingest.sources import find_files

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add `ingest` and `search` to the command line."""
    app.command("ingest")(ingest)
    app.command("search")(search)


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Folders of pictures, and single files.")],
    collection: Annotated[str, typer.Option("--collection", "-c", help="Which collection.")],
    captions: Annotated[
        Path | None, typer.Option(help="CSV with the columns file, caption, and attributes; else each folder's captions.csv.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put pictures on a collection's media topic; exit code 1 where some were left out."""
    settings = load_settings()
    set_up_logging(settings)
    found = find_files(paths, captions)
    with open_engines(settings) as engines:
        record = CollectionCatalog(engines.store).get(collection)
        with progress_bar() as bar, MediaProducer(engines.log, record, settings, bulk=True, store=engines.store) as producer:
            task = bar.add_task("producing", total=len(found.files), note="")

            def show(report: IngestReport) -> None:
                bar.update(task, completed=report.records + len(report.skipped) - len(found.skipped), note=megabytes(report.size_bytes))

            report = ingest_files(found, producer, show)
    _show_report(report, collection, as_json)
    if report.skipped:
        raise typer.Exit(1)


def _show_report(report: IngestReport, collection: str, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "collection": collection,
                "records": report.records,
                "size_bytes": report.size_bytes,
                "skipped": [{"name": file.name, "reason": file.reason} for file in report.skipped],
                "unused_rows": [{"name": row.name, "reason": row.reason} for row in report.unused_rows],
                "other_files": report.other_files,
                "next_offsets": report.next_offsets,
            }
        )
        return
    others = f"; {report.other_files} other files were no pictures" if report.other_files else ""
    output().print(f"{report.records} records, {megabytes(report.size_bytes)} on the media topic of {collection}{others}", soft_wrap=True)
    for word, files in (("warning", report.unused_rows), ("skipped", report.skipped)):
        for line in skipped_summary(files):
            notes().print(f"{word} {one_line(line)}", soft_wrap=True, markup=False)


def search(
    collection: Annotated[str, typer.Argument(help="Which collection.")],
    text: Annotated[str | None, typer.Argument(help="What to search for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Search by this picture, alone or with the text.")] = None,
    condition: Annotated[
        str | None, typer.Option("--filter", help='JSON, such as {"must": [{"key": "category", "match": {"value": "animals"}}]}.')
    ] = None,
    limit: Annotated[int, typer.Option("-k", "--limit", min=1, help="Most hits.")] = 10,
    using: Annotated[str | None, typer.Option(help="Vector field to search.")] = None,
    url: Annotated[str | None, typer.Option(help="The query service; by default the one on this machine.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search through a running query service."""
    settings = load_settings()
    with HeadwaterClient(url or f"http://{settings.query_host}:{settings.query_port}") as client:
        answer = client.search(collection, text, image=image, using=using, limit=limit, filter=None if condition is None else _filter(condition))
    if as_json:
        print_json(_as_json(answer))
        return
    output().print(hits_table(answer.hits))
    stale = "" if answer.freshness.staleness_ms is None else f", {answer.freshness.staleness_ms:.0f} ms behind the log"
    notes().print(f"{len(answer.hits)} hits in {answer.service_seconds * 1000:.1f} ms{stale}", soft_wrap=True)


def _filter(text: str) -> dict[str, Any]:
    try:
        found = canonical_json.load(text)
    except ValueError as error:
        raise SettingsError(
            f"--filter is not JSON: {error}", hint='write it as \'{"must": [{"key": "category", "match": {"value": "animals"}}]}\''
        ) from None
    if not isinstance(found, dict):
        raise SettingsError("--filter is not a JSON object", hint='begin with {"must": [...]}')
    return found


def hits_table(hits: Sequence[Hit]) -> Table:
    """Table of hits: score, id and payload."""
    table = Table("score", "id", "payload")
    for hit in hits:
        payload = ", ".join(f"{name}: {value}" for name, value in hit.payload.items() if value is not None)
        table.add_row("" if hit.score is None else f"{hit.score:.3f}", cell(hit.id), cell(payload[:100]))
    return table


def _as_json(answer: SearchAnswer) -> dict[str, Any]:
    freshness = answer.freshness
    return {
        "points": [_hit_json(hit) for hit in answer.hits],
        "freshness": {
            "offsets": freshness.offsets,
            "versions": freshness.versions,
            "staleness_ms": freshness.staleness_ms,
            "coverage": freshness.coverage,
        },
        "time": answer.service_seconds,
    }


def _hit_json(hit: Hit) -> dict[str, Any]:
    return {"id": hit.id, "score": hit.score, "payload": dict(hit.payload), "lineage": hit.lineage}
