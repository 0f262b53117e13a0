"""A decoding process: pictures in, pixels out, over one socket, under limits. `embedding.decode_pool` starts it.

    python -S -P -m embedding.decode_child '{"socket": 5, "memory_bytes": ..., "seconds": ..., "max_bytes": ..., "max_pixels": ...}'

A picture that crashes, exhausts or hangs a decoder costs this process and nothing else; it holds no secret, and may write no file.

Takes: requests. Gives: answers; both begin with a fixed header. Owns: its own limits.
Never: imports numpy (but for pictures of floating-point samples), torch or pydantic: a start takes 0.15 s and 22 MB.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import json
import math
import resource
import socket
import struct
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from contracts.encoder import PictureRecipe
from contracts.errors import RecordError
from embedding.pictures import PictureLimits, prepare_picture, thumbnail

REQUEST = struct.Struct("<BIQ")
"""Kind of work, bytes of its description, bytes of the picture; both follow."""
ANSWER = struct.Struct("<BQ")
"""How it went, bytes that follow."""
PREPARE, THUMBNAIL = 1, 2
READY, DONE, REJECTED, NO_MEMORY = 1, 2, 3, 4
STDERR_BYTES = 64 * 1024

Work = Callable[[bytes, str, PictureLimits], bytes]


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """What a decoding process is told when it starts: its socket's number, and its limits."""

    socket: int
    memory_bytes: int
    seconds: float
    max_bytes: int
    max_pixels: int


def main(arguments: list[str]) -> None:
    """Answer requests until the other side closes the socket."""
    settings = ChildSettings(**json.loads(arguments[1]))
    serve(settings, {PREPARE: _prepare, THUMBNAIL: _thumbnail})


def serve(settings: ChildSettings, works: dict[int, Work]) -> None:
    """Set the limits, say that this process is ready, and do what is asked."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    _limit(settings)
    gc.freeze()
    limits = PictureLimits(settings.max_bytes, settings.max_pixels)
    connection = socket.socket(fileno=settings.socket)
    connection.sendall(ANSWER.pack(READY, 0))
    with connection, connection.makefile("rb") as requests:
        while header := requests.read(REQUEST.size):
            kind, told_bytes, picture_bytes = REQUEST.unpack(header)
            told, picture = requests.read(told_bytes).decode(), requests.read(picture_bytes)
            _limit_cpu(settings.seconds)
            how, body = _answer(works[kind], picture, told, limits)
            send_parts(connection, ANSWER.pack(how, len(body)), body)


def send_parts(connection: socket.socket, header: bytes, body: bytes) -> None:
    """Send both at once, so that the other side wakes once."""
    sent = connection.sendmsg([header, body])
    if sent < len(header):
        connection.sendall(header[sent:])
    if sent < len(header) + len(body):
        connection.sendall(memoryview(body)[max(0, sent - len(header)) :])


def _answer(work: Work, picture: bytes, told: str, limits: PictureLimits) -> tuple[int, bytes]:
    try:
        return DONE, work(picture, told, limits)
    except RecordError as error:
        return REJECTED, f"{error.reason}\n{error.message}".encode()
    except MemoryError:
        return NO_MEMORY, b""


def _prepare(picture: bytes, told: str, limits: PictureLimits) -> bytes:
    return prepare_picture(picture, _recipe(told), limits).tobytes()


@functools.lru_cache(maxsize=64)
def _recipe(told: str) -> PictureRecipe:
    return PictureRecipe.from_json(told)


def _thumbnail(picture: bytes, told: str, limits: PictureLimits) -> bytes:
    return thumbnail(picture, int(told), limits)


def _limit(settings: ChildSettings) -> None:
    """Bound memory, and forbid files and core dumps; where a system knows a limit not, or has a lower one, that stays."""
    for what, most in (
        (resource.RLIMIT_AS, settings.memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, STDERR_BYTES),  # of what a crash has to say
        (resource.RLIMIT_NOFILE, 32),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (most, most))


def _limit_cpu(seconds: float) -> None:
    """Let the next picture take that much time of the processor: the end of a hung process whose parent is gone, too."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time() + seconds) + 1
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main(sys.argv)
