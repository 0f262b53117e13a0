"""The demo: the whole path in one process, on the sample media or a folder of one's own.

    collection -> roles (embed, index, query) -> ingest -> wait until searchable -> searches over HTTP -> serve, or check and exit

Takes: a folder, or none. Gives: a search page, or with `check` a verdict on the sample media. Owns: the collection `demo` of its own data folder.
Never: touches the log or store of the settings, or takes a short cut past the log, the store or HTTP.
"""

from __future__ import annotations

import queue
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from backends.catalog.collections import CollectionCatalog
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError, SettingsError, UnavailableError
from contracts.object_keys import CollectionKeys
from contracts.settings import Settings, load_settings
from headwater.client import HeadwaterClient
from headwater.console import megabytes, notes, one_line, output, progress_bar
from headwater.demo_report import check_quality, show_searches
from headwater.logging_setup import set_up_logging
from headwater.run_roles import Role, RoleRunner, role
from headwater.wiring import ENCODED_SOURCES, encoder_fields, open_engines
from ingest.folder_source import FileUnit, FolderSource
from ingest.ingest_run import IngestReport, IngestRun, ingest_sources, rejected_summary
from ingest.input_item import InputRules
from ingest.producer import MediaProducer
from ingest.sources import OpenedSources

COLLECTION = "demo"
DATA_FOLDER = Path("headwater-data/demo")
PARTITIONS = 4
ATTRIBUTES = {"category": "keyword", "author": "keyword"}
SEARCHABLE_SECONDS = 600.0
"""Without any progress for this long, the demo gives up."""

_POLL_SECONDS = 0.1


