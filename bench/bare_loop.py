"""The bare ceiling of W1: pictures in memory, decoded in threads and embedded batch by batch, with nothing around them.

    python -m bench.bare_loop ENCODER

Decoding threads run ahead of the encoder by two batches, as the embed worker's do; threads and batch size are the settings that the worker has.

Takes: an encoder's name, settings from the environment. Gives: ``ready`` on stdout, then for every line with a number of pictures a line of JSON:
seconds, and CPU-seconds. Owns: the loop. Never: touches a log, a store or a query.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from bench.feeds import PictureFeed
from contracts.encoder import Encoder
from contracts.settings import load_settings
from embedding.open_encoder import open_encoder

AHEAD_BATCHES = 2
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


def main(arguments: list[str]) -> None:
    """Answer every line of stdin until it ends."""
    settings = load_settings()
    encoder, feed = open_encoder(arguments[0], settings), PictureFeed(_SEED)
    with ThreadPoolExecutor(settings.decode_children) as pool:
        embed_all(encoder, pool, feed.next_bytes(2 * settings.embed_batch_items), settings.embed_batch_items)
        print("ready", flush=True)
        for line in sys.stdin:
            pictures = feed.next_bytes(int(line))
            began, spent = time.perf_counter(), time.process_time()
            done = embed_all(encoder, pool, pictures, settings.embed_batch_items)
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - spent
            print(json.dumps({"pictures": done, "seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
