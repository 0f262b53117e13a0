"""Records that cannot be indexed as they are, each with the outcome that is promised for it.

The promises: docs/formats/media_record.md, "Limits" and "Rejected updates"; docs/operations.md, "Bad pictures".

Takes: the collection they go to, a store for what claim checks name. Gives: named records. Owns: the promised verdicts and reasons.
Never: asks the code under test what the outcome should be.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa
from PIL import Image

from contracts.log import Headers
from contracts.media_record import ARROW_TYPE, CLOUDEVENT_TYPE

SAMPLES = Path(__file__).resolve().parents[2] / "examples" / "media"
DIMENSION = 8
JPEG = (("content-type", b"image/jpeg"),)
PNG = (("content-type", b"image/png"),)
TEXT = (("content-type", b"text/plain"),)
ROWS = (("content-type", ARROW_TYPE.encode()),)
RECORD = (("content-type", b"application/vnd.headwater.record+json"),)


@dataclass(frozen=True)
class BadInput:
    """One record, where it goes (`pictures`, `cosine`, `dot`, `notified`), and what is promised: `verdict` is ``row``, ``partial`` or ``reject``."""

    name: str
    collection: str
    headers: Headers
    value: bytes
    verdict: str
    reason: str | None = None
    key: bytes | None = b""  # empty: named after the input
    kafka_compression: str | None = None  # produced so; Kafka alone compresses a record on its way
    is_kept: bool = True  # whether the dead letter is the original; False where it can name no more than the place


@cache
def sample() -> bytes:
    return (SAMPLES / "animals" / "crow.jpg").read_bytes()


def _png(width: int, height: int, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")


def _blown_up_png() -> bytes:
    """9,400 x 9,400 pixels of nothing, RGBA: within the limit of pixels, 353 MB when it is decoded, 340 KB as it comes.

    Its decoder dies of it where it may have less memory.
    """
    return _png(9400, 9400, bytes((4 * 9400 + 1) * 9400))


def _gif(frames: int) -> bytes:
    pictures = [Image.new("RGB", (32, 32), (number % 256, number // 256, 90)).quantize(2) for number in range(frames)]
    out = io.BytesIO()
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=20)
    return out.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n0 0 10 10 rectfill\nshowpage\n%%EOF\n"


def rows(vector: list[float], name: str = "v", compression: str | None = None, copies: int = 1) -> bytes:
    table = pa.table({"id": ["row"] * copies, name: pa.array([vector] * copies, pa.list_(pa.float32()))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def expanding_rows() -> bytes:
    """A zstd batch of some 30 KB that would be a gigabyte: one text of zeros."""
    sink = pa.BufferOutputStream()
    table = pa.table({"id": ["bomb"], "v": pa.array([[1.0] * DIMENSION], pa.list_(pa.float32())), "text": [" " * (1 << 30)]})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def pictures() -> Iterator[BadInput]:
    crow = sample()
    yield BadInput("empty value, no caption", "pictures", JPEG, b"", "reject", "empty")
    yield BadInput("truncated JPEG", "pictures", JPEG, crow[: len(crow) // 2], "reject", "decode_failed")
    yield BadInput("truncated JPEG, good caption", "pictures", (*JPEG, ("hw_caption", b"a crow")), crow[: len(crow) // 2], "partial", "decode_failed")
    yield BadInput("text declared as JPEG", "pictures", JPEG, b"I am no picture", "reject", "unsupported_content_type")
    yield BadInput("EPS renamed .jpg", "pictures", JPEG, EPS, "reject", "unsupported_content_type")
    yield BadInput("14000 x 14000 PNG header", "pictures", PNG, _png(14_000, 14_000, b""), "reject", "too_many_pixels")
    yield BadInput("GIF of 500 frames", "pictures", (("content-type", b"image/gif"),), _gif(500), "row")
    yield BadInput("PNG that blows up when decoded", "pictures", PNG, _blown_up_png(), "reject", "decode_memory")
    yield BadInput("unknown content type", "pictures", (("content-type", b"application/pdf"),), b"%PDF-1.7", "reject", "unsupported_content_type")


def texts() -> Iterator[BadInput]:
    nested = b"[" * 10_000 + b"]" * 10_000
    yield BadInput("30 MB of text", "pictures", TEXT, b"words " * 5_000_000, "reject", "bad_text")
    yield BadInput("invalid UTF-8 caption", "pictures", (*JPEG, ("hw_caption", b"\xff\xfe")), sample(), "partial", "bad_text")
    yield BadInput("invalid JSON envelope", "pictures", RECORD, b'{"id": "x", "parts": [', "reject", "bad_envelope")
    yield BadInput("10,000 nested arrays as envelope", "pictures", RECORD, nested, "reject", "bad_envelope")
    yield BadInput("10,000 nested arrays as attributes", "pictures", (*TEXT, ("hw_attributes", nested)), b"a text", "reject", "bad_attributes")
    yield BadInput("attribute of the wrong type", "pictures", (*TEXT, ("hw_attributes", b'{"price":"cheap"}')), b"a text", "reject", "bad_attributes")
    yield BadInput("id too long", "pictures", TEXT, b"a text", "reject", "bad_id", b"i" * 513)
    yield BadInput("CloudEvent without an id", "pictures", (*TEXT, ("ce_specversion", b"1.0")), b"a text", "reject", "missing_id")
    event = json.dumps({"specversion": "1.0", "source": "s", "type": "t", "datacontenttype": "text/plain", "data": "a text"}).encode()
    yield BadInput("structured CloudEvent without an id", "pictures", (("content-type", CLOUDEVENT_TYPE.encode()),), event, "reject", "missing_id")
    two = [{"content_type": "image/jpeg", "data_base64": base64.b64encode(sample()).decode()}] * 2
    yield BadInput("two pictures in one item", "pictures", RECORD, json.dumps({"id": "two", "parts": two}).encode(), "reject", "too_many_parts")


def vectors() -> Iterator[BadInput]:
    good, nan = [1.0] * DIMENSION, [float("nan")] + [1.0] * (DIMENSION - 1)
    yield BadInput("vector of the wrong dimension", "cosine", ROWS, rows(good[:-1]), "reject", "bad_vector")
    yield BadInput("vector with NaN", "cosine", ROWS, rows(nan), "reject", "bad_vector")
    yield BadInput("zero vector under cosine", "cosine", ROWS, rows([0.0] * DIMENSION), "reject", "zero_norm")
    yield BadInput("zero vector under dot", "dot", ROWS, rows([0.0] * DIMENSION), "row")
    yield BadInput("no Arrow stream", "cosine", ROWS, b"\xff\xff\xff\xff nothing", "reject", "bad_envelope")
    yield BadInput("zstd batch that expands 30,000 times", "cosine", ROWS, expanding_rows(), "reject", "too_large")


def kafka_batches() -> Iterator[BadInput]:
    """Records that are small on the wire: the broker takes 6 KB, and every consumer is asked to make 200 MiB of them."""
    for kind in ("zstd", "gzip"):
        name = f"Kafka batch that expands {'30,000' if kind == 'zstd' else '1,000'}x ({kind})"
        yield BadInput(name, "pictures", TEXT, bytes(200 * 1024 * 1024), "reject", "too_large", kafka_compression=kind, is_kept=False)


def claim_checks(put: Callable[[bytes], str], claim_key: Callable[[str], str], max_bytes: int) -> Iterator[BadInput]:
    """Claim checks that cannot be honoured.

    Parameters
    ----------
    put : callable
        Stores bytes under their claim key and gives it.
    claim_key : callable
        Key of a sha256.
    max_bytes : int
        Largest payload that is taken.
    """

    def ref(key: str, sha256: str, size_bytes: int, kind: Headers = JPEG) -> Headers:
        return (*kind, ("hw_payload_ref", json.dumps({"key": key, "sha256": sha256, "size": size_bytes}).encode()))

    crow, digest = sample(), hashlib.sha256(sample()).hexdigest()
    key, zeros = put(crow), hashlib.sha256(bytes(10)).hexdigest()
    yield BadInput("claim check", "pictures", ref(key, digest, len(crow)), b"", "row")
    yield BadInput("claim check to a missing object", "pictures", ref(claim_key(zeros), zeros, 10), b"", "reject", "payload_missing")
    yield BadInput("claim check to ../x", "pictures", ref("../x", digest, len(crow)), b"", "reject", "bad_envelope")
    yield BadInput("claim check with the wrong hash", "pictures", ref(key, zeros, len(crow)), b"", "reject", "payload_mismatch")
    yield BadInput("claim check with the wrong size", "pictures", ref(key, digest, len(crow) + 1), b"", "reject", "payload_mismatch")
    text = b"words " * 8_500_000
    named = ref(put(text), hashlib.sha256(text).hexdigest(), len(text), TEXT)
    yield BadInput("50 MB of text behind a claim check", "pictures", named, b"", "reject", "too_large")
    yield BadInput("claim check over the cap", "pictures", ref(key, digest, max_bytes + 1), b"", "reject", "too_large")


def notifications(bucket: str) -> Iterator[BadInput]:
    """A bucket notification for an object that is gone by now."""
    event = {"Records": [{"eventName": "s3:ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": {"key": "gone.jpg", "size": 10}}}]}
    value = json.dumps({"EventName": "s3:ObjectCreated:Put", "Key": f"{bucket}/gone.jpg", **event}).encode()
    yield BadInput("notification for an object that is gone", "notified", (), value, "reject", "payload_missing", f"{bucket}/gone.jpg".encode())
