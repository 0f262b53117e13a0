"""The embed role: an `EmbedWorker` per index of a collection, encoders shared between them.

Takes: engines, collection names. Gives: running workers. Owns: the decoding processes, shared too. Never: embeds itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import SettingsError
from embedding.decode_pool import DecodePool
from embedding.open_encoder import shared_encoder
from indexer.embed_worker import EmbedWorker
from indexer.role import run_collections


def run_embed(engines: Engines, collections: Sequence[str] | None, stop: threading.Event, *, is_alone: bool = False) -> None:
    """Run the embed role until `stop` is set; a process in which it `is_alone` ends with its error once no collection is left to work on.

    Raises
    ------
    HeadwaterError
        What cannot be mended by trying again.
    """

    def make(collection: CollectionRecord) -> EmbedWorker:
        index = collection.index()
        names = {field.encoder for field in index.fields if field.encoder is not None}
        if len(names) > 1:
            raise SettingsError(f"index {index.name} of {collection.name} names two encoders: {sorted(names)}", hint="use one encoder per index")
        return EmbedWorker(engines, collection, index, shared_encoder(names.pop(), engines.settings) if names else None, pool)

    with DecodePool(engines.settings) as pool:
        run_collections(engines, collections, stop, make, stage="embed", ends_without_work=is_alone, each_index=True)
