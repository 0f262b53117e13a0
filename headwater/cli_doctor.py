"""`headwater doctor`: tells whether everything is there that the roles need.

Takes: settings. Gives: one line per check, and exit code 1 where one failed. Owns: how findings are shown. Never: mends anything.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from contracts.settings import load_settings
from headwater.console import one_line, output, print_json
from headwater.doctor import examine

_STYLES = {"ok": "[green]ok  [/green]", "warn": "[yellow]warn[/yellow]", "fail": "[red]fail[/red]"}


def register(app: typer.Typer) -> None:
    """Add `doctor` to the command line."""
    app.command("doctor")(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check broker, store, topics, models, versions, disk and clock; exit code 1 where something fails."""
    findings = examine(load_settings())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        console = output()
        for finding in findings:
            console.print(f"{_STYLES[finding.level]} {finding.check}: ", end="", soft_wrap=True)
            advice = f"\n       {finding.advice}" if finding.advice else ""
            console.print(one_line(finding.message) + advice, markup=False, soft_wrap=True)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)
