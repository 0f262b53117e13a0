"""Draws the dashboard's panels from a live Prometheus, for looking at them without Grafana.

    python -m deploy.grafana.picture --prometheus http://127.0.0.1:9090 --minutes 15 --out results/overview.png

Takes: the address of a Prometheus, a span. Gives: a PNG. Owns: how a panel is drawn. Never: invents a point: a panel without data says so.
"""

from __future__ import annotations

import argparse
import math
import time
from datetime import UTC, datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from deploy.grafana.dashboard import Panel, filled_in, legend, read_panels, read_rows
from deploy.grafana.prometheus_api import query_now, query_span

GRID_WIDTH = 24
INCHES_ACROSS, INCHES_A_ROW = 20.0, 0.42
POINTS = 240


def shown(value: float, unit: str) -> str:
    """A value with its unit, as short as Grafana writes it."""
    if math.isnan(value):
        return "no data"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    if unit == "bytes":
        power = 0 if value < 1024 else min(4, int(math.log(value, 1024)))
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    if unit == "percentunit":
        return f"{100 * value:.4g} %"
    return f"{value:.4g}"


def draw(url: str, minutes: float, rate_seconds: int) -> Figure:
    """The whole dashboard, each panel where the dashboard has it."""
    panels = read_panels()
    rows = max(panel.place[1] + panel.place[3] for panel in panels)
    figure = Figure((INCHES_ACROSS, rows * INCHES_A_ROW), dpi=90, facecolor="white")
    end = time.time()
    figure.suptitle(f"Headwater overview, {datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M} UTC, last {minutes:g} minutes", y=1 - 0.25 / rows)
    for title, y in read_rows():
        figure.text(0.01, 1 - (y + 0.75) / rows, title, fontsize=12, fontweight="bold", va="center")
    for panel in panels:
        x, y, width, height = panel.place
        axes = figure.add_axes(((x + 1.0) / GRID_WIDTH, 1 - (y + height - 0.9) / rows, (width - 1.4) / GRID_WIDTH, (height - 2.0) / rows))
        axes.set_title(panel.title, fontsize=10, loc="left")
        if panel.kind == "stat":
            _stat(axes, panel, url, rate_seconds)
        else:
            _lines(axes, panel, url, end - minutes * 60, end, rate_seconds)
    return figure


def _stat(axes: Axes, panel: Panel, url: str, rate_seconds: int) -> None:
    axes.set_axis_off()
    parts = []
    for query, name in panel.targets:
        for series in query_now(url, filled_in(query, rate_seconds)):
            parts.append(f"{legend(name, series.labels)} {shown(series.values[-1], panel.unit)}".strip())
    axes.text(0.5, 0.5, "\n".join(parts) or "no data", ha="center", va="center", fontsize=20 if len(parts) < 2 else 12)


def _lines(axes: Axes, panel: Panel, url: str, start: float, end: float, rate_seconds: int) -> None:
    drawn = False
    for query, name in panel.targets:
        for series in query_span(url, filled_in(query, rate_seconds), start, end, max(1.0, (end - start) / POINTS)):
            times = [date2num(datetime.fromtimestamp(at, UTC)) for at in series.times]
            axes.plot(times, series.values, linewidth=1.2, label=legend(name, series.labels))
            drawn = True
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if not drawn:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes, color="grey")
        axes.set_xticks([])
        return
    axes.set_ylim(bottom=0)
    axes.xaxis_date()
    axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, panel.unit)))
    axes.legend(fontsize=7, loc="upper left", ncols=2, framealpha=0.6)


def main() -> None:
    """Draw once."""
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.picture", description="Draw the dashboard from a live Prometheus.")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="address of the Prometheus")
    parser.add_argument("--minutes", type=float, default=15.0, help="span that is drawn")
    parser.add_argument("--rate-seconds", type=int, default=60, help="span of rates: at least four scrapes")
    parser.add_argument("--out", type=Path, default=Path("results/overview.png"), help="the PNG")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(options.prometheus.rstrip("/"), options.minutes, options.rate_seconds).savefig(options.out)


if __name__ == "__main__":
    main()
