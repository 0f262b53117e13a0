"""A copy of a whole store while it is written to (backup), and the same way back (restore).

    note boundaries, names, records, manifests -> copy what they name -> then they themselves, manifests first, names and boundaries last

Everything is immutable except the boundaries, and is written before what names it. So what was noted first names only what is there, and a copy
that was cut short names nothing that is missing in it.

Takes: two stores. Gives: a copy of one moment, and how much was copied. Owns: the order.
Never: copies what is not ours, writes to the source, or calls a copy good whose newest manifests name what is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from backends.catalog.objects import put_settled
from contracts import canonical_json
from contracts.errors import CorruptError, SnapshotError
from contracts.hashed_json import without_hash
from contracts.object_keys import parse_key
from contracts.store import ObjectStore, PutOutcome

COPY_THREADS = 8
MAX_MANIFEST_BYTES = 1 << 30
_SWAP_ATTEMPTS = 5
_BOUNDARIES = ("boundary", "archive_boundary")
_REFERRERS = ("manifest", "archive_manifest", "collection", "name")
"""In the order in which they are written: each names only kinds before it, and objects."""


@dataclass(slots=True)
class CopyReport:
    """Objects and bytes that were copied, and objects that the target had already."""

    copied: int = 0
    copied_bytes: int = 0
    there: int = 0


@dataclass(slots=True)
class _Noted:
    """What the source named at the beginning."""

    boundaries: dict[str, bytes] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in _REFERRERS})

    def heads(self) -> list[str]:
        """The newest manifest of every chain."""
        newest = {key.rpartition("/")[0]: key for kind in ("manifest", "archive_manifest") for key in self.keys[kind]}  # keys come in order
        return list(newest.values())


def copy_store(source: ObjectStore, target: ObjectStore, tell: Callable[[CopyReport, int], None] = lambda report, total: None) -> CopyReport:
    """Copy everything of ours; a second copy into the same target copies what is new.

    Parameters
    ----------
    source, target : ObjectStore
        The target is empty, or an earlier copy of the same store.
    tell : callable
        Told the report so far and the number of objects that were listed.

    Raises
    ------
    SnapshotError
        Compaction and garbage collection were faster than the copy: run it again.
    CorruptError
        The target holds other bytes under a key: it is no copy of this store.
    UnavailableError
        A store does not answer: run it again.
    """
    report = CopyReport()
    there = {info.key: info.size_bytes for info in target.list("")}
    noted = _note(source)
    for key in noted.keys["name"]:
        if key in there:
            _copy(source, target, key)  # compares them, before anything is written
    named = {*noted.boundaries, *(key for keys in noted.keys.values() for key in keys)}
    objects = [
        info.key
        for info in source.list("")
        if info.key not in named and _kind(info.key) not in (None, *_BOUNDARIES, *_REFERRERS) and there.get(info.key) != info.size_bytes
    ]
    report.there = len(there)
    total = len(objects) + len(named)
    with ThreadPoolExecutor(COPY_THREADS) as pool:
        for size in pool.map(lambda key: _copy(source, target, key), objects):
            _count(report, size, tell, total)
    _check_heads(source, target, noted)
    for kind in _REFERRERS:
        for key in noted.keys[kind]:
            if key not in there:
                _count(report, _copy(source, target, key), tell, total)
    for key, value in noted.boundaries.items():
        _put_boundary(target, key, value)
    return report


def _kind(key: str) -> str | None:
    parsed = parse_key(key)
    return None if parsed is None else parsed.kind


def _note(source: ObjectStore) -> _Noted:
    """Boundaries first: none may lie above the manifests of the copy. Then names before records before manifests, as each names the next."""
    noted = _Noted()
    for info in source.list(""):
        if _kind(info.key) in _BOUNDARIES and (found := source.get(info.key)) is not None:
            noted.boundaries[info.key] = found.data
    for kind in reversed(_REFERRERS):
        prefix = "n/" if kind == "name" else "c/"
        noted.keys[kind] = [info.key for info in source.list(prefix) if _kind(info.key) == kind]
    return noted


def _copy(source: ObjectStore, target: ObjectStore, key: str) -> int:
    """Copy one object; its size, 0 where it was deleted since it was listed."""
    found = source.get(key)
    if found is None:
        return 0
    if not put_settled(target, key, found.data):
        raise CorruptError(f"the target holds other bytes under {key}", hint="copy into an empty store, or into an earlier copy of the same one")
    return len(found.data)


def _count(report: CopyReport, size_bytes: int, tell: Callable[[CopyReport, int], None], total: int) -> None:
    report.copied += size_bytes > 0
    report.copied_bytes += size_bytes
    tell(report, total)


def _check_heads(source: ObjectStore, target: ObjectStore, noted: _Noted) -> None:
    for head in noted.heads():
        found = source.get(head)
        missing = None
        if found is not None:
            named = named_keys(canonical_json.load(without_hash(found.data, head), MAX_MANIFEST_BYTES))
            missing = next((key for key in named if target.head(key) is None), None)
        if found is None or missing is not None:
            what = f"{head} is gone" if found is None else f"{missing}, which {head} names, is gone"
            raise SnapshotError(f"the store was cleaned up while it was copied: {what}", hint="copy again; what is copied already stays")


def named_keys(value: Any) -> Iterable[str]:
    """Keys of the objects that a manifest names: every `key` in it, however deep."""
    if isinstance(value, dict):
        if isinstance(value.get("key"), str):
            yield value["key"]
        for inner in value.values():
            yield from named_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from named_keys(inner)


def _put_boundary(target: ObjectStore, key: str, value: bytes) -> None:
    for _ in range(_SWAP_ATTEMPTS):
        found = target.get(key)
        if found is not None and int(found.data) >= int(value):
            return
        if target.compare_and_swap(key, value, None if found is None else found.etag) is PutOutcome.CREATED:
            return
    raise SnapshotError(f"{key} of the target changes while it is copied to", hint="nobody else may write there")
