"""Captioned pictures for `train map`: found in folders or read from a collection's media log, decoded and encoded, a bounded number of them.

Takes: paths, or engines and a collection; `lite`. Gives: `CaptionedPictures`. Owns: which pictures are taken where there are too many, and that
the newest version of an id counts. Never: holds more than a batch of pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.payloads import PayloadReader
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import DataLossError, RecordError, SettingsError
from contracts.media_item import MediaItem, RecordLimits
from contracts.media_record import read_media_records
from contracts.settings import Settings
from embedding.lite import LiteEncoder
from embedding.ridge_map import CaptionedPictures
from embedding.texts import normalise_text
from ingest.input_item import InputItem, InputRules, RejectedInput
from ingest.sources import open_sources

BATCH_PICTURES = 32
_POLL_SECONDS = 1.0
_MOST_SILENT_POLLS = 30
_OVERFULL = 1.25
Step = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Captioned:
    """One picture with its caption, not decoded; `picture` None where the id's newest version has not both."""

    item_id: str
    picture: bytes | None = None
    caption: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    rank: bytes
    picture_sha256: bytes
    caption: str
    logits: NDArray[np.float32]
    conse: NDArray[np.float32]
    text: NDArray[np.float32]


@dataclass(slots=True)
class Gathered:
    """What was found: `rows` by id, `undecoded` pictures that could not be decoded, `repeated` that were there twice."""

    rows: dict[str, _Row] = field(default_factory=dict)
    undecoded: int = 0
    repeated: int = 0

    def pictures(self) -> CaptionedPictures:
        """As arrays, one row for each distinct picture; equal captions make a group."""
        distinct: dict[bytes, _Row] = {}
        for row in sorted(self.rows.values(), key=lambda row: row.rank):
            distinct.setdefault(row.picture_sha256, row)
        self.repeated = len(self.rows) - len(distinct)
        rows = list(distinct.values())
        if not rows:
            raise SettingsError("no picture with a caption was found", hint="captions are in captions.csv (columns file, caption) or hw_caption")
        _, groups = np.unique([row.caption.casefold() for row in rows], return_inverse=True)
        stacked = [np.stack([getattr(row, name) for row in rows]) for name in ("logits", "conse", "text")]
        return CaptionedPictures(stacked[0], stacked[1], stacked[2], groups.astype(np.int64))


def captioned_files(paths: Sequence[Path], captions: Path | None, settings: Settings) -> tuple[int, Iterator[Captioned]]:
    """Items of whatever `headwater ingest` reads: folders, manifests, tars. Gives the number of folders' files and other sources, too."""
    opened = open_sources(paths, InputRules({}, {}, settings.max_picture_bytes, settings.max_text_bytes), captions)
    total = sum(1 for source in opened.sources for _ in source.units())

    def read() -> Iterator[Captioned]:
        for source in opened.sources:
            for unit in source.units():
                for item in () if isinstance(unit, RejectedInput) else unit.read(0):
                    if isinstance(item, InputItem):
                        has_both = item.content_type.startswith("image/") and item.annotations.caption
                        yield Captioned(item.item_id, item.data, item.annotations.caption or "") if has_both else Captioned(item.item_id)

    return total, read()


def first_captioned(source: Iterator[Captioned], wanted: int) -> list[Captioned]:
    """Items of `source` up to its `wanted`-th with picture and caption, or all there are."""
    first: list[Captioned] = []
    for item in source:
        first.append(item)
        wanted -= item.picture is not None
        if wanted <= 0:
            break
    return first


def captioned_items(engines: Engines, collection: CollectionRecord) -> tuple[int, Iterator[Captioned]]:
    """Items of a collection's media log, from what the log still holds up to its end now. Gives the number of offsets, too."""
    bounds = {p: held for p, held in engines.log.bounds(collection.source_topic).items() if held.next_offset > held.start_offset}
    total = sum(held.next_offset - held.start_offset for held in bounds.values())

    def read() -> Iterator[Captioned]:
        limits = RecordLimits(engines.settings.max_text_bytes)
        payloads = PayloadReader(engines.store, limits)
        for partition, held in bounds.items():  # one after the other: an id lives in one partition, so its versions come in order
            for item in _items(engines, collection, partition, held.start_offset, held.next_offset, limits):
                yield _captioned(item, payloads, collection)

    return total, read()


def _items(engines: Engines, collection: CollectionRecord, partition: int, start: int, end: int, limits: RecordLimits) -> Iterator[MediaItem]:
    reader = engines.log.reader(collection.source_topic, {partition: start})
    try:
        silent = 0
        while reader.position(partition) < end:
            records = [record for record in reader.poll(_POLL_SECONDS) if record.offset < end]
            silent = 0 if records else silent + 1
            if silent > _MOST_SILENT_POLLS:
                raise DataLossError(f"the log gives nothing of {collection.source_topic}/{partition} before offset {end}", hint="check the brokers")
            for items in read_media_records(records, collection, limits):
                yield from (item for item in items if isinstance(item, MediaItem) and item.patch is None)
    finally:
        reader.close()


def _captioned(item: MediaItem, payloads: PayloadReader, collection: CollectionRecord) -> Captioned:
    try:
        if item.parts and not item.is_delete:
            payloads.fill(item)
    except RecordError:
        return Captioned(item.id)
    whole = not item.is_delete and item.picture is not None and item.text
    return Captioned(item.id, item.picture, item.text or "") if whole else Captioned(item.id)


def gather(source: Iterator[Captioned], lite: LiteEncoder, settings: Settings, most: int, on_step: Step) -> Gathered:
    """Decode and encode what a source gives; at most `most` rows stay, chosen by the hash of their ids (about 7 KB each)."""
    found = Gathered()
    highest = b"\xff" * 32
    batch: dict[str, Captioned] = {}
    for item in source:
        on_step(1)
        batch.pop(item.item_id, None)
        found.rows.pop(item.item_id, None)  # the newest version counts
        if item.picture is None or _rank(item.item_id) > highest:
            continue
        batch[item.item_id] = item
        if len(batch) >= BATCH_PICTURES:
            _encode(list(batch.values()), lite, settings, found)
            batch.clear()
        if len(found.rows) > most * _OVERFULL:
            highest = _cut(found, most)
    _encode(list(batch.values()), lite, settings, found)
    if len(found.rows) > most:
        _cut(found, most)
    return found


def _encode(batch: Sequence[Captioned], lite: LiteEncoder, settings: Settings, found: Gathered) -> None:
    pixels, texts, items = [], [], []
    for item in batch:
        try:
            text = normalise_text(item.caption, settings.max_text_bytes)
            picture = lite.prepare_picture(item.picture or b"")
        except RecordError:
            found.undecoded += 1
            continue
        if text:
            pixels.append(picture)
            texts.append(text)
            items.append(item)
    if not items:
        return
    logits = lite.class_logits(np.stack(pixels))
    conse, vectors = lite.mixed_names(logits), lite.encode_texts(texts)
    for at, item in enumerate(items):
        digest = hashlib.sha256(item.picture or b"").digest()
        found.rows[item.item_id] = _Row(_rank(item.item_id), digest, texts[at], logits[at].copy(), conse[at].copy(), vectors[at].copy())


def _cut(found: Gathered, most: int) -> bytes:
    """Keep the `most` rows of lowest rank; gives the highest rank that stays."""
    kept = sorted(found.rows.items(), key=lambda entry: entry[1].rank)[:most]
    found.rows = dict(kept)
    return kept[-1][1].rank


def _rank(item_id: str) -> bytes:
    return hashlib.sha256(item_id.encode()).digest()
