"""`headwater search`: questions in, hits out.

Takes: queries. Gives: hits of a running query service. Owns: what is shown of them.
Never: embeds anything in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from contracts import canonical_json
from contracts.errors import SettingsError
from contracts.settings import load_settings
from headwater.client import HeadwaterClient, Hit, SearchAnswer
from headwater.console import cell, notes, output, print_json

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add `search` to the command line."""
    app.command("search")(search)


def search(
    collection: Annotated[str, typer.Argument(help="Which collection.")],
    text: Annotated[str | None, typer.Argument(help="What to search for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Search by this picture, alone or with the text.")] = None,
    condition: Annotated[
        str | None,
        typer.Option("--filter", help='JSON, such as {"must": [{"key": "category", "match": {"value": "animals"}}]}; see docs/filters.md.'),
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
