"""A TCP proxy that can be told to fail: real processes talk through it, so no wrapper is needed inside them.

Takes: an upstream address and, while bytes flow, what each direction's `Line` says. Gives: a port on loopback. Owns: a thread with its event loop.
Never: understands what it carries (`tests.faults.http_proxy` does), or loses a byte that it does not say it loses: a silent line holds bytes back,
as TCP would send them again, and delivers them when it is open again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

HOST = "127.0.0.1"
READ_BYTES = 64 * 1024
LOOK_SECONDS = 0.01  # how often a held line looks whether it is open again: a Line is changed from another thread, without an event
HELD_CHUNKS = 64  # then the sender's own buffers fill, as on a real line


@dataclass
class Line:
    """How one direction behaves; its fields may be changed at any time, and count for connections that are open already."""

    is_silent: bool = False
    """Nothing comes through; the sender is not told."""
    delay_seconds: float = 0.0
    """Later by this much, in the same order."""
    bytes_per_second: float = 0.0
    """0 is no limit."""
    slice_bytes: int = 0
    """Most bytes that are sent at once, with a pause after each; 0 sends what is there."""
    slice_pause_seconds: float = 0.0
    close_delay_seconds: float = 0.0
    """The end of the stream is passed on later by this much (slow close)."""
    cut_after_bytes: int | None = None
    """The connection is closed in both directions when this many bytes have come through."""


class Proxy:
    """Listens on loopback and hands every connection to `_serve`; the methods are for other threads.

    Parameters
    ----------
    upstream : tuple of str and int
        Host and port that connections are passed to.
    port : int
        Port to listen on; 0 is a free one.
    """

    def __init__(self, upstream: tuple[str, int], port: int = 0) -> None:
        self.upstream = upstream
        self.port = port
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty proxy", daemon=True)
        self._thread.start()
        self.listen()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def listen(self) -> None:
        """Take connections, at the start and after `refuse`."""
        self._run(self._listen())

    def refuse(self) -> None:
        """Give up the port: new connections are refused, open ones go on."""
        self._run(self._refuse())

    def reset(self) -> int:
        """Reset every open connection on both sides (RST, not FIN); gives how many ends were open."""
        return self._run(self._reset())

    def close(self) -> None:
        """Reset everything and end the thread."""
        if not self._thread.is_alive():
            return
        self._run(self._refuse())
        self._run(self._reset())
        self._run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, HOST, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _reset(self) -> int:
        writers = [writer for writer in self._writers if not writer.is_closing()]
        for writer in writers:
            abort(writer)
        return len(writers)

    async def _end_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):  # a task that ends as cancelled is told with a traceback
            abort(writer)  # the upstream is gone, resets, or we end: so do we
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.upstream)
        self._writers.add(writer)
        return reader, writer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class TcpProxy(Proxy):
    """Passes bytes both ways; `up` is the line to the server, `down` the one back.

    Parameters
    ----------
    upstream, port
        As in `Proxy`.
    """

    def __init__(self, upstream: tuple[str, int], port: int = 0) -> None:
        self.up, self.down = Line(), Line()
        super().__init__(upstream, port)

    def heal(self) -> None:
        """Both lines are good again; what was held is delivered."""
        for line in (self.up, self.down):
            line.__init__()  # type: ignore[misc]  # the pumps hold these very objects

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await self._connect()
        pumps = [asyncio.ensure_future(_pump(reader, up_writer, self.up)), asyncio.ensure_future(_pump(up_reader, writer, self.down))]
        try:
            await asyncio.gather(*pumps)
        except _CutError:
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            self._writers.discard(up_writer)
            (abort if writer.is_closing() else asyncio.StreamWriter.close)(up_writer)


class _CutError(Exception):
    """A line has carried as many bytes as it may."""


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line) -> None:
    """Read at once and send when it is due, so that a delay does not add up over the pieces of one message."""
    loop = asyncio.get_running_loop()
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD_CHUNKS)

    async def fill() -> None:
        while True:
            data = await reader.read(READ_BYTES)
            await held.put((loop.time() + line.delay_seconds, data))
            if not data:
                return

    filling, getting = asyncio.ensure_future(fill()), asyncio.ensure_future(held.get())
    try:
        passed = 0
        while True:
            await asyncio.wait({getting, filling}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done() and filling.done():
                filling.result()  # a reset of the sender is one for the receiver
            due, data = await getting
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                await asyncio.sleep(line.close_delay_seconds)
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            passed = await _send(data, writer, line, passed)
            getting = asyncio.ensure_future(held.get())
    finally:
        filling.cancel()
        getting.cancel()


async def _send(data: bytes, writer: asyncio.StreamWriter, line: Line, passed: int) -> int:
    """Send one piece as the line allows; gives how many bytes of this connection have passed by now."""
    while data:
        while line.is_silent:
            await asyncio.sleep(LOOK_SECONDS)
        most = line.slice_bytes or len(data)
        if line.bytes_per_second:
            most = min(most, max(1, int(line.bytes_per_second * 0.05)))
        if line.cut_after_bytes is not None:
            most = min(most, line.cut_after_bytes - passed)
        if most > 0:
            writer.write(data[:most])
            await writer.drain()
            passed, data = passed + most, data[most:]
        if line.cut_after_bytes is not None and passed >= line.cut_after_bytes:
            raise _CutError
        pause = line.slice_pause_seconds if line.slice_bytes else 0.0
        if line.bytes_per_second:
            pause += most / line.bytes_per_second
        await asyncio.sleep(pause)
    return passed


def abort(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST: with a linger of zero the kernel throws away what was not sent (socket(7))."""
    held: Any = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
