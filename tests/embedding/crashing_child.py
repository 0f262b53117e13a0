"""A decoding process that really dies, hangs and fills its memory at certain pictures; for `test_decode_pool`."""

from __future__ import annotations

import json
import os
import sys

from embedding import decode_child
from embedding.pictures import PictureLimits

ABORT, HANG, SLEEP, HOARD, DIE_ONCE, LIE = (f"please {what}".encode() for what in ("abort", "hang", "sleep", "hoard", "die once at ", "lie"))


def misbehave(picture: bytes, told: str, limits: PictureLimits) -> bytes:
    if picture == ABORT:
        os.abort()
    if picture == HANG:
        while True:
            pass
    if picture == SLEEP:
        import time

        time.sleep(1000)
    if picture == HOARD:
        hoard = []
        while True:
            hoard.append(bytearray(1 << 24))
    if picture.startswith(DIE_ONCE):
        path = picture.removeprefix(DIE_ONCE).decode()
        if os.path.exists(path):  # noqa: PTH110 - as small as the real one
            os.unlink(path)  # noqa: PTH108
            os.abort()
    if picture == LIE:
        return b"too short"
    return decode_child._prepare(picture if not picture.startswith(DIE_ONCE) else b"GIF89a", told, limits)


if __name__ == "__main__":
    decode_child.serve(decode_child.ChildSettings(**json.loads(sys.argv[1])), {decode_child.PREPARE: misbehave})
