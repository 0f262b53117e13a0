"""`headwater ingest`: folders, manifests, tars and standard input onto a collection's media topic.

Takes: paths, options. Gives: records on the media topic, a report. Owns: the exit code: 0 all is in, 1 some input was rejected, 4 something was not
acknowledged. Never: embeds anything in this process.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from backends.catalog.collections import CollectionCatalog
from contracts.errors import SettingsError
from contracts.settings import Settings, load_settings
from headwater.console import notes
from headwater.ingest_progress import IngestBar, RejectsFile, show_report
from headwater.logging_setup import set_up_logging
from headwater.wiring import open_engines
from ingest.ingest_run import IngestRun, ingest_sources
from ingest.input_item import InputRules
from ingest.manifest_source import STDIN
from ingest.producer import MediaProducer
from ingest.resume import Journal
from ingest.sources import OpenedSources, open_sources
from ingest.watch import Watch, WatchOptions

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def register(app: typer.Typer) -> None:
    """Add `ingest` to the command line."""
    app.command("ingest")(ingest)


def ingest(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Folders, manifests (.csv, .jsonl, .parquet), WebDataset tars (.tar, .tar.gz), single files; - is JSONL on stdin."),
    ],
    collection: Annotated[str, typer.Option("--collection", "-c", help="Which collection.")],
    captions: Annotated[
        Path | None, typer.Option(help="CSV with the columns file, caption, and attributes, for folders; else each folder's captions.csv.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that paths in manifests are relative to; else the manifest's own.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on: send what appears or changes, until Ctrl-C.")] = False,
    settle_seconds: Annotated[float, typer.Option(min=0.0, help="Watching: seconds without a change after which a file is whole.")] = 2.0,
    delete_missing: Annotated[bool, typer.Option("--delete-missing", help="Watching: delete items whose file was removed.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Send everything; forget how far an interrupted ingest came.")] = False,
    rejects: Annotated[
        Path | None, typer.Option(help="Write each rejected input to this file, as JSONL; an ingest that goes on where it was adds to it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put media on a collection's media topic; an interrupted ingest goes on where it was. Exit code 1 where some input was rejected."""
    settings = load_settings()
    set_up_logging(settings)
    if delete_missing and not watch:
        raise SettingsError("--delete-missing needs --watch", hint="add --watch, or leave --delete-missing out")
    if watch and STDIN in paths:
        raise SettingsError("standard input cannot be watched", hint="leave --watch out: `-` is read until it ends")
    for path in paths:
        if path != STDIN and not path.exists():
            open_sources([path], InputRules({}, {}, 0, 0))  # says what is wrong before any connection is made
    options = WatchOptions(settle_seconds=settle_seconds, delete_missing=delete_missing) if watch else None
    with ExitStack() as stack:
        engines = stack.enter_context(open_engines(settings))
        record = CollectionCatalog(engines.store).get(collection)
        opened = open_sources(paths, InputRules.of(record, settings), captions, root)
        goes_on = not restart and any(Journal.is_left(settings.cache_dir, source.identity, record) for source in opened.sources)
        rejects_file = stack.enter_context(RejectsFile(rejects, goes_on=goes_on))
        stop = threading.Event()
        bar = stack.enter_context(IngestBar(0 if watch else _size_bytes(opened)))
        run: IngestRun | None = None
        try:
            with MediaProducer(engines.log, record, settings, bulk=True, store=engines.store) as producer:
                run = IngestRun(producer, bar.show, rejects_file.add, stop)
                _run(run, opened, settings, options, stop, restart=restart)
        except KeyboardInterrupt:
            notes().print("interrupted; the same command goes on where it was", soft_wrap=True)
            raise
        finally:
            bar.__exit__(None, None, None)
            if run is not None:
                show_report(run.report, collection, as_json)
    if run.report.rejected or run.report.earlier.rejected:
        raise typer.Exit(1)


def _run(run: IngestRun, opened: OpenedSources, settings: Settings, options: WatchOptions | None, stop: threading.Event, *, restart: bool) -> None:
    if options is None:
        ingest_sources(run, opened, settings.cache_dir, restart=restart)
        return
    watch = Watch(run, opened, options, settings.cache_dir, restart=restart)
    notes().print(f"watching {', '.join(str(source.path) for source in opened.sources)}; Ctrl-C stops", soft_wrap=True, markup=False)
    with _stopped_by_signals(stop):
        watch.follow(stop)


def _size_bytes(opened: OpenedSources) -> int:
    """Size of everything, for the bar; not asked for where nobody sees one."""
    return sum(source.size_bytes() for source in opened.sources) if notes().is_terminal else 0


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM end the watch in order; a second one ends the process."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()
        for again in _SIGNALS:
            signal.signal(again, before[again])

    for number in _SIGNALS:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
