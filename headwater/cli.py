"""The command line: `headwater`. Commands live in `cli_*.py`, by group.

Takes: arguments. Gives: an exit code: 0 done, 2 wrong request, 4 something is not there now, 5 fenced, 6 corrupt, 130 interrupted.
Owns: how errors end a process. Never: shows a traceback for an error that we raise on purpose.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from contracts.errors import HeadwaterError
from headwater import (
    cli_backup,
    cli_collection,
    cli_dead_letter,
    cli_doctor,
    cli_ingest,
    cli_media,
    cli_operate,
    cli_purge,
    cli_roles,
    cli_train,
    cli_verify,
)
from headwater.console import print_error

app = typer.Typer(
    name="headwater",
    help="Live multimodal search over a stream: pictures and text in Kafka, searchable a moment later.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli_roles.register(app)
cli_ingest.register(app)
cli_media.register(app)
cli_operate.register(app)
cli_backup.register(app)
cli_purge.register(app)
cli_verify.register(app)
cli_doctor.register(app)
app.add_typer(cli_roles.run_app, name="run")
app.add_typer(cli_collection.collection_app, name="collection")
app.add_typer(cli_train.train_app, name="train")
app.add_typer(cli_dead_letter.dead_letter_app, name="dead-letter")


def _show_version(asked: bool) -> None:
    if asked:
        from headwater import __version__

        typer.echo(f"headwater {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Live multimodal search over a stream: pictures and text in Kafka, searchable a moment later."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; always ends with SystemExit."""
    try:
        app(args=None if arguments is None else list(arguments))
    except HeadwaterError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
