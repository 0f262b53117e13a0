"""Background load, a process of its own: one kind of items at a steady rate until its stdin is closed.

    python -m bench.load KIND COLLECTION RATE

Takes: settings from the environment. Gives: ``ready`` on stdout, and at the end one JSON object: sent, seconds, cpu_seconds.
Owns: its pace: what is late is made up for, so that the mean rate holds. Never: waits for acknowledgements while it sends.
"""

from __future__ import annotations

import json
import sys
import threading
import time

from backends.catalog.collections import CollectionCatalog
from bench.feeds import FEEDS
from bench.processes import stop_when_stdin_closes
from contracts.settings import load_settings
from headwater.wiring import open_engines
from ingest.producer import MediaProducer

TICK_SECONDS = 0.01
_SEED = 77


def produce(producer: MediaProducer, kind: str, rate: float, stop: threading.Event) -> dict[str, float]:
    """Send `rate` items a second until `stop` is set; returns what was done."""
    feed = FEEDS[kind](_SEED)
    begin, spent, sent = time.perf_counter(), time.process_time(), 0
    while not stop.is_set():
        due = int((time.perf_counter() - begin) * rate) + 1
        for _ in range(due - sent):
            feed.send(producer, f"load-{kind}-{sent}")
            sent += 1
        stop.wait(max(TICK_SECONDS, begin + sent / rate - time.perf_counter()))
    seconds = time.perf_counter() - begin
    return {"sent": sent, "seconds": round(seconds, 3), "cpu_seconds": round(time.process_time() - spent, 3)}


def main(arguments: list[str]) -> None:
    """Run until stdin is closed."""
    kind, name, rate = arguments[0], arguments[1], float(arguments[2])
    settings, stop = load_settings(), stop_when_stdin_closes()
    with open_engines(settings) as engines, MediaProducer(engines.log, CollectionCatalog(engines.store).get(name), settings) as producer:
        print("ready", flush=True)
        done = produce(producer, kind, rate, stop)
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
