"""The checker, a process of its own: what was acknowledged against what is stored, what is served, and what `headwater verify` says.

    python -m tests.faults.checker COLLECTION --journal FILE... [--query URL] [--allow CODE]      (settings from the environment)

Takes: journals, the collection's name. Gives: an `Account` as JSON on standard output. Owns: the comparison.
Never: takes the word of one side: the store is read by its own manifests, the service by scroll and count, and verify runs as an operator runs it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from backends.catalog.collections import CollectionCatalog
from backends.catalog.manifests import ManifestChain
from backends.catalog.objects import download
from contracts.collection import CollectionRecord
from contracts.deletes import decode_delete_delta
from contracts.errors import HeadwaterError
from contracts.ledger import decode_ledger, untiled
from contracts.object_keys import CollectionKeys
from contracts.segment import FieldPart, read_field_part, read_rows_part
from contracts.settings import load_settings
from contracts.store import ObjectStore
from headwater.client import HeadwaterClient
from headwater.wiring import open_store_alone
from tests.faults.journal import Expected, Journal, read_journals
from tests.faults.load import FIELD, PATCHED, vector_of
from tests.system.processes import HEADWATER

MOST_NAMED = 5
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """One live row, wherever it was found; `vector` only where it was read."""

    id: str
    seq: int | None
    note: int | None
    place: tuple[int, int, int] | None = None
    vector: tuple[float, ...] | None = None


@dataclass
class Account:
    """Figures of one collection, and a sentence for everything that does not agree."""

    acknowledged: int = 0
    live: int = 0
    lost: int = 0
    duplicated: int = 0
    resurrected: int = 0
    stored: int = 0
    served: int | None = None
    verify_exit: int | None = None
    sentences: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return not (self.lost or self.duplicated or self.resurrected or self.sentences)

    def note(self, what: str, places: Iterable[str]) -> None:
        named = sorted(places)
        if named:
            self.sentences.append(f"{what}: {len(named)}, such as {named[:MOST_NAMED]}")


def compare(account: Account, where: str, journal: Journal, found: Sequence[Found]) -> None:
    """Count what is lost, double and back from the dead in one full scan; `where` names it in the sentences."""
    live, deleted = journal.expected()
    unsure = {item_id for item_id, _ in journal.unsure}
    times = Counter(row.id for row in found)
    double = {item_id for item_id, count in times.items() if count > 1}
    missing = live.keys() - times.keys()
    stale = {row.id for row in found if row.id in live and not _agrees(row, live[row.id], row.id in unsure)}
    back = (times.keys() & deleted) - unsure
    unknown = times.keys() - live.keys() - deleted
    account.lost = max(account.lost, len(missing | stale))
    account.duplicated = max(account.duplicated, len(double))
    account.resurrected = max(account.resurrected, len(back))
    account.note(f"{where}: acknowledged and not there", missing)
    account.note(f"{where}: not the newest acknowledged version", stale)
    account.note(f"{where}: more than once", double)
    account.note(f"{where}: live although deleted", back)
    account.note(f"{where}: never acknowledged", unknown - unsure)
    places = Counter(row.place for row in found if row.place is not None)
    account.note(f"{where}: places with two rows", (str(place) for place, count in places.items() if count > 1))
    account.duplicated = max(account.duplicated, sum(count > 1 for count in places.values()))


def _agrees(row: Found, wanted: Expected, is_unsure: bool) -> bool:
    """Whether a row is the newest acknowledged version; one of which another copy may have landed can have that copy's place."""
    if (row.seq, row.note) != (wanted.seq, wanted.note):
        return False
    if row.vector is not None and not np.allclose(row.vector, vector_of(wanted.seq), atol=1e-3):
        return False
    return row.place is None or row.place == wanted.place or is_unsure


# ---- what is stored ----------------------------------------------------------------------------------------------------


def stored_rows(store: ObjectStore, record: CollectionRecord, account: Account) -> list[Found]:
    """Every live row of the newest manifests; a ledger that does not tile is a sentence of the account."""
    out: list[Found] = []
    for partition in range(record.partitions):
        out += _rows_of(store, record, partition, account)
    return out


