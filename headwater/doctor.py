"""The doctor's checks: each looks at one thing and says ok, warn or fail, and what to do.

Takes: settings. Gives: findings, in the order in which they are worth mending. Owns: the thresholds.
Never: changes anything that stays (the store's probe cleans up after itself), or stops at the first failure.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

from ulid import ULID

from backends.catalog.collections import CollectionCatalog
from backends.open_log import open_log
from backends.open_store import open_store
from contracts.collection import CollectionRecord
from contracts.errors import HeadwaterError
from contracts.log import Log, TopicInfo
from contracts.settings import Settings
from contracts.store import ObjectStore
from headwater.doctor_archive import archive_findings
from headwater.doctor_encoders import encoder_findings
from headwater.doctor_replicas import replica_findings

Level = Literal["ok", "warn", "fail"]
_Opened = TypeVar("_Opened")

MIN_FREE_BYTES = 1_000_000_000
LOW_FREE_BYTES = 10_000_000_000
SKEW_WARN_SECONDS = 2.0
SKEW_FAIL_SECONDS = 300.0
"""Beyond 15 minutes S3 refuses signed requests; ages that garbage collection compares must be right to minutes."""

_PROBE_PREFIX = "doctor/"
_CORE = ("headwater", "numpy", "pyarrow", "pydantic", "kafka-python", "minio")
_BY_ROLE = {"query": ("fastapi", "uvicorn", "faiss-cpu", "pillow"), "indexer": ("torch", "timm", "transformers", "faiss-cpu", "pillow")}

_FOR_CONVERTING = ("torch", "transformers")
"""Where networks came converted (`networks_dir`), nobody needs them but open_clip, which says so itself."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    level: Level
    check: str
    message: str
    advice: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Run every check; an error of one is its finding, not the end.

    Parameters
    ----------
    settings : Settings
        What the roles would start with.
    """
    findings = [*_versions(settings), *_guarded("models", lambda: _models(settings)), *_guarded("disk", lambda: _disk(settings))]
    log = _open("log", lambda: open_log(settings), findings)
    store = _open("store", lambda: open_store(settings), findings)
    try:
        if log is not None:
            findings += _guarded("log", lambda: iter([Finding("ok", "log", f"reachable, cluster {log.cluster_id()}")]))
        if store is not None:
            findings += _guarded("store", lambda: _store(store))
            findings += _guarded("clock", lambda: _clock(store))
            findings += _guarded("encoders", lambda: _encoders(store, settings))
        if log is not None and store is not None:
            findings += _guarded("topics", lambda: _topics(log, store, settings))
            findings += _guarded("archive", lambda: _archives(log, store))
    finally:
        for opened in (log, store):
            if opened is not None:
                opened.close()
    return findings


def _guarded(check: str, findings: Callable[[], Iterator[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(findings())
    except HeadwaterError as error:
        found.append(Finding("fail", check, error.message, error.hint))
    except OSError as error:
        found.append(Finding("fail", check, str(error), "check permissions and mounts"))
    return found


def _open(check: str, opener: Callable[[], _Opened], findings: list[Finding]) -> _Opened | None:
    try:
        return opener()
    except HeadwaterError as error:
        findings.append(Finding("fail", check, error.message, error.hint))
        return None


def _versions(settings: Settings) -> Iterator[Finding]:
    core = {name: _version(name) for name in _CORE}
    missing = [name for name, found in core.items() if found is None]
    if missing:
        yield Finding("fail", "versions", f"not installed: {', '.join(missing)}", "pip install headwater")
    yield Finding("ok", "versions", ", ".join(f"{name} {found}" for name, found in core.items() if found))
    if find_spec("crc32c") is None:
        yield Finding("warn", "versions", "crc32c is not installed: Kafka's checksums are then 30 times slower", "pip install 'kafka-python[crc32c]'")
    for role, packages in _BY_ROLE.items():
        names = [name for name in packages if settings.networks_dir is None or name not in _FOR_CONVERTING]
        absent = [name for name in names if _version(name) is None]
        if absent:
            yield Finding("warn", "versions", f"the {role} roles cannot run here: {', '.join(absent)} missing", f"pip install 'headwater[{role}]'")
        else:
            yield Finding("ok", "versions", f"{role}: " + ", ".join(f"{name} {_version(name)}" for name in names))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _models(settings: Settings) -> Iterator[Finding]:
    if _version("torch") is None and settings.networks_dir is None:
        yield Finding("warn", "models", "not checked: torch is not installed", "pip install 'headwater[indexer]' where pictures are embedded")
        return
    from embedding.lite import LiteEncoder

    LiteEncoder.check_weights()  # a converted copy in the cache is loaded without looking at them
    encoder = LiteEncoder(settings)
    space = encoder.space
    yield Finding("ok", "models", f"lite loads, weights are the pinned ones, {space.dimension} dimensions, space {space.space_id}; {encoder.runtime}")


def _encoders(store: ObjectStore, settings: Settings) -> Iterator[Finding]:
    records = CollectionCatalog(store).list()
    yield from (Finding(level, "encoders", message, advice) for level, message, advice in encoder_findings(records, settings))


def _disk(settings: Settings) -> Iterator[Finding]:
    folders = {_existing(path) for path in (settings.cache_dir, *_local_paths(settings))}
    for folder in sorted(folders):
        free = shutil.disk_usage(folder).free
        message = f"{free / 1e9:.1f} GB free at {folder.absolute()}"
        if free < MIN_FREE_BYTES:
            yield Finding("fail", "disk", message, "free some space: segments and the log are written here")
        elif free < LOW_FREE_BYTES:
            yield Finding("warn", "disk", message, "segments and the log are written here; keep 10 GB free")
        else:
            yield Finding("ok", "disk", message)


def _local_paths(settings: Settings) -> list[Path]:
    """Paths of an SQLite log and a folder store; both URLs end in the path (three slashes: relative, four: absolute)."""
    urls = ((settings.log_url, "sqlite:///"), (settings.store_url, "file:///"))
    return [Path(url.removeprefix(scheme)) for url, scheme in urls if url.startswith(scheme)]


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _store(store: ObjectStore) -> Iterator[Finding]:
    store.probe(_PROBE_PREFIX)
    yield Finding("ok", "store", "reachable, conditional puts and swaps are honoured")


def _clock(store: ObjectStore) -> Iterator[Finding]:
    """Compare this machine's clock with the store's, by the time of an object written now."""
    key = f"{_PROBE_PREFIX}{ULID()}"
    before = time.time()
    store.put_if_absent(key, b"clock")
    after = time.time()
    found = store.head(key)
    store.delete(key)
    if found is None:
        yield Finding("warn", "clock", "the store did not keep the test object", "run headwater doctor again")
        return
    # a store may give whole seconds, so the interval is a second longer at its lower end
    skew = max(0.0, before - 1.0 - found.modified_seconds, found.modified_seconds - after)
    if skew > SKEW_FAIL_SECONDS:
        yield Finding(
            "fail", "clock", f"this machine and the store are {skew:.0f} s apart", "start a time service (chrony, systemd-timesyncd) on both"
        )
    elif skew > SKEW_WARN_SECONDS:
        yield Finding("warn", "clock", f"this machine and the store are {skew:.1f} s apart", "check the time service on both")
    else:
        yield Finding("ok", "clock", f"agrees with the store within {SKEW_WARN_SECONDS:g} s")


def _topics(log: Log, store: ObjectStore, settings: Settings) -> Iterator[Finding]:
    records = CollectionCatalog(store).list()
    if not records:
        yield Finding("ok", "topics", "no collections yet")
    for record in records:
        problems = [finding for finding in _collection_topics(log, record, settings) if finding is not None]
        yield from problems
        if not problems:
            yield Finding("ok", "topics", f"{record.name}: {record.partitions} partitions, retention as designed")


def _archives(log: Log, store: ObjectStore) -> Iterator[Finding]:
    for record in CollectionCatalog(store).list():
        source = log.describe_topic(record.source_topic)
        if source is None:
            continue  # told of under "topics"
        retention_ms = _retention_ms(source)
        kept_seconds = None if retention_ms is None or retention_ms < 0 else retention_ms / 1000
        yield from (Finding(level, "archive", message, advice) for level, message, advice in archive_findings(log, store, record, kept_seconds))


def _collection_topics(log: Log, record: CollectionRecord, settings: Settings) -> Iterator[Finding | None]:
    source = log.describe_topic(record.source_topic)
    yield _same_topic(record, record.source_topic, source, record.source_topic_id)
    if source is not None and record.owns_source_topic:
        yield _retention(record, source, settings.media_retention_seconds, "HEADWATER_MEDIA_RETENTION_SECONDS")
    for index in record.indexes:
        vectors = log.describe_topic(index.vectors_topic)
        yield _same_topic(record, index.vectors_topic, vectors, index.vectors_topic_id)
        if vectors is not None and _retention_ms(vectors) not in (None, -1):
            yield Finding(
                "fail",
                "topics",
                f"{index.vectors_topic} has retention.ms={_retention_ms(vectors)}: batches can go before they are committed",
                f"kafka-configs --alter --topic {index.vectors_topic} --add-config retention.ms=-1",
            )
    dead_letters = log.describe_topic(record.dead_letter_topic)
    known = [source, dead_letters, *(log.describe_topic(index.vectors_topic) for index in record.indexes)]
    for topic in known:
        yield from (Finding(level, "topics", message, advice) for level, message, advice in (replica_findings(topic) if topic else ()))
    if dead_letters is None:
        yield Finding("fail", "topics", f"{record.dead_letter_topic} does not exist: embedding stops at the first bad record", "create it again")
    else:
        yield _retention(record, dead_letters, settings.dead_letter_retention_seconds, "HEADWATER_DEAD_LETTER_RETENTION_SECONDS")


def _same_topic(record: CollectionRecord, name: str, found: TopicInfo | None, topic_id: str) -> Finding | None:
    if found is None:
        return Finding("fail", "topics", f"{record.name}: topic {name} does not exist", "restore it, or create the collection anew")
    if found.topic_id != topic_id:
        return Finding(
            "fail", "topics", f"{record.name}: topic {name} was deleted and made again", "create the collection anew; its offsets are gone"
        )
    if found.partitions != record.partitions:
        return Finding(
            "fail",
            "topics",
            f"{record.name}: topic {name} has {found.partitions} partitions, the collection {record.partitions}",
            "create a new collection on this topic: a key may now lie in another partition",
        )
    return None


def _retention_ms(topic: TopicInfo) -> int | None:
    text = topic.config.get("retention.ms")
    return None if text is None else int(text)


def _retention(record: CollectionRecord, topic: TopicInfo, wanted_seconds: int, setting: str) -> Finding | None:
    found = _retention_ms(topic)
    wanted = -1 if wanted_seconds < 0 else wanted_seconds * 1000
    if found is None or found == wanted:
        return None
    return Finding(
        "warn",
        "topics",
        f"{record.name}: topic {topic.name} has retention.ms={found}, the settings say {wanted}",
        f"kafka-configs --alter --topic {topic.name} --add-config retention.ms={wanted}, or change {setting}",
    )
