"""Collections in the store: name chains and collection chains.

Takes: an object store. Gives: collection records by name. Owns: creating, reading, changing, deleting.
Never: creates topics (`headwater.collections` does both in the right order).
"""

from __future__ import annotations

from typing import Any

from backends.catalog.objects import put_settled
from contracts.collection import CollectionRecord, NameRecord
from contracts.errors import CorruptError, NotFoundError, SettingsError, SnapshotError
from contracts.manifest import object_version
from contracts.object_keys import NAMES_PREFIX, CollectionKeys, name_key, name_prefix, parse_key
from contracts.store import ObjectStore


class CollectionCatalog:
    """Reads and writes the two chains that name collections; thread-safe.

    Their versions never change once they are written, so what was read is kept: a role that looks again and again asks for one listing of names, and
    for each collection whether there is a next version.

    Parameters
    ----------
    store : ObjectStore
        Where the chains live.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._names: dict[str, tuple[int, NameRecord]] = {}
        self._read: dict[str, CollectionRecord] = {}

    def _newest(self, prefix: str) -> int:
        return max((object_version(info.key) for info in self.store.list(prefix)), default=0)

    def name(self, name: str) -> NameRecord | None:
        """Newest version of a name, deleted ones included; None for a name that was never used."""
        version = self._newest(name_prefix(name))
        return None if version == 0 else self._name(name, version)

    def _name(self, name: str, version: int) -> NameRecord:
        known = self._names.get(name)
        if known is not None and known[0] == version:
            return known[1]
        key = name_key(name, version)
        found = self.store.get(key)
        if found is None:
            raise SnapshotError(f"{key} is gone", hint="read the name again")
        record: NameRecord = NameRecord.from_bytes(found.data, key)
        self._names[name] = version, record
        return record

    def find(self, name: str) -> CollectionRecord | None:
        """The live collection of that name (aliases followed once), or None."""
        record = self.name(name)
        if record is not None and record.alias is not None:
            record = self.name(record.alias)
        return self._meant(record)

    def _meant(self, record: NameRecord | None) -> CollectionRecord | None:
        if record is None or record.deleted or record.incarnation is None:
            return None
        return self.read(CollectionKeys(record.name, record.incarnation))

    def get(self, name: str) -> CollectionRecord:
        """The live collection of that name.

        Raises
        ------
        NotFoundError
            There is none.
        """
        found = self.find(name)
        if found is None:
            raise NotFoundError(
                f"collection {name!r} does not exist", hint="`headwater collection list` shows what there is", code="collection_not_found"
            )
        return found

    def read(self, keys: CollectionKeys) -> CollectionRecord:
        """Newest version of one incarnation."""
        record = self._read.get(keys.prefix)
        if record is None:
            record = self._version(keys, self._newest(keys.versions_prefix))
            if record is None:
                raise CorruptError(f"{keys.prefix}: the name points here, but there is no collection record")
            self._read[keys.prefix] = record
            return record
        while (following := self._version(keys, record.version + 1)) is not None:
            record = following
        self._read[keys.prefix] = record
        return record

    def _version(self, keys: CollectionKeys, version: int) -> CollectionRecord | None:
        key = keys.version(version)
        found = self.store.get(key) if version else None
        return None if found is None else CollectionRecord.from_bytes(found.data, key)

    def list(self) -> list[CollectionRecord]:
        """All live collections, by name."""
        newest: dict[str, int] = {}
        for info in self.store.list(NAMES_PREFIX):
            if (parsed := parse_key(info.key)) is not None:
                name = parsed.fields["name"]
                newest[name] = max(newest.get(name, 0), object_version(info.key))
        names = {name: self._name(name, version) for name, version in newest.items()}
        targets = [names.get(named.alias) if named.alias is not None else named for named in names.values()]
        found = [self._meant(target) for target in targets]
        unique = {record.incarnation: record for record in found if record is not None}
        return sorted(unique.values(), key=lambda record: record.name)

    def create(self, record: CollectionRecord) -> CollectionRecord:
        """Write a new incarnation and point its name at it.

        Raises
        ------
        SettingsError
            ``collection_exists``: the name is taken, perhaps by someone who was faster.
        """
        keys = CollectionKeys(record.name, record.incarnation)
        current = self.name(record.name)
        if current is not None and not current.deleted:
            raise self._taken(record.name)
        if not put_settled(self.store, keys.version(record.version), record.to_bytes()):
            raise CorruptError(f"{keys.prefix}: this incarnation already exists")
        version = 1 if current is None else current.version + 1
        named = NameRecord(version=version, name=record.name, incarnation=record.incarnation)
        if not put_settled(self.store, name_key(record.name, version), named.to_bytes()):
            raise self._taken(record.name)
        return record

    def update(self, record: CollectionRecord, **changes: Any) -> CollectionRecord:
        """Write the version that follows `record`, with `changes`.

        Raises
        ------
        SnapshotError
            `record` is not the newest version: someone else changed the collection.
        """
        following = CollectionRecord.model_validate({**dict(record), **changes, "version": record.version + 1})
        if not put_settled(self.store, CollectionKeys(record.name, record.incarnation).version(following.version), following.to_bytes()):
            raise SnapshotError(f"collection {record.name!r} was changed by someone else", hint="look at it again, then repeat")
        return following

    def delete(self, name: str) -> CollectionRecord:
        """Mark a name as deleted; its objects are collected later. Returns what it meant."""
        record = self.get(name)
        current = self.name(record.name)
        assert current is not None, "get() read it a moment ago"
        gone = NameRecord(version=current.version + 1, name=record.name, incarnation=None, deleted=True)
        if not put_settled(self.store, name_key(record.name, gone.version), gone.to_bytes()):
            raise SnapshotError(f"collection {name!r} was changed by someone else", hint="look at it again, then repeat")
        return record

    @staticmethod
    def _taken(name: str) -> SettingsError:
        return SettingsError(f"collection {name!r} exists", hint="choose another name, or delete it first", code="collection_exists")
