"""A query node that waits at the start line: the interpreter is up and everything is imported, nothing is opened.

    python -m bench.cold_node                       at the first line on stdin: what `headwater run query` does; an answer when it begins
    python -m bench.cold_node memory COLLECTION     load a collection, and answer with the bytes that were counted and those that the process took

What an import costs is the interpreter's start, also where a library puts it off: what serving would import at its first moment is imported here.

Takes: settings from the environment. Gives: a query service, or one JSON object. Owns: nothing. Never: loads anything before it is told to.
"""

from __future__ import annotations

import json
import sys
import time

import pydantic.v1  # noqa: F401 - FastAPI asks it about every route
import uvicorn.lifespan.off  # noqa: F401
import uvicorn.loops.auto  # noqa: F401
import uvicorn.protocols.http.auto  # noqa: F401

import backends.kafka_log  # noqa: F401
import query.query_role  # noqa: F401
from backends.catalog.collections import CollectionCatalog
from bench.processes import memory_mib, stop_when_stdin_closes
from contracts.settings import Settings, load_settings
from headwater.logging_setup import set_up_logging
from headwater.run_roles import RoleRunner, role
from headwater.wiring import open_engines
from query.collection_view import CollectionView
from query.node import Node
from query.one_heap import use_one_heap


def serve(settings: Settings) -> None:
    """Run the query role until stdin is closed."""
    use_one_heap()
    with open_engines(settings) as engines, RoleRunner({"query": role("query", engines)}, settings.stop_seconds) as runner:
        stop = stop_when_stdin_closes()
        while not stop.wait(0.2):
            runner.check()


def weigh(settings: Settings, name: str) -> dict[str, object]:
    """Load a collection, without a service around it; counted bytes, and memory before and after."""
    use_one_heap()
    with open_engines(settings) as engines:
        node = Node.of(engines)
        view = CollectionView(engines, CollectionCatalog(engines.store).get(name), node)
        before = memory_mib(None)
        view.start()
        while not view.ready:
            time.sleep(0.05)
        time.sleep(2.0)  # until the graph over the centroids is built
        view.observe()
        answer = {"counted_mib": round(node.memory.used_bytes / 2**20, 1), "before": before, "after": memory_mib(None)}
        view.stop()
        node.pool.close()
    return answer


def main(arguments: list[str]) -> None:
    """Wait for the start, then run."""
    settings = load_settings()
    set_up_logging(settings)
    if arguments[:1] == ["memory"]:
        print(json.dumps(weigh(settings, arguments[1])), flush=True)
        return
    print("ready", flush=True)
    sys.stdin.readline()
    print("go", flush=True)
    serve(settings)


if __name__ == "__main__":
    main(sys.argv[1:])
