"""The query role: loads collections, serves HTTP, until it is told to stop.

Takes: engines, a stop event. Gives: the bound port through `on_ready`. Owns: the socket, the server's thread, the search threads.
Never: installs signal handlers; the caller's event stops it.
"""

from __future__ import annotations

import errno
import gc
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn

from contracts.engines import Engines
from contracts.errors import HeadwaterError, SettingsError
from contracts.settings import Settings
from embedding.decode_pool import DecodePool
from query.discovery import Collections
from query.http_app import build_app
from query.pipeline import Pipeline

logger = logging.getLogger(__name__)

BACKLOG = 1024
CHECK_SECONDS = 1.0
COLLECT_AFTER = (10_000, 20, 20)
"""Objects that may be made, and not go, before the youngest are looked at; rounds of those before the older ones are, and of those before all are."""


def run_query(engines: Engines, stop: threading.Event, on_ready: Callable[[int], None] | None = None) -> None:
    """Serve all collections until `stop` is set.

    Parameters
    ----------
    engines : Engines
        Log, store, settings, metrics, clock.
    stop : threading.Event
        Ends the role.
    on_ready : callable, optional
        Called once with the port, as soon as it answers; collections may still be loading (`/readyz` tells).

    Raises
    ------
    SettingsError
        The address is taken or not ours.
    HeadwaterError
        The server or a collection's thread ended by mistake.
    """
    spare_the_collector()
    listening = bind(engines.settings)
    collections = Collections(engines)
    try:
        collections.start()  # first: they are listed and loaded while the server is put together
        decoding = DecodePool(engines.settings)  # of its own: a question does not wait behind what is being indexed; starts at the first picture
        pipeline = Pipeline(engines, decoding)
        with decoding, ThreadPoolExecutor(engines.settings.query_threads, thread_name_prefix="search") as pool:
            server = uvicorn.Server(_config(engines, build_app(engines, collections, pipeline, pool)))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="http", daemon=True)
            warm = threading.Thread(target=_warm, args=(collections, pipeline, stop), name="warm", daemon=True)
            for started in (thread, warm):
                started.start()
            try:
                _await_start(server, thread, stop)
                if server.started and on_ready is not None:
                    on_ready(listening.getsockname()[1])
                while not stop.wait(CHECK_SECONDS):
                    collections.check()
                    if not thread.is_alive():
                        raise HeadwaterError("the HTTP server ended by itself", hint="look at the log above")
            finally:
                server.should_exit = True
                thread.join(engines.settings.stop_seconds)
    finally:
        collections.stop()
        listening.close()


def spare_the_collector() -> None:
    """Let Python's garbage collector look less often; for the whole process.

    An answer is a few hundred objects that go by themselves when it is sent. By default every third answer of a batch made the collector look at
    some, and one in hundreds at all that the process keeps, which took a third of a batch's time.
    """
    gc.set_threshold(*COLLECT_AFTER)


def _await_start(server: uvicorn.Server, thread: threading.Thread, stop: threading.Event) -> None:
    while not server.started and thread.is_alive() and not stop.is_set():
        stop.wait(0.01)


def bind(settings: Settings) -> socket.socket:
    """A listening socket at the settings' address.

    Raises
    ------
    SettingsError
        ``port_taken`` or ``address_invalid``.
    """
    host, port = settings.query_host, settings.query_port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise SettingsError(f"query_host {host!r} is no address: {error}", hint="set HEADWATER_QUERY_HOST", code="address_invalid") from None
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} of {host} is taken",
                hint="stop what listens there, or set HEADWATER_QUERY_PORT to another port (0: any)",
                code="port_taken",
            ) from None
        raise SettingsError(
            f"cannot listen on {host}, port {port}: {error.strerror}", hint="set HEADWATER_QUERY_HOST and _PORT", code="address_invalid"
        ) from None
    return listening


def _config(engines: Engines, app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, int(engines.settings.stop_seconds)),
        backlog=BACKLOG,
        ws="none",  # there are no web sockets, and looking for a library of them takes as long as listing the collections
        lifespan="off",
    )


def _warm(collections: Collections, pipeline: Pipeline, stop: threading.Event) -> None:
    """Open the encoders of the served fields before the first query needs them."""
    while not stop.is_set():
        for view in collections.views():
            pipeline.encoders.warm([field.encoder for field in view.index.fields if field.encoder is not None])
        stop.wait(CHECK_SECONDS)
