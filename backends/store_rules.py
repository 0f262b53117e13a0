"""What every object store does alike: argument checks, the capability probe, counting.

Takes: an `ObjectStore`. Gives: `check_range`, `check_prefix`, `prove_conditions`, `MeteredStore`. Owns: what a fit store must prove.
Never: talks to an engine; it sees a store only through its protocol.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from contracts.errors import HeadwaterError, SettingsError, UnavailableError
from contracts.metrics import Metrics
from contracts.object_keys import validate_key
from contracts.store import BucketObject, ObjectInfo, ObjectStore, PutOutcome, StoredObject

T = TypeVar("T")

RACE_THREADS = 32
CLEAR_ATTEMPTS = 8
"""How often the probe asks until the store answers clearly: a role that starts amid errors of the store has to start."""


def check_range(start: int, length: int) -> None:
    """Refuse a range that begins before the object or has a negative length.

    Raises
    ------
    SettingsError
        `start` or `length` is negative.
    """
    if start < 0 or length < 0:
        raise SettingsError(f"range of {length} bytes from {start} is not valid", hint="start and length are 0 or more")


def check_prefix(prefix: str) -> str:
    """Return `prefix` (or the key to start after) if only valid keys can begin with it; empty means all.

    Raises
    ------
    SettingsError
        It holds what no key may hold.
    """
    if prefix:
        validate_key(prefix.removesuffix("/"))
    return prefix


class MeteredStore:
    """Counts the calls to another store as ``headwater_store_requests_total{op,outcome}`` and is else the same store.

    Parameters
    ----------
    store : ObjectStore
        Does the work.
    metrics : Metrics
        Takes the counts; outcomes are those of `PutOutcome`, ``ok``, ``missing``, and ``refused`` or ``unavailable`` for errors.
    """

    def __init__(self, store: ObjectStore, metrics: Metrics) -> None:
        self._store = store
        self._requests = metrics.store_requests

    def _count(self, op: str, outcome: str) -> None:
        self._requests.labels(op=op, outcome=outcome).inc()

    def _failed(self, op: str, error: HeadwaterError) -> None:
        self._count(op, "unavailable" if isinstance(error, UnavailableError) else "refused")

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        """Create `key`; exactly one of many concurrent callers gets CREATED."""
        try:
            outcome = self._store.put_if_absent(key, data)
        except HeadwaterError as error:
            self._failed("put", error)
            raise
        self._count("put", outcome.value)
        return outcome

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> PutOutcome:
        """Replace `key` if its entity tag is `etag` (None: if it does not exist)."""
        try:
            outcome = self._store.compare_and_swap(key, data, etag)
        except HeadwaterError as error:
            self._failed("swap", error)
            raise
        self._count("swap", outcome.value)
        return outcome

    def get(self, key: str) -> StoredObject | None:
        """The whole object, or None."""
        try:
            found = self._store.get(key)
        except HeadwaterError as error:
            self._failed("get", error)
            raise
        self._count("get", "missing" if found is None else "ok")
        return found

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        """Up to `length` bytes from `start`; None when there is no object."""
        try:
            found = self._store.get_range(key, start, length)
        except HeadwaterError as error:
            self._failed("get_range", error)
            raise
        self._count("get_range", "missing" if found is None else "ok")
        return found

    def blocks(self, key: str, block_bytes: int, start: int = 0, length: int | None = None) -> Iterator[bytes] | None:
        """The object's bytes from `start` on in order, at most `block_bytes` at a time; one count for all of them, at their end."""
        try:
            found = self._store.blocks(key, block_bytes, start, length)
        except HeadwaterError as error:
            self._failed("get", error)
            raise
        if found is None:
            self._count("get", "missing")
            return None
        return self._counted(found, "get")

    def get_from_bucket(self, bucket: str, name: str, version_id: str | None, most_bytes: int) -> BucketObject | None:
        """Up to `most_bytes` of an object of another bucket, or None."""
        try:
            found = self._store.get_from_bucket(bucket, name, version_id, most_bytes)
        except HeadwaterError as error:
            self._failed("get_from_bucket", error)
            raise
        self._count("get_from_bucket", "missing" if found is None else "ok")
        return found

    def head(self, key: str) -> ObjectInfo | None:
        """The object's size and tag, or None."""
        try:
            found = self._store.head(key)
        except HeadwaterError as error:
            self._failed("head", error)
            raise
        self._count("head", "missing" if found is None else "ok")
        return found

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose keys begin with `prefix`, in key order; one count for the whole listing, at its end."""
        try:
            found = self._store.list(prefix, start_after)
        except HeadwaterError as error:
            self._failed("list", error)
            raise
        return self._counted(found, "list")

    def _counted(self, found: Iterator[T], op: str) -> Iterator[T]:
        try:
            yield from found
        except HeadwaterError as error:
            self._failed(op, error)
            raise
        self._count(op, "ok")

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is not there."""
        try:
            self._store.delete(key)
        except HeadwaterError as error:
            self._failed("delete", error)
            raise
        self._count("delete", "ok")

    def probe(self, prefix: str) -> None:
        """Prove that conditions are honoured; the probe's own calls are not counted."""
        self._store.probe(prefix)

    def close(self) -> None:
        """Let go of connections."""
        self._store.close()