@dataclass(slots=True)
class DemoTimes:
    """Seconds since the demo began, by milestone."""

    began: float = field(default_factory=time.monotonic)
    ready: float = 0.0
    ingest: float = 0.0
    first_searchable: float = 0.0
    searchable: float = 0.0
    searchable_at_first: int = 0
    first_answer: float = 0.0

    def now(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self.began


def run_demo(folder: Path | None, *, check: bool, port: int | None) -> int:
    """Run the demo.

    Parameters
    ----------
    folder : Path, optional
        Pictures of one's own; the sample media where it is None.
    check : bool
        Check the sample media's search quality and return, instead of serving.
    port : int, optional
        Port of the query service; a check takes a free one, else ``query_port``.

    Returns
    -------
    int
        Exit code: 0, or 1 where a check failed.

    Raises
    ------
    SettingsError
        No pictures, or a check of a folder that is not the sample media.
    UnavailableError
        The pictures did not become searchable.
    """
    if check and folder is not None:
        raise SettingsError("--check knows the sample media only", hint="leave the folder out, or leave --check out")
    times = DemoTimes()
    with ExitStack() as stack:
        data_folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-demo-"))) if check else DATA_FOLDER
        settings = _settings(data_folder, 0 if check and port is None else port)
        set_up_logging(settings)
        media = FolderSource(folder or sample_folder(), InputRules(ATTRIBUTES, {}, settings.max_picture_bytes, settings.max_text_bytes))
        files = _files(media)
        engines = stack.enter_context(open_engines(settings))
        record = _fresh_collection(engines)
        runner, client = stack.enter_context(_serving(engines, record))
        times.ready = times.now()
        report = _ingest(engines, record, media, len(files), runner, client, times)
        for line in rejected_summary(report):
            notes().print(f"rejected {one_line(line)}", markup=False, soft_wrap=True)
        client.search(COLLECTION, text="a first question", limit=1)
        times.first_answer = times.now()
        _show_times(times, report, client.count(COLLECTION))
        if check:
            return 0 if check_quality(client, COLLECTION, files) else 1
        show_searches(client, COLLECTION)
        output().print(f"\nsearch page: {client.url}/   (Ctrl-C ends the demo)", soft_wrap=True)
        runner.wait()
    return 0


def sample_folder() -> Path:
    """The sample media of this checkout; SettingsError where there is none (an installed wheel has none)."""
    for base in (Path(__file__).resolve().parent.parent, Path.cwd()):
        if (folder := base / "examples" / "media").is_dir():
            return folder
    raise SettingsError("the sample media are not here", hint="run the demo in a checkout, or name a folder of pictures: headwater demo DIR")


def _files(media: FolderSource) -> list[FileUnit]:
    if not media.path.is_dir():
        raise NotFoundError(f"{media.path} is not a folder", hint="name a folder of pictures", code="path_not_found")
    media.check()
    files = [unit for unit in media.units() if isinstance(unit, FileUnit)]
    if not files:
        raise SettingsError(f"{media.path} holds no pictures", hint="JPEG, PNG, WebP, GIF, BMP and TIFF are indexed")
    return files


def _settings(data_folder: Path, port: int | None) -> Settings:
    """Settings of the embedded size: everything under one folder, whatever log and store the environment names."""
    data_folder.mkdir(parents=True, exist_ok=True)
    overrides = {"log_url": f"sqlite:///{data_folder}/log.sqlite", "store_url": f"file:///{data_folder}/store", "cache_dir": data_folder / "cache"}
    return load_settings(**overrides, **({} if port is None else {"query_port": port}))


def _fresh_collection(engines: Engines) -> CollectionRecord:
    """Create `demo` anew; what an earlier demo left is removed (this folder is the demo's own)."""
    catalog = CollectionCatalog(engines.store)
    if (old := catalog.find(COLLECTION)) is not None:
        delete_collection(engines, COLLECTION)
        for info in list(engines.store.list(CollectionKeys(old.name, old.incarnation).prefix)):
            engines.store.delete(info.key)
    fields = encoder_fields("lite", ENCODED_SOURCES)
    return create_collection(engines, CollectionRequest(COLLECTION, fields, partitions=PARTITIONS, attributes=ATTRIBUTES))


@contextmanager
def _serving(engines: Engines, record: CollectionRecord) -> Iterator[tuple[RoleRunner, HeadwaterClient]]:
    """Run the three roles; the context begins when the service answers for the collection."""
    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    names = [record.name]
    roles: dict[str, Role] = {
        "embed": role("embed", engines, names),
        "index": role("index", engines, names),
        "query": role("query", engines, None, ports.put),
    }
    with RoleRunner(roles, engines.settings.stop_seconds) as runner:
        port = _first(ports, runner)
        with HeadwaterClient(f"http://{engines.settings.query_host}:{port}") as client:
            _wait_for_collection(client, record.name, runner)
            yield runner, client


def _first(ports: queue.SimpleQueue[int], runner: RoleRunner) -> int:
    deadline = time.monotonic() + SEARCHABLE_SECONDS
    while time.monotonic() < deadline:
        runner.check()
        try:
            return ports.get(timeout=0.2)
        except queue.Empty:
            continue
    raise UnavailableError("the query service did not start", hint="look at the messages above, or set HEADWATER_LOG_LEVEL=INFO")


def _wait_for_collection(client: HeadwaterClient, name: str, runner: RoleRunner) -> None:
    deadline = time.monotonic() + SEARCHABLE_SECONDS
    while True:
        runner.check()
        try:
            client.freshness(name)
            return
        except (NotFoundError, UnavailableError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _ingest(
    engines: Engines, record: CollectionRecord, media: FolderSource, total: int, runner: RoleRunner, client: HeadwaterClient, times: DemoTimes
) -> IngestReport:
    """Produce everything and wait until it is searchable, with a bar for each."""
    with progress_bar() as bar, MediaProducer(engines.log, record, engines.settings, bulk=True, store=engines.store) as producer:
        produced = bar.add_task("produced  ", total=total, note="")
        searchable = bar.add_task("searchable", total=total, note="")

        def show(report: IngestReport) -> None:
            bar.update(produced, completed=report.items + report.rejected.total(), note=megabytes(report.size_bytes))

        report = ingest_sources(IngestRun(producer, show), OpenedSources([media]))
        show(report)
        times.ingest = times.now()
        bar.update(searchable, total=report.records)
        _wait_until_searchable(client, report, runner, times, lambda done: bar.update(searchable, completed=done))
        times.searchable = times.now()
    return report


def _wait_until_searchable(
    client: HeadwaterClient, report: IngestReport, runner: RoleRunner, times: DemoTimes, on_progress: Callable[[int], None]
) -> None:
    seen, progressed = 0, time.monotonic()
    while True:
        runner.check()
        offsets = client.freshness(COLLECTION).offsets
        done = sum(min(offset, offsets.get(partition, 0)) for partition, offset in report.next_offsets.items())
        on_progress(done)
        if done and not seen:
            times.first_searchable, times.searchable_at_first = times.now(), done
        if done >= sum(report.next_offsets.values()):
            return
        if done > seen:
            seen, progressed = done, time.monotonic()
        elif time.monotonic() - progressed > SEARCHABLE_SECONDS:
            raise UnavailableError(
                f"{done} of {report.records} pictures became searchable, then no more", hint="set HEADWATER_LOG_LEVEL=INFO and try again"
            )
        time.sleep(_POLL_SECONDS)


def _show_times(times: DemoTimes, report: IngestReport, live: int) -> None:
    after_first = report.records - times.searchable_at_first
    rate = f", {after_first / (times.searchable - times.first_searchable):.0f}/s from there" if after_first else ""
    lines = (
        f"{report.records} pictures, {megabytes(report.size_bytes)}",
        f"services up after {times.ready:.1f} s",
        f"all produced {times.ingest - times.ready:.1f} s later",
        f"first searchable at {times.first_searchable:.1f} s (models loaded)",
        f"all searchable at {times.searchable:.1f} s{rate}",
        f"first answer at {times.first_answer:.1f} s",
    )
    output().print("; ".join(lines), soft_wrap=True)
    if live < report.records:
        notes().print(f"{report.records - live} of them could not be indexed; the topic of dead letters says why", soft_wrap=True)
