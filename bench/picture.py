"""results/bench.png: a panel per workload and unit; a point and its 95 % interval per mode, goals as lines.

Takes: measures, goals. Gives: a PNG. Owns: how it looks. Never: hides a mode that misses its goal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.frame import Goal, Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MET, MISSED, PLAIN, GOAL = "#1b7f4b", "#c0392b", "#34495e", "#d08700"
_ROW_INCHES, _FRAME_INCHES = 0.34, 1.3


def draw(
    workloads: Mapping[str, Mapping[str, Measure]], goals: Mapping[str, Mapping[str, Goal]], titles: Mapping[str, str], caption: str, path: Path
) -> None:
    """Draw all workloads that have measures.

    Parameters
    ----------
    workloads : Mapping
        Measures by workload and mode.
    goals, titles : Mapping
        By workload; a mode without a goal is drawn grey.
    caption : str
        One line about machine and commit.
    path : Path
        PNG to write.
    """
    import matplotlib  # a second's work, which no other use of this package needs

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [
        (name, unit, {mode: measure for mode, measure in modes.items() if measure.unit == unit})
        for name, modes in workloads.items()
        for unit in dict.fromkeys(measure.unit for measure in modes.values())
    ]
    if not panels:
        return
    heights = [len(modes) * _ROW_INCHES + _FRAME_INCHES for _, _, modes in panels]
    figure, axes = plt.subplots(len(panels), 1, figsize=(11.5, sum(heights) + 0.4), height_ratios=heights, squeeze=False, layout="constrained")
    for axis, (name, unit, modes) in zip(axes[:, 0], panels, strict=True):
        _panel(axis, f"{name}: {titles.get(name, name)}", unit, modes, goals.get(name, {}))
    figure.supxlabel(caption, fontsize=8, color="#666666")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis: Axes, title: str, unit: str, modes: Mapping[str, Measure], goals: Mapping[str, Goal]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for row, (mode, measure) in enumerate(modes.items()):
        goal = goals.get(mode)
        colour = PLAIN if goal is None else MET if goal.is_met(measure) else MISSED
        axis.plot([measure.low, measure.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
        axis.plot([measure.value], [row], "o", color=colour, markersize=6)
        label = readable(measure)
        if goal is not None:
            axis.plot([goal.limit, goal.limit], [row - 0.42, row + 0.42], color=GOAL, linewidth=2)
            label += f"  goal {'<' if goal.smaller_is_better else '>'} {readable(replace(measure, value=goal.limit))}"
        axis.text(
            1.01, row, label, transform=axis.get_yaxis_transform(), va="center", fontsize=8, color=colour
        )  # beside the panel: lines may cross it
    axis.set_yticks(range(len(modes)), list(modes), fontsize=9)
    axis.set_ylim(len(modes) - 0.5, -0.5)
    axis.set_xscale("log")
    marks = [goals[mode].limit for mode in modes if mode in goals]
    if unit == "ratio":
        marks.append(1.0)
        axis.axvline(1.0, color="#999999", linewidth=1.2)
    axis.set_xlim(*_limits(list(modes.values()), marks))
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="x", which="both", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(
        f"{unit} (log); bar = 95 % interval" + ("; short upright line = goal" if any(mode in goals for mode in modes) else ""), fontsize=8
    )
    axis.set_title(title if unit == "seconds" else f"{title} ({unit})", fontsize=11, loc="left")


def _limits(measures: Sequence[Measure], goals: Sequence[float]) -> tuple[float, float]:
    smallest = min([measure.low for measure in measures] + list(goals))
    largest = max([measure.high for measure in measures] + list(goals))
    return max(smallest, 1e-9) / 1.3, largest * 1.3


def readable(measure: Measure) -> str:
    """Value for people: milliseconds below a second."""
    if measure.unit != "seconds":
        return f"{measure.value:.3g}"
    return f"{measure.value * 1000:.3g} ms" if measure.value < 1 else f"{measure.value:.2f} s"
