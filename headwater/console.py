"""What the command line prints: results on stdout, everything else on stderr.

Takes: texts, tables, errors. Gives: lines on a terminal or in a pipe. Owns: the form of an error. Never: prints a secret or a traceback of ours.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from contracts.errors import HeadwaterError

_PIPE_WIDTH = 160


def output() -> Console:
    """Console of stdout; wide where it is no terminal, so that tables in a file are not cut."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def notes() -> Console:
    """Console of stderr, for progress and notes."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else _PIPE_WIDTH, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout, the same on a terminal and in a pipe."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_error(error: HeadwaterError) -> None:
    """An error as one line, and what to do about it as a second."""
    typer.echo(f"error: {one_line(error.message)}", err=True)
    if error.hint:
        typer.echo(f"hint: {one_line(error.hint)}", err=True)


def one_line(text: str) -> str:
    """`text` without line breaks and control characters, which would let stored names write to the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def cell(text: str) -> Text:
    """A stored text as a table cell: one line, and never read as markup."""
    return Text(one_line(text))


class _RateColumn(ProgressColumn):
    """Steps per second, of the task's own speed estimate."""

    def render(self, task: Task) -> Text:
        """Rate of the task as text."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


def progress_bar() -> Progress:
    """Bar with count, rate, a free text (task field ``note``) and remaining time, on stderr; nothing where that is no terminal."""
    console = notes()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class Steps:
    """A bar for each step of one piece of work, in a `progress_bar`."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def tell(self, step: str, done: int, total: int) -> None:
        """Show a step's progress; the bar of a new step is added below."""
        if step not in self._tasks:
            self._tasks[step] = self._bar.add_task(step, note="")
        self._bar.update(self._tasks[step], completed=done, total=total)


def megabytes(size_bytes: int) -> str:
    """Bytes as megabytes for people."""
    return f"{size_bytes / 1e6:,.1f} MB"
