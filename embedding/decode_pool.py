"""Decoding in child processes: a picture that kills its decoder is rejected, and nobody else notices.

Each child (`embedding.decode_child`) has one picture at a time, so that it is known whose fault an end was. A picture whose
child died, hung or ran out of memory is tried once more, alone in a fresh child; only then it is rejected.

Takes: pictures, recipes, limits. Gives: pixels and thumbnails. Owns: the children.
Never: parses a stranger's byte itself, or rejects a picture because a child could not be started.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from contracts.encoder import PictureRecipe
from contracts.errors import HeadwaterError, RecordError, UnavailableError
from contracts.settings import Settings
from embedding.decode_child import ANSWER, DONE, NO_MEMORY, PREPARE, READY, REJECTED, REQUEST, THUMBNAIL, ChildSettings, send_parts

logger = logging.getLogger(__name__)

CHILD_MODULE = "embedding.decode_child"
START_SECONDS = 60.0
"""How long a child may take to start; 0.15 s on an idle machine."""
START_TRIES = 3
RETRY_SECONDS = 1.0
END_SECONDS = 1.0
"""How long a child that closed its connection is waited for, to learn how it ended."""
MOST_THUMBNAIL_BYTES = 4096 * 4096 * 3


class DecodePool:
    """A few children that decode pictures. Thread-safe; a context: leaving it ends the children.

    Parameters
    ----------
    settings : Settings
        `decode_children`, `decode_memory_bytes`, `decode_seconds`, `max_picture_bytes`, `max_picture_pixels`.
    child_module : str
        Module that a child runs.

    Notes
    -----
    Children start when they are first needed (`warm` starts them ahead), and no more than are busy at a time. Pixels come back through
    the socket: 150 KB cost this process 0.06 ms, through shared memory 0.08.
    """

    def __init__(self, settings: Settings, child_module: str = CHILD_MODULE) -> None:
        self._settings, self._module = settings, child_module
        self._executor = ThreadPoolExecutor(settings.decode_children, thread_name_prefix="decode-child")
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._alive: set[_Child] = set()
        self._warming = threading.Lock()
        self._closed = threading.Event()

    def warm(self) -> None:
        """Start every child now; UnavailableError where none can be started."""
        with self._warming:
            starting = [self._executor.submit(self._start) for _ in range(self._settings.decode_children - len(self._alive))]
            for child in starting:
                self._give_back(child.result())

    def prepare(self, data: bytes, recipe: PictureRecipe) -> NDArray[np.uint8]:
        """Decode one picture by a recipe.

        Returns
        -------
        NDArray[np.uint8]
            shape ``recipe.shape``, RGB.

        Raises
        ------
        RecordError
            As `embedding.pictures.open_picture`; and ``decode_crashed``, ``decode_timeout``, ``decode_memory`` after a second try alone.
        UnavailableError
            No child can be started.
        """
        return self.submit(data, recipe).result()

    def submit(self, data: bytes, recipe: PictureRecipe) -> Future[NDArray[np.uint8]]:
        """Have one picture decoded, shape ``recipe.shape``; the future ends as `prepare` does. First come, first served."""
        return self._executor.submit(self._prepare, data, recipe)

    def thumbnail(self, data: bytes, size_pixels: int) -> bytes:
        """Make a JPEG whose longer side has at most `size_pixels` (1 to 4096); raises as `prepare`."""
        return self._executor.submit(self._run, THUMBNAIL, str(size_pixels), data, MOST_THUMBNAIL_BYTES).result().tobytes()

    def close(self) -> None:
        """End the children; what waits is cancelled."""
        self._closed.set()
        with self._lock:
            children = list(self._alive)
        for child in children:
            child.hang_up()  # an idle child ends by itself, a busy one's picture fails
        self._executor.shutdown(wait=True, cancel_futures=True)
        for child in list(self._alive):  # with those that had begun to start
            child.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, data: bytes, recipe: PictureRecipe) -> NDArray[np.uint8]:
        pixels = self._run(PREPARE, _told(recipe), data, recipe.size_bytes)
        if pixels.size != recipe.size_bytes:
            raise RecordError("decode_crashed", f"its decoding process gave {pixels.size} bytes of pixels, not {recipe.size_bytes}")
        return pixels.reshape(recipe.shape)

    def _run(self, kind: int, told: str, data: bytes, most_bytes: int) -> NDArray[np.uint8]:
        child = self._borrow()
        try:
            answer = child.ask(kind, told, data, most_bytes)
        except _ChildFailedError as failed:
            self._bury(child)
            logger.warning("a decoding process ended (%s) with a picture of %d bytes; it is tried again, alone", failed, len(data))
            return self._run_again(kind, told, data, most_bytes)
        except BaseException:
            self._give_back(child)
            raise
        self._give_back(child)
        return answer

    def _run_again(self, kind: int, told: str, data: bytes, most_bytes: int) -> NDArray[np.uint8]:
        child = self._start()
        try:
            answer = child.ask(kind, told, data, most_bytes)
        except _ChildFailedError as failed:
            self._bury(child)
            if self._closed.is_set():
                raise UnavailableError("decoding was stopped") from None
            raise RecordError(failed.reason, f"{failed}, twice") from None
        except BaseException:
            self._give_back(child)
            raise
        self._give_back(child)
        return answer

    def _borrow(self) -> _Child:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._start()

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            self._idle.append(child)

    def _bury(self, child: _Child) -> None:
        child.end()
        with self._lock:
            self._alive.discard(child)

    def _start(self) -> _Child:
        for left in reversed(range(START_TRIES)):
            if self._closed.is_set():
                raise UnavailableError("decoding was stopped")
            try:
                child = _Child(self._settings, self._module)
            except (OSError, _ChildFailedError) as error:
                logger.warning("a decoding process does not start: %s", error)
                reason = str(error)
            else:
                with self._lock:
                    if not self._closed.is_set():  # `close` hangs up on what it finds here
                        self._alive.add(child)
                        return child
                child.end()
                raise UnavailableError("decoding was stopped")
            if left:
                self._closed.wait(RETRY_SECONDS)
        raise UnavailableError(f"no decoding process starts: {reason}", hint="raise decode_memory_bytes, or free memory on this machine")


@functools.lru_cache(maxsize=64)
def _told(recipe: PictureRecipe) -> str:
    return recipe.to_json()


class _ChildFailedError(HeadwaterError):
    """A child died, took too long, or needs more memory than it may have."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Child:
    """One process and the socket to it; used by one thread at a time."""

    def __init__(self, settings: Settings, module: str) -> None:
        self._seconds, self._memory_bytes = settings.decode_seconds, settings.decode_memory_bytes
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self._socket, theirs = socket.socketpair()
        told = ChildSettings(
            theirs.fileno(), settings.decode_memory_bytes, settings.decode_seconds, settings.max_picture_bytes, settings.max_picture_pixels
        )
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-S", "-P", "-m", module, json.dumps(asdict(told))],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._stderr,
                    env={"PYTHONPATH": os.pathsep.join(path or str(os.curdir) for path in sys.path), "OPENBLAS_NUM_THREADS": "1"},
                    start_new_session=True,  # Ctrl-C ends the parent, which then ends its children in order
                )
        except BaseException:
            self._socket.close()
            self._stderr.close()
            raise
        try:
            how, _ = self._receive(time.monotonic() + START_SECONDS, 0)
            if how != READY:
                raise _ChildFailedError("decode_crashed", "it answers before it was asked")
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ask(self, kind: int, told: str, data: bytes, most_bytes: int) -> NDArray[np.uint8]:
        """Have one picture worked on; gives bytes, shape (n,); `_ChildFailedError` where the process is of no use afterwards."""
        deadline = time.monotonic() + self._seconds
        description = told.encode()
        try:
            self._socket.settimeout(self._seconds)
            send_parts(self._socket, REQUEST.pack(kind, len(description), len(data)) + description, data)
        except TimeoutError:
            raise self._timeout() from None
        except OSError:
            raise self._died() from None
        how, body = self._receive(deadline, most_bytes)
        if how == REJECTED:
            reason, _, message = body.tobytes().decode().partition("\n")
            raise RecordError(reason, message)
        if how == NO_MEMORY:
            raise _ChildFailedError("decode_memory", f"decoding it takes more than {self._memory_bytes} bytes of memory")
        if how != DONE:
            raise _ChildFailedError("decode_crashed", "its decoding process answered what nobody asked")
        return body

    def hang_up(self) -> None:
        """Close the connection from any thread; the process ends when it notices."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already

    def end(self) -> None:
        """Kill the process, if it still runs, and let go of everything."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._stderr.close()

    def _receive(self, deadline: float, most_bytes: int) -> tuple[int, NDArray[np.uint8]]:
        how, size_bytes = ANSWER.unpack(self._exactly(ANSWER.size, deadline).tobytes())
        if size_bytes > max(most_bytes, 4096):
            raise _ChildFailedError("decode_crashed", f"its decoding process answered with {size_bytes} bytes")
        return how, self._exactly(size_bytes, deadline)

    def _exactly(self, size_bytes: int, deadline: float) -> NDArray[np.uint8]:
        body = np.empty(size_bytes, np.uint8)
        rest = memoryview(body)  # type: ignore[arg-type]
        while rest:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._timeout()
            try:
                self._socket.settimeout(left)
                count = self._socket.recv_into(rest)
            except TimeoutError:
                raise self._timeout() from None
            except OSError:
                raise self._died() from None
            if count == 0:
                raise self._died()
            rest = rest[count:]
        return body

    def _timeout(self) -> _ChildFailedError:
        return _ChildFailedError("decode_timeout", f"decoding it takes more than {self._seconds:g} s")

    def _died(self) -> _ChildFailedError:
        """Say how the process ended, in its own last words where it had any."""
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return _ChildFailedError("decode_crashed", "its decoding process closed the connection")
        if code == -signal.SIGXCPU:
            return self._timeout()
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        logger.info("last words of a decoding process: %s", words[-1] if code > 0 and words else words[:1])
        return _ChildFailedError("decode_crashed", f"its decoding process ended with {how}")
