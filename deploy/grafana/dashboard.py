"""Reads a dashboard's JSON: its panels, and their queries as Prometheus takes them.

Takes: `dashboards/overview.json`. Gives: `Panel`s. Owns: how Grafana's variables are filled in outside of Grafana.
Never: changes the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OVERVIEW = Path(__file__).with_name("dashboards") / "overview.json"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: `targets` are pairs of query and legend, `place` is (x, y, width, height) on a grid 24 wide."""

    title: str
    kind: str
    unit: str
    description: str
    place: tuple[int, int, int, int]
    targets: tuple[tuple[str, str], ...]


def read_panels(path: Path = OVERVIEW) -> list[Panel]:
    """All panels that show something, in the order of the file; rows are headings and are left out."""
    return [_panel(panel) for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def read_rows(path: Path = OVERVIEW) -> Iterator[tuple[str, int]]:
    """Title and y of each heading."""
    for panel in json.loads(path.read_text())["panels"]:
        if panel["type"] == "row":
            yield panel["title"], panel["gridPos"]["y"]


def _panel(panel: dict[str, Any]) -> Panel:
    place = panel["gridPos"]
    return Panel(
        panel["title"],
        panel["type"],
        panel["fieldConfig"]["defaults"]["unit"],
        panel["description"],
        (place["x"], place["y"], place["w"], place["h"]),
        tuple((target["expr"], target["legendFormat"]) for target in panel["targets"]),
    )


def filled_in(query: str, rate_seconds: int, collection: str = ".*") -> str:
    """A query with Grafana's variables filled in: all collections, and the span of `rate`."""
    return query.replace("$__rate_interval", f"{rate_seconds}s").replace("$collection", collection)


def legend(text: str, labels: dict[str, str]) -> str:
    """A series' name from the legend's form, ``{{stage}} p99``."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), text)
