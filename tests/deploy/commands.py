"""Holds a command line that stands in a file against the real command line.

Takes: arguments after ``headwater``. Gives: nothing, or an AssertionError. Owns: nothing. Never: runs the command.
"""

from __future__ import annotations

from collections.abc import Sequence

import click
import typer

from headwater.cli import app


def check_command(arguments: Sequence[str]) -> None:
    """Parse arguments as `headwater` would; an unknown command, option or a missing argument fails."""
    command: click.Command = typer.main.get_command(app)
    left = list(arguments)
    if left == ["--help"]:
        return
    while hasattr(command, "commands"):
        assert left and left[0] in command.commands, f"headwater {' '.join(arguments)}: no such command"
        command = command.commands[left.pop(0)]
    command.make_context("headwater", left)  # raises where an option or argument does not fit