def prove_conditions(store: ObjectStore, prefix: str) -> None:
    """Try every condition that the commit protocol rests on, under keys of its own, and remove them again.

    The list is that of reliability.md 1.6 K. A store that ignores a condition is worse than one that refuses it: two
    writers would both believe that they committed. So whatever does not answer as it must fails the probe.

    Raises
    ------
    SettingsError
        A condition is not honoured (code ``store_unfit``).
    UnavailableError
        The store did not say clearly, however often it was asked.
    """
    base = f"{check_prefix(prefix).removesuffix('/')}/probe-{secrets.token_hex(8)}"
    keys = {name: validate_key(f"{base}/{name}") for name in ("create", "missing", "race")}
    try:
        _prove_create(store, keys["create"])
        _prove_swap(store, keys["create"], keys["missing"])
        _prove_race(store, keys["race"])
        _prove_listing(store, base, [keys["create"], keys["race"]])
    finally:
        for key in keys.values():
            store.delete(key)
    if not _is_listed(store, base, []):
        raise _unfit(f"a deleted object is still listed under {base}")


def _unfit(what: str) -> SettingsError:
    return SettingsError(
        f"the object store cannot be used: {what}",
        hint="use a store with conditional writes: Amazon S3, MinIO since RELEASE.2025-09-07, or a folder",
        code="store_unfit",
    )


def _pause_seconds(attempt: int) -> float:
    return min(0.05 * 2.0**attempt, 1.0)


def _clearly(put: Callable[[], PutOutcome]) -> tuple[PutOutcome, bool]:
    """Put until the store says how it ended; also whether it was put more than once, so that an earlier attempt may have landed."""
    for attempt in range(CLEAR_ATTEMPTS):
        outcome = put()
        if outcome in (PutOutcome.CREATED, PutOutcome.EXISTS):
            return outcome, attempt > 0
        time.sleep(_pause_seconds(attempt))
    raise UnavailableError(
        f"the object store did not say in {CLEAR_ATTEMPTS} attempts how a put of the probe ended", hint="try again when it answers without errors"
    )


def _expect(put: Callable[[], PutOutcome], wanted: PutOutcome, what: str) -> None:
    outcome, is_repeated = _clearly(put)
    if outcome is wanted or (wanted is PutOutcome.CREATED and is_repeated):  # what is read next tells whether an earlier attempt landed
        return
    raise _unfit(what)


def _expect_body(store: ObjectStore, key: str, wanted: bytes, what: str) -> str:
    found = store.get(key)
    if found is None or found.data != wanted:
        raise _unfit(what)
    return found.etag


def _prove_create(store: ObjectStore, key: str) -> None:
    _expect(lambda: store.put_if_absent(key, b"first"), PutOutcome.CREATED, "it refuses to create a new object")
    _expect(lambda: store.put_if_absent(key, b"second"), PutOutcome.EXISTS, "it lets a second create of one key succeed (If-None-Match)")
    _expect_body(store, key, b"first", "it changed an object although it refused the second create")


def _prove_swap(store: ObjectStore, key: str, missing: str) -> None:
    first = _expect_body(store, key, b"first", "it does not return what was written")
    _expect(
        lambda: store.compare_and_swap(key, b"swapped", first),
        PutOutcome.CREATED,
        "it refuses to replace an object whose entity tag matches (If-Match)",
    )
    second = _expect_body(store, key, b"swapped", "it did not replace an object although it said so")
    _expect(lambda: store.compare_and_swap(key, b"stale", first), PutOutcome.EXISTS, "it replaces an object whose entity tag differs (If-Match)")
    _expect_body(store, key, b"swapped", "it changed an object although it refused to")
    _expect(lambda: store.compare_and_swap(missing, b"stale", second), PutOutcome.EXISTS, "it replaces an object that does not exist (If-Match)")
    if store.get(missing) is not None:
        raise _unfit("it created an object although it refused to replace it")


def _prove_race(store: ObjectStore, key: str) -> None:
    barrier = threading.Barrier(RACE_THREADS)

    def create(number: int) -> tuple[PutOutcome, bool]:
        barrier.wait(timeout=30)
        return _clearly(lambda: store.put_if_absent(key, b"racer %d" % number))

    with ThreadPoolExecutor(RACE_THREADS) as pool:
        ended = list(pool.map(create, range(RACE_THREADS)))
    winners = [number for number, (outcome, _) in enumerate(ended) if outcome is PutOutcome.CREATED]
    if not winners and any(is_repeated for _, is_repeated in ended):
        return  # the winner's first attempt landed unheard
    if len(winners) != 1:
        raise _unfit(f"{len(winners)} of {RACE_THREADS} concurrent creates of one key succeeded instead of 1")
    _expect_body(store, key, b"racer %d" % winners[0], "it does not hold the object of the create that succeeded")


def _is_listed(store: ObjectStore, prefix: str, wanted: list[str]) -> bool:
    for attempt in range(CLEAR_ATTEMPTS):
        if [info.key for info in store.list(prefix)] == wanted:
            return True
        time.sleep(_pause_seconds(attempt))
    return False


def _prove_listing(store: ObjectStore, base: str, wanted: list[str]) -> None:
    if not _is_listed(store, base + "/", wanted):
        raise _unfit("a listing does not show what was just written")
    if store.get_range(wanted[0], 2, 3) != b"app":  # of b"swapped"
        raise _unfit("it does not return the range of bytes that was asked for")