def _rows_of(store: ObjectStore, record: CollectionRecord, partition: int, account: Account) -> list[Found]:
    index = record.index()
    read = ManifestChain(store, CollectionKeys(record.name, record.incarnation).index(index.name).partition(partition)).head()
    assert read is not None
    manifest = read.manifest
    dead: dict[str, set[int]] = {}
    for entry in manifest.deletes:
        for segment_id, bitmap in decode_delete_delta(download(store, entry), entry.key).bitmaps.items():
            dead.setdefault(segment_id, set()).update(bitmap)
    out = []
    of = next(each for each in index.fields if each.name == FIELD)
    for segment in manifest.segments:
        rows = read_rows_part(download(store, segment.parts["rows"]), segment.segment_id).batch.to_pylist()
        part = read_field_part(download(store, segment.parts[f"field.{FIELD}"]), of, FIELD)
        vectors = dict(zip(part.rows, part.matrix, strict=True)) if isinstance(part, FieldPart) else {}
        for number, row in enumerate(rows):
            if number not in dead.get(segment.segment_id, ()):
                values = row["attributes"]
                vector = tuple(float(each) for each in vectors[number]) if number in vectors else None
                out.append(Found(row["id"], values["seq"], values[PATCHED], (partition, row["offset"], row["item"]), vector))
    runs = [run for entry in manifest.ledger for run in decode_ledger(download(store, entry.object), entry.object.key)]
    holes = untiled(runs, manifest.origin_offset, manifest.checkpoint.media_offset)
    account.note(f"ledger of partition {partition} does not tile its offsets", (str(hole) for hole in holes))
    return out


# ---- what is served, and what verify says ------------------------------------------------------------------------------


def served_rows(client: HeadwaterClient, name: str) -> list[Found]:
    return [Found(hit.id, hit.payload.get("seq"), hit.payload.get(PATCHED)) for hit in client.scroll(name, page_size=500)]


def verified(account: Account, name: str, allowed: frozenset[str] = frozenset()) -> None:
    """Run `headwater verify NAME --json`, and take over what it finds (orphans and other notes are none of a fault's business)."""
    answer = subprocess.run([HEADWATER, "verify", name, "--json"], capture_output=True, text=True, check=False, timeout=300)
    account.verify_exit = answer.returncode
    try:
        document: dict[str, Any] = json.loads(answer.stdout)
    except ValueError:
        account.sentences.append(f"verify ended with {answer.returncode}: {answer.stderr.strip()[-500:]}")
        return
    bad = [each for each in document["findings"] if each["level"] != "note" and each["code"] not in allowed]
    account.note("verify", (f"{each['code']} in partition {each['partition']} at {each['start_offset']}: {each['what']}" for each in bad))
    if answer.returncode and not bad and not allowed & document["counts"].keys():
        account.sentences.append(f"verify ended with {answer.returncode} and names nothing")


def again(read: Callable[[], T], attempts: int = 5) -> T:
    """Read anew what a compaction or a collection replaced meanwhile."""
    for attempt in range(attempts):
        try:
            return read()
        except HeadwaterError:
            if attempt == attempts - 1:
                raise
            time.sleep(0.5)
    raise AssertionError("never reached")


def check(
    store: ObjectStore, record: CollectionRecord, journal: Journal, client: HeadwaterClient | None, allowed: frozenset[str] | None = frozenset()
) -> Account:
    """Take account of one settled collection; `allowed` are codes of verify that this fault leads to, None leaves verify out."""
    account = Account(acknowledged=len(journal.entries), live=len(journal.expected()[0]))
    if not journal.is_done:
        account.sentences.append("the journal is not complete")
    stored = again(lambda: stored_rows(store, record, account))
    account.stored = len(stored)
    compare(account, "stored", journal, stored)
    if client is not None:
        served = served_rows(client, record.name)
        compare(account, "served", journal, served)
        account.served = client.count(record.name)
        if account.served != len(served):
            account.sentences.append(f"count says {account.served}, the scan has {len(served)}")
    if allowed is not None:
        verified(account, record.name, allowed)
    return account


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection")
    parser.add_argument("--journal", type=Path, nargs="+", required=True)
    parser.add_argument("--query", help="URL of a query service that has caught up")
    parser.add_argument("--given-up", default="{}", help="JSON: offsets that an operator called lost, {partition: [start, next]}")
    parser.add_argument("--allow", action="append", default=[], help="a code of verify that is as it should be")
    asked = parser.parse_args()
    with open_store_alone(load_settings()) as store:
        record = CollectionCatalog(store).get(asked.collection)
        client = None if asked.query is None else HeadwaterClient(asked.query)
        journal = read_journals(asked.journal)
        journal.give_up({int(partition): (start, end) for partition, (start, end) in json.loads(asked.given_up).items()})
        account = check(store, record, journal, client, frozenset(asked.allow))
    print(json.dumps(asdict(account)))
    return 0 if account.is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
