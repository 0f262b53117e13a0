"""What the demo shows and checks: everyday queries, the category of their answers, and captions that find their own picture.

Takes: a client of the running service. Gives: tables, and a verdict. Owns: the thresholds of `demo --check`.
Never: reads vectors: all is judged by what the HTTP interface answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from headwater.client import HeadwaterClient, Hit
from headwater.console import cell, output
from headwater.demo_queries import DEMO_QUERIES
from ingest.folder_source import FileUnit

MIN_PRECISION_FUSED = 0.8
MIN_PRECISION_IMAGE = 0.5
MIN_RECALL_IMAGE = 0.28
"""What a correct build of `lite` reaches on the sample media with a margin (DESIGN section 6: 0.89, 0.59, 0.30); chance is 0.15, 0.15, 0.03."""

_PRECISION_AT = 5
_RECALL_AT = 10


@dataclass(frozen=True, slots=True)
class Quality:
    """Search quality on the sample media: mean precision@5 by category over the queries, and recall@10 of captions for their pictures."""

    precision_fused: float
    precision_image: float
    recall_image: float

    def failures(self) -> list[str]:
        """What is below its threshold, one line each."""
        rows = (
            ("precision@5 fused", self.precision_fused, MIN_PRECISION_FUSED),
            ("precision@5 image", self.precision_image, MIN_PRECISION_IMAGE),
            ("caption -> own picture recall@10 image", self.recall_image, MIN_RECALL_IMAGE),
        )
        return [f"{name} is {value:.3f}, less than {least}" for name, value, least in rows if not value >= least]


def show_searches(client: HeadwaterClient, collection: str) -> None:
    """Print the everyday queries with what they find."""
    table = Table("query", "best hits", "ms")
    for query, _ in DEMO_QUERIES:
        began = time.monotonic()
        hits = client.search(collection, text=query, using="fused", limit=3).hits
        table.add_row(query, cell(", ".join(hit.id for hit in hits)), f"{(time.monotonic() - began) * 1000:.0f}")
    output().print(table)


def check_quality(client: HeadwaterClient, collection: str, files: Sequence[FileUnit]) -> bool:
    """Measure and print search quality on the sample media; True where all thresholds are reached."""
    fused, image = _query_precisions(client, collection)
    quality = Quality(fused, image, caption_recall(client, collection, files))
    console = output()
    console.print(
        f"mean precision@5: fused {quality.precision_fused:.3f} (>= {MIN_PRECISION_FUSED}), image {quality.precision_image:.3f} "
        f"(>= {MIN_PRECISION_IMAGE}); caption -> own picture recall@10, image: {quality.recall_image:.3f} (>= {MIN_RECALL_IMAGE})",
        soft_wrap=True,
    )
    failures = quality.failures()
    for failure in failures:
        console.print(f"[red]check failed:[/red] {failure}")
    if not failures:
        console.print("[green]check passed[/green]")
    return not failures


def _query_precisions(client: HeadwaterClient, collection: str) -> tuple[float, float]:
    """Mean precision@5 of the queries on `fused` and `image`; prints a row per query."""
    table = Table("query", "expected", "p@5 fused", "p@5 image", "top hit (fused)", "ms")
    totals = [0.0, 0.0]
    for query, category in DEMO_QUERIES:
        began = time.monotonic()
        hits = {using: client.search(collection, text=query, using=using, limit=_PRECISION_AT).hits for using in ("fused", "image")}
        milliseconds = (time.monotonic() - began) * 500
        precisions = [precision(hits[using], category) for using in ("fused", "image")]
        totals = [total + value for total, value in zip(totals, precisions, strict=True)]
        top = cell(hits["fused"][0].id if hits["fused"] else "-")
        table.add_row(query, category, f"{precisions[0]:.1f}", f"{precisions[1]:.1f}", top, f"{milliseconds:.0f}")
    output().print(table)
    return totals[0] / len(DEMO_QUERIES), totals[1] / len(DEMO_QUERIES)


def precision(hits: Sequence[Hit], category: str) -> float:
    """Share of the first five places that hold a picture of the category; a missing hit counts as wrong."""
    return len([hit for hit in hits[:_PRECISION_AT] if hit.payload.get("category") == category]) / _PRECISION_AT


def caption_recall(client: HeadwaterClient, collection: str, files: Sequence[FileUnit]) -> float:
    """Share of captions that find their own picture among the first ten by picture alone (the field `image`)."""
    captioned = [file for file in files if file.caption]
    found = 0
    for file in captioned:
        hits = client.search(collection, text=file.caption, using="image", limit=_RECALL_AT).hits
        found += any(hit.id == file.name for hit in hits)
    return found / max(1, len(captioned))
