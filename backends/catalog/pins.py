"""Pins: a reader that needs one manifest for long, such as a backup, keeps it and what it names from garbage collection (docs/formats/pin.md).

    put the pin -> read the boundary -> the version is above it: nothing of it will be deleted until the pin ends

Takes: a version and how long it is needed. Gives: the pin's key. Owns: the order of steps on the reader's side.
Never: keeps a version that may be gone already.
"""

from __future__ import annotations

from ulid import ULID

from backends.catalog.manifests import ManifestChain
from backends.catalog.objects import upload
from contracts import FORMAT_VERSION
from contracts.clock import Clock
from contracts.collection import StoredModel
from contracts.errors import SnapshotError
from contracts.object_keys import PartitionKeys
from contracts.store import ObjectStore

CLOCK_SECONDS = 300.0
"""By how much the clocks of a reader and of the collector may differ."""


class Pin(StoredModel):
    """One pin: the manifest's version, and when the pin ends, in seconds since 1970."""

    format: int = FORMAT_VERSION
    version: int
    until_seconds: int


def pin_version(chain: ManifestChain, version: int, seconds: float, clock: Clock) -> str:
    """Keep a manifest, and every object that it names, for so long; returns the pin's key, to be deleted when it is no longer needed.

    Raises
    ------
    SnapshotError
        The version may have been collected already: take the newest manifest.
    """
    key = chain.keys.pin(str(ULID()))
    upload(chain.store, key, Pin(version=version, until_seconds=int(clock.now_seconds() + seconds)).to_bytes())
    if version <= chain.boundary():  # read after the pin is there: the collector lists pins after it has raised the boundary
        chain.store.delete(key)
        raise SnapshotError(f"{chain.keys.prefix}: version {version} was collected", hint="take the newest manifest")
    return key


def read_pins(store: ObjectStore, keys: PartitionKeys, now_seconds: float) -> tuple[set[int], list[str]]:
    """Pinned versions, and the keys of pins that have ended."""
    versions: set[int] = set()
    ended: list[str] = []
    for info in store.list(keys.pins_prefix):
        found = store.get(info.key)
        if found is None:
            continue
        pin: Pin = Pin.from_bytes(found.data, info.key)
        if pin.until_seconds + CLOCK_SECONDS < now_seconds:
            ended.append(info.key)
        else:
            versions.add(pin.version)
    return versions, ended
