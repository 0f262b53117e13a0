"""The embed role: an `EmbedWorker` per collection, encoders shared between them.

Takes: engines, collection names. Gives: running workers. Owns: one loaded encoder per name. Never: embeds itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from contracts.collection import CollectionRecord
from contracts.encoder import Encoder
from contracts.engines import Engines
from contracts.errors import SettingsError
from embedding.open_encoder import open_encoder
from indexer.embed_worker import EmbedWorker
from indexer.role import run_collections


class EncoderPool:
    """Opens each encoder once per process (thread-safe)."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._lock = threading.Lock()
        self._encoders: dict[str, Encoder] = {}

    def get(self, name: str) -> Encoder:
        """The encoder of that name, loaded at the first call."""
        with self._lock:
            if name not in self._encoders:
                self._encoders[name] = open_encoder(name, self._engines.settings)
            return self._encoders[name]


def run_embed(engines: Engines, collections: Sequence[str] | None, stop: threading.Event) -> None:
    """Run the embed role until `stop` is set.

    Raises
    ------
    HeadwaterError
        What cannot be mended by trying again.
    """
    encoders = EncoderPool(engines)

    def make(collection: CollectionRecord) -> EmbedWorker:
        index = collection.index()
        names = {field.encoder for field in index.fields if field.encoder is not None}
        if len(names) > 1:
            raise SettingsError(f"index {index.name} of {collection.name} names two encoders: {sorted(names)}", hint="use one encoder per index")
        return EmbedWorker(engines, collection, index, encoders.get(names.pop()) if names else None)

    run_collections(engines, collections, stop, make)
