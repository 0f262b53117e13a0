"""The account of a run: what the producer's journal says should be there against what is served and what is stored.

Takes: a journal, a query service, the store. Gives: an `Account`, with what is lost, doubled or wrong. Owns: the comparison.
Never: takes the word of one side: the service is asked by count and by scan, the store is read byte by byte.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from headwater.client import HeadwaterClient
from tests.indexer.stored import read_partition
from tests.system.stream import Acknowledged, newest, next_offsets


@dataclass
class Account:
    """Numbers of one run, and every sentence about what does not agree (`faults`; none is right)."""

    acknowledged: int = 0
    expected: int = 0
    counted: int = 0
    scanned: int = 0
    stored: int = 0
    lost: int = 0
    doubled: int = 0
    segments: int = 0
    manifests: int = 0
    claims: int = 0
    faults: list[str] = field(default_factory=list)

    def check(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.faults.append(sentence)


def scan(client: HeadwaterClient, collection: str, page_size: int = 100) -> Counter[str]:
    """How often each id comes in a full scan."""
    return Counter(hit.id for hit in client.scroll(collection, page_size=page_size))


def doubled_in_pages(client: HeadwaterClient, collection: str, page_size: int = 500) -> int:
    """Ids that come twice in one page of a scan.

    A page is one snapshot; between two pages of a stream that flows, an update may move an id from a page that was read to one that will be.
    """
    hits, doubled = client.scroll(collection, page_size=page_size), 0
    while page := [hit.id for hit in itertools.islice(hits, page_size)]:
        doubled += len(page) - len(set(page))
    return doubled


def settled(engines: Engines, collection: CollectionRecord, acknowledged: Sequence[Acknowledged]) -> bool:
    """True when the committed checkpoint of every partition is behind the last acknowledged record."""
    ends = next_offsets(acknowledged)
    return all(read_checkpoint(engines, collection, partition) >= end for partition, end in ends.items())


def read_checkpoint(engines: Engines, collection: CollectionRecord, partition: int) -> int:
    from backends.catalog.manifests import ManifestChain
    from contracts.object_keys import CollectionKeys

    keys = CollectionKeys(collection.name, collection.incarnation).index(collection.index().name).partition(partition)
    read = ManifestChain(engines.store, keys).head()
    assert read is not None
    return read.manifest.checkpoint.media_offset


def take_account(engines: Engines, collection: CollectionRecord, client: HeadwaterClient, acknowledged: Sequence[Acknowledged]) -> Account:
    """Compare the journal with the served and the stored state; call it when the state is settled."""
    wanted = newest(acknowledged)
    account = Account(acknowledged=len(acknowledged), expected=len(wanted))
    _check_served(account, client, collection.name, set(wanted))
    _check_stored(account, engines, collection, acknowledged)
    return account


def _check_served(account: Account, client: HeadwaterClient, name: str, wanted: set[str]) -> None:
    account.counted = client.count(name)
    found = scan(client, name)
    account.scanned = len(found)
    twice = [item_id for item_id, times in found.items() if times > 1]
    account.lost = len(wanted - set(found))
    account.doubled = len(twice)
    account.check(account.counted == len(wanted), f"count says {account.counted}, {len(wanted)} ids are live")
    account.check(not twice, f"in the scan more than once: {sorted(twice)[:5]}")
    account.check(set(found) <= wanted, f"in the scan although deleted: {sorted(set(found) - wanted)[:5]}")
    account.check(wanted <= set(found), f"not in the scan: {sorted(wanted - set(found))[:5]}")


def _check_stored(account: Account, engines: Engines, collection: CollectionRecord, acknowledged: Sequence[Acknowledged]) -> None:
    wanted = newest(acknowledged)
    live: dict[str, tuple[int, int, int]] = {}
    texts: dict[str, str | None] = {}
    for partition in range(collection.partitions):
        stored = read_partition(engines, collection, partition)
        account.stored += stored.live_rows
        account.segments += len(stored.manifest.segments)
        account.manifests += stored.manifest.version
        account.claims += stored.manifest.epochs.builder
        for item_id, (offset, item) in stored.live.items():
            account.check(item_id not in live, f"{item_id} is live in two partitions")
            live[item_id] = (partition, offset, item)
        texts |= stored.texts
        account.check(stored.is_tiled(), f"the ledger of partition {partition} does not tile origin to checkpoint")
        _check_verdicts(account, partition, stored.verdicts(), acknowledged)
    places = list(live.values())
    account.check(len(places) == len(set(places)), "a (partition, offset, item) is stored twice")
    right = {item_id: (entry.partition, entry.offset, 0) for item_id, entry in wanted.items()}
    differ = sorted(item_id for item_id in live.keys() | right.keys() if live.get(item_id) != right.get(item_id))
    account.check(not differ, f"stored rows differ from the newest records of {len(differ)} ids, such as {differ[:5]}")
    wrong = sorted(item_id for item_id, entry in wanted.items() if texts.get(item_id) != entry.caption)
    account.check(not wrong, f"stored captions are not the newest of {len(wrong)} ids, such as {wrong[:5]}")


def _check_verdicts(account: Account, partition: int, verdicts: dict[tuple[int, int], str], acknowledged: Sequence[Acknowledged]) -> None:
    """Every acknowledged record has exactly one verdict of its kind, and nothing else has one; rows that compaction drops for a delete say so."""
    mine = [entry for entry in acknowledged if entry.partition == partition]
    deleted_at = {entry.id: entry.offset for entry in mine if entry.op == "delete"}
    allowed = {(e.offset, 0): ("row" if e.op == "upsert" else "delete", "superseded") for e in mine}
    allowed |= {(e.offset, 0): ("row", "superseded", "deleted") for e in mine if e.op == "upsert" and deleted_at.get(e.id, -1) > e.offset}
    account.check(verdicts.keys() == allowed.keys(), f"partition {partition}: verdicts for other records than were acknowledged")
    wrong = [(place, verdict) for place, verdict in verdicts.items() if verdict not in allowed.get(place, ())]
    account.check(not wrong, f"partition {partition}: wrong verdicts, such as {wrong[:5]}")
