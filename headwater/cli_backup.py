"""`headwater backup`: a consistent copy of the store while everything goes on.

Takes: the address of another store. Gives: a copy, and how much was copied. Owns: how that is told. Never: stops a role, or copies the log.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from backends.catalog.store_copy import CopyReport, copy_store
from backends.open_store import open_store
from contracts.errors import SettingsError
from contracts.settings import load_settings
from headwater.console import megabytes, output, print_json, progress_bar


def register(app: typer.Typer) -> None:
    """Add `backup` to the command line."""
    app.command("backup")(backup)


def backup(
    to: Annotated[str, typer.Option("--to", help="Another store: file:///PATH, or s3:// and s3s:// with the same credentials.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Copy the store while it is in use; again into the same target copies what is new. The way back is the same with the addresses exchanged."""
    settings = load_settings()
    if to.rstrip("/") == settings.store_url.rstrip("/"):
        raise SettingsError("the store cannot be copied into itself", hint="name another one with --to")
    source, target = open_store(settings), open_store(settings.model_copy(update={"store_url": to}))
    try:
        with progress_bar() as bar:
            task = bar.add_task("copying", total=None, note="")

            def tell(report: CopyReport, total: int) -> None:
                bar.update(task, completed=report.copied, total=total, note=megabytes(report.copied_bytes))

            report = copy_store(source, target, tell)
    finally:
        source.close()
        target.close()
    if as_json:
        print_json(asdict(report))
        return
    output().print(
        f"copied {report.copied} objects, {megabytes(report.copied_bytes)}; {report.there} were there. Copy the log after this, never before",
        soft_wrap=True,
    )
