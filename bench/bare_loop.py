"""The bare ceiling of W1: pictures in memory, decoded in threads and embedded batch by batch, with nothing around them.

    python -m bench.bare_loop ENCODER

Decoding threads run ahead of the encoder by two batches, as the embed worker's do; their number and the batch size are the settings that the worker
has. The encoder's threads are what is fastest here, tried at the start: a ceiling that is held back is none.

Takes: an encoder's name, settings from the environment. Gives: ``ready`` on stdout, then for every line with a number of pictures a line of JSON:
seconds, CPU-seconds, and the encoder's threads. Owns: the loop. Never: touches a log, a store or a query.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from bench.feeds import PictureFeed
from bench.machine import gpu_name
from contracts.encoder import Encoder
from contracts.settings import Settings, load_settings
from embedding.open_encoder import open_encoder

AHEAD_BATCHES = 2
TRIED_BATCHES = 4
_SEED = 1


def embed_all(encoder: Encoder, pool: ThreadPoolExecutor, pictures: Sequence[bytes], batch_items: int) -> int:
    """Decode and embed every picture; returns how many vectors came out."""
    waiting: deque[Future[NDArray[np.uint8]]] = deque()
    following = iter(pictures)
    done = 0
    while True:
        while len(waiting) < (1 + AHEAD_BATCHES) * batch_items and (data := next(following, None)) is not None:
            waiting.append(pool.submit(encoder.prepare_picture, data))
        if not waiting:
            return done
        batch = [waiting.popleft().result() for _ in range(min(batch_items, len(waiting)))]
        done += len(encoder.encode_pictures(np.stack(batch)))


def fastest(name: str, settings: Settings, pool: ThreadPoolExecutor, feed: PictureFeed) -> tuple[Encoder, int]:
    """The encoder with the number of threads, from one to one for each core, with which the loop is fastest; each is tried twice."""
    items = settings.embed_batch_items
    tried = [settings.embed_threads] if gpu_name() else range(1, (os.cpu_count() or 1) + 1)  # on a GPU they do nothing
    found: list[tuple[float, int, Encoder]] = []
    for threads in tried:
        encoder = open_encoder(name, settings.model_copy(update={"embed_threads": threads}))
        embed_all(encoder, pool, feed.next_bytes(2 * items), items)
        times = []
        for _ in range(2):
            pictures = feed.next_bytes(TRIED_BATCHES * items)
            began = time.perf_counter()
            embed_all(encoder, pool, pictures, items)
            times.append(time.perf_counter() - began)
        found.append((min(times), threads, encoder))
    _, threads, encoder = min(found, key=lambda tried: tried[0])
    return encoder, threads


def main(arguments: list[str]) -> None:
    """Answer every line of stdin until it ends."""
    settings, feed = load_settings(), PictureFeed(_SEED)
    with ThreadPoolExecutor(settings.decode_children) as pool:
        encoder, threads = fastest(arguments[0], settings, pool, feed)
        print("ready", flush=True)
        for line in sys.stdin:
            pictures = feed.next_bytes(int(line))
            began, spent = time.perf_counter(), time.process_time()
            done = embed_all(encoder, pool, pictures, settings.embed_batch_items)
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - spent
            print(json.dumps({"pictures": done, "seconds": seconds, "cpu_seconds": cpu_seconds, "encoder_threads": threads}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
