"""`headwater demo`, `up` and `run ...`: commands that start roles.

Takes: settings, role names. Gives: running roles until SIGINT or SIGTERM. Owns: which roles a command starts.
Never: does the work of a role.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backends.catalog.collections import CollectionCatalog
from contracts.settings import Settings, load_settings
from headwater.console import notes
from headwater.logging_setup import set_up_logging
from headwater.run_roles import Role, RoleName, RoleRunner, role, served_metrics
from headwater.wiring import open_engines
from query.one_heap import use_one_heap
from vectors.coding_process import set_up_coding_process

PROBE_PREFIX = "probe/"
"""Where a role that writes proves, before it begins, that the store honours conditions."""

run_app = typer.Typer(help="Run one role until it is stopped: a process, or a container, each.", no_args_is_help=True)
Collections = Annotated[list[str] | None, typer.Option("--collection", "-c", help="Serve this collection only; repeat for more. Default: all.")]


def register(app: typer.Typer) -> None:
    """Add `demo` and `up` to the command line."""
    app.command("demo")(demo)
    app.command("up")(up)


def demo(
    folder: Annotated[Path | None, typer.Argument(help="Folder of your own pictures; the sample media where none is named.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the sample media's search quality, then exit with 0 or 1.")] = False,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the search page; 0 picks a free one.")] = None,
) -> None:
    """Index pictures in this one process, search them, and serve the search page."""
    from headwater.demo import run_demo

    raise typer.Exit(run_demo(folder, check=check, port=port))


def up() -> None:
    """Run all roles in this one process."""
    settings = load_settings()
    _run(settings, ("embed", "index", "archive", "maintain", "query"), None)


@run_app.command("embed")
def run_embed(collection: Collections = None) -> None:
    """Embed: media topic -> vectors topic."""
    _run(load_settings(), ("embed",), collection)


@run_app.command("index")
def run_index(collection: Collections = None) -> None:
    """Index: vectors topic -> segments and manifests in the store."""
    set_up_coding_process()
    _run(load_settings(), ("index",), collection)


@run_app.command("archive")
def run_archive(collection: Collections = None) -> None:
    """Archive: media topic -> WebDataset tars in the store."""
    _run(load_settings(), ("archive",), collection)


@run_app.command("maintain")
def run_maintain(collection: Collections = None) -> None:
    """Maintain: compact segments, delete objects and log records that nothing needs any more."""
    _run(load_settings(), ("maintain",), collection)


@run_app.command("query")
def run_query() -> None:
    """Query: serve searches over HTTP, for all collections."""
    use_one_heap()
    _run(load_settings(), ("query",), None)


def _run(settings: Settings, names: tuple[RoleName, ...], collections: list[str] | None) -> None:
    set_up_logging(settings)
    console = notes()

    def listening(port: int) -> None:
        console.print(f"query service listens on http://{settings.query_host}:{port}", soft_wrap=True)

    with open_engines(settings) as engines:
        if names != ("query",):  # who only reads may lack the right to write
            engines.store.probe(PROBE_PREFIX)
        catalog = CollectionCatalog(engines.store)
        for name in collections or []:
            catalog.get(name)  # a wrong name ends the command here, not in a thread
        roles: dict[str, Role] = {name: role(name, engines, collections or None, listening, is_alone=len(names) == 1) for name in names}
        with served_metrics(engines) as metrics_port, RoleRunner(roles, settings.stop_seconds) as runner:
            where = "" if metrics_port is None else f", metrics on http://{settings.metrics_host}:{metrics_port}/metrics"
            console.print(f"running {', '.join(names)}{where}; Ctrl-C stops", soft_wrap=True)
            runner.wait()
            console.print("stopping")
    console.print("stopped")
