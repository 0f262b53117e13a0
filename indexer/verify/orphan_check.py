"""Objects of a collection that nothing names, and payloads whose key is not their content.

Takes: a listing, what manifests name. Gives: orphans, and which of them are surely dead. Owns: the proof that an object is dead.
Never: deletes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from contracts.object_keys import CollectionKeys, ParsedKey, parse_key
from contracts.store import ObjectInfo, ObjectStore
from indexer.verify.findings import Finding, Findings

PAUSE_SECONDS = 86_400.0
"""No orphan younger than this is deleted: longer than any writer is thought to stand still and then go on."""
_ROLES = {("part", "b"): "builder", ("part", "m"): "compactor", ("archive_tar", "b"): "archiver", ("archive_tar", "m"): "purge"}


@dataclass(frozen=True, slots=True)
class Place:
    """A partition of an index, or (None) of the archive."""

    index: str | None
    partition: int


@dataclass(frozen=True, slots=True)
class Orphan:
    """An object that no kept manifest names; `is_dead` when none ever will."""

    key: str
    size_bytes: int
    place: Place | None
    is_dead: bool


def place_of(parsed: ParsedKey) -> Place | None:
    """Where an object's chain is; None for a kind that manifests do not name."""
    if parsed.kind not in ("part", "archive_tar"):
        return None
    return Place(parsed.fields.get("index"), int(parsed.fields["partition"]))


def is_dead(parsed: ParsedKey, info: ObjectInfo, epochs: Mapping[str, int], now_seconds: float) -> bool:
    """Whether an unnamed object can never be committed any more.

    A writer commits only while the newest manifest holds its epoch, and that has a higher one now. The age is for stores that lie a little.
    """
    role = _ROLES.get((parsed.kind, parsed.fields.get("role", "")))
    older = role is not None and int(parsed.fields["epoch"]) < epochs.get(role, 0)
    return older and now_seconds - info.modified_seconds > PAUSE_SECONDS


def find_orphans(
    infos: Iterable[ObjectInfo], named: Mapping[Place, set[str]], newest: Callable[[Place], tuple[set[str], Mapping[str, int]]], now_seconds: float
) -> list[Orphan]:
    """Objects that no manifest names.

    Parameters
    ----------
    infos : iterable of ObjectInfo
        All objects of the collection; listed after the manifests were read.
    named : mapping of Place to set of str
        Keys that the manifests which were read name.
    newest : callable
        Keys that the manifests which came since name, and the newest epochs by role; asked after the listing has ended.
    now_seconds : float
        Seconds since 1970.
    """
    candidates = []
    for info in infos:
        parsed = parse_key(info.key)
        place = None if parsed is None else place_of(parsed)
        if parsed is None or (place is not None and info.key not in named.get(place, set())):
            candidates.append((info, parsed, place))
    asked = {place: newest(place) for place in {place for _, _, place in candidates} if place is not None and place in named}
    orphans = []
    for info, parsed, place in candidates:
        keys, epochs = asked.get(place, (set(), {})) if place is not None else (set(), {})
        if info.key not in keys:
            orphans.append(Orphan(info.key, info.size_bytes, place, parsed is not None and is_dead(parsed, info, epochs, now_seconds)))
    return orphans


def describe_orphans(orphans: Iterable[Orphan]) -> Iterable[Finding]:
    """A note for each orphan."""
    for orphan in orphans:
        place = orphan.place
        state = "dead: no writer can commit it any more" if orphan.is_dead else "perhaps on its way into a manifest"
        what = f"{orphan.size_bytes} bytes, {state}" if place is not None else f"{orphan.size_bytes} bytes, none of Headwater's keys"
        yield Finding("orphan", what, None if place is None else place.index, None if place is None else place.partition, orphan.key)


def check_claims(store: ObjectStore, keys: CollectionKeys, findings: Findings, tell: Callable[[str, int, int], None]) -> tuple[int, int]:
    """Compare every claim-check payload with the sha256 in its key; how many objects and bytes there were."""
    infos = [info for info in store.list(f"{keys.prefix}claim/") if parse_key(info.key) is not None]
    size_bytes = 0
    for done, info in enumerate(infos):
        tell("payloads", done + 1, len(infos))
        found = store.get(info.key)
        if found is None:
            continue  # purged since
        size_bytes += len(found.data)
        if hashlib.sha256(found.data).hexdigest() != info.key.rpartition("/")[2]:
            findings.add(Finding("object_damaged", f"{len(found.data)} bytes that do not have the sha256 of the payload's key", object=info.key))
    return len(infos), size_bytes
