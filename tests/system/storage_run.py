"""What a partition takes in the store after many small commits with updates, deletes and patches: before maintenance, after it, and with it going on.

    .venv/bin/python -m tests.system.storage_run [--commits 500] [--rows 100] [--json FILE]

*Live bytes* are those of one segment with the live rows alone, in the same codes, and its ledger.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from contracts.collection import FieldRecord, own_vector_space
from contracts.vectors_batch import BatchItem
from indexer.compactor import pieces_of
from indexer.train_index import IndexTrainer
from tests.indexer.maintained import KEEP_SECONDS, Site

DIMENSION = 128
TEXT = "a caption of about as many words as people write below a picture, number "


@dataclass
class State:
    """One line of the table."""

    when: str
    objects: int
    bytes: int
    of_live: float
    segments: int
    deltas: int
    ledgers: int
    manifests: int
    unnamed: int
    gets_to_start: int


def field() -> FieldRecord:
    space_id = own_vector_space("vec", DIMENSION, "cosine")
    return FieldRecord(name="vec", source="vector", encoder=None, space_id=space_id, dimension=DIMENSION)


class Stream:
    """Random changes, the same for each run."""

    def __init__(self, rows: int) -> None:
        self.rows, self.choice, self.random = rows, random.Random(11), np.random.default_rng(11)
        self.ids: list[str] = []
        self.live: set[str] = set()
        self.number = 0

    def commit(self) -> list[BatchItem]:
        """Seven new rows of ten, two updates, a delete in ten; patches beside them."""
        items: list[BatchItem] = []
        for _ in range(self.rows):
            kind, known = self.choice.random(), self.choice.choice(self.ids) if self.ids else "id-0"
            self.number += 1
            if kind < 0.7 or not self.ids:
                self.ids.append(f"id-{self.number}")
                items.append(self.row(self.ids[-1]))
            elif kind < 0.85:
                items.append(self.row(known))
            elif kind < 0.95:
                items.append(BatchItem(0, 0, "delete", known))
                self.live.discard(known)
            elif known in self.live:
                items.append(BatchItem(0, 0, "patch", known, patch=json.dumps({"n": self.number})))
        return items

    def row(self, item_id: str) -> BatchItem:
        self.live.add(item_id)
        vector = self.random.standard_normal(DIMENSION)
        vector = (vector / np.linalg.norm(vector)).astype(np.float16)
        return BatchItem(0, 0, "upsert", item_id, vectors={"vec": vector}, text=TEXT + item_id)


def filled(commits: int, rows: int, maintain_every: int, train_at: int) -> tuple[Site, Stream, int]:
    """A partition after that many commits; the most bytes that it took meanwhile."""
    site, stream, most = Site(fields=[field()], compact_fan_in=8, train_rows=max(300, commits * rows // 20)), Stream(rows), 0
    compactor = site.new_compactor()
    for number in range(commits):
        site.feed(*stream.commit())
        assert site.builder.commit() is not None
        if number == train_at:
            found = IndexTrainer(site.engines, site.collection, site.codecs).run(site.builder.manifest, {"vec"}, threading.Event())
            site.codecs.adopt(found.quantizers["vec"])
        site.clock.advance(KEEP_SECONDS / 5)
        if maintain_every and number % maintain_every == 0:
            while compactor.compact() is not None:
                pass
            site.collect()
            most = max(most, size_of(site)[1])
    return site, stream, most


def maintain(site: Site) -> None:
    compactor = site.new_compactor()
    while compactor.compact() is not None:
        pass
    site.clock.advance(KEEP_SECONDS)
    site.collect()


def size_of(site: Site) -> tuple[int, int]:
    found = [info.size_bytes for info in site.store.list(site.source.keys.prefix)]
    return len(found), sum(found)


def live_bytes(site: Site) -> int:
    """Bytes of all live rows in one segment, made by the compactor's own code."""
    compactor = site.new_compactor()
    manifest = compactor.committer.look().manifest
    compactor.deletes.load(manifest)
    rewritten = compactor._rewrite(manifest, pieces_of(manifest), 0)
    assert rewritten.entry is not None
    return rewritten.entry.size_bytes + rewritten.ledger.object.size_bytes


def state(when: str, site: Site, live: int) -> State:
    objects, size = size_of(site)
    read = site.chain.head()
    assert read is not None
    manifest = read.manifest
    parts = sum(len(segment.parts) for segment in manifest.segments)
    counts = (len(manifest.segments), len(manifest.deletes), len(manifest.ledger), len(site.versions()), len(site.unreferenced()))
    return State(when, objects, size, round(size / live, 2), *counts, 3 + parts + len(manifest.deletes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=500)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    lines: list[State] = []
    train_at = asked.commits // 10
    site, _, _ = filled(asked.commits, asked.rows, 0, train_at)
    before = state("after the commits", site, 1)
    maintain(site)
    after = state("after maintenance", site, 1)
    live = live_bytes(site)
    for each in (before, after):
        each.of_live = round(each.bytes / live, 2)
        lines.append(each)
    steady, _, most = filled(asked.commits, asked.rows, 10, train_at)
    lines.append(state("maintained every 10 commits", steady, live))
    print(f"{asked.commits} commits of {asked.rows} changes; live rows {len(site.read().live)}, live bytes {live:,}; most bytes under way {most:,}")
    names = list(asdict(lines[0]))
    print(" | ".join(names))
    for line in lines:
        print(" | ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in asdict(line).values()))
    if asked.json is not None:
        asked.json.write_text(json.dumps({"live_bytes": live, "most_bytes_under_way": most, "states": [asdict(line) for line in lines]}, indent=1))


if __name__ == "__main__":
    main()
