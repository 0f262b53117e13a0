"""Every kind of picture a feed may carry: the good ones equal their plain RGB twin, the bad ones are rejected by the decoding processes."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from contracts.encoder import PictureRecipe
from contracts.errors import RecordError
from contracts.settings import MEBIBYTE, Settings
from embedding.decode_pool import DecodePool
from embedding.pictures import PictureLimits, open_picture

LIMITS = PictureLimits(1 << 24, 89_478_485)
RECIPE = PictureRecipe(64, 64, "letterbox")


def twin(width: int = 64, height: int = 48) -> Image.Image:
    """The plain RGB picture that the others are compared with: smooth, so that lossy codings stay close."""
    across, down = np.meshgrid(np.linspace(20, 230, width), np.linspace(30, 220, height))
    return Image.fromarray(np.stack([across, down, 250 - across], axis=2).astype(np.uint8))


def grey() -> Image.Image:
    return twin().convert("L")


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    body = io.BytesIO()
    image.save(body, name, **options)
    return body.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(kind: bytes, body: bytes) -> bytes:
    """The twin as PNG with one more chunk behind its header."""
    data = encoded(twin(), "PNG")
    return data[:33] + png_chunk(kind, body) + data[33:]


def ycck_jpeg() -> bytes:
    """As Photoshop writes CMYK JPEGs: inks as luma and chroma, inverted. Pillow writes plain CMYK, so planes and the Adobe marker are changed."""
    inks = np.asarray(Image.fromarray(255 - np.asarray(twin())).convert("YCbCr"))
    planes = np.concatenate([255 - inks, np.zeros((*inks.shape[:2], 1), np.uint8)], axis=2)  # Pillow inverts once more as it writes
    data = bytearray(encoded(Image.frombytes("CMYK", twin().size, planes.tobytes()), "JPEG", quality=95))
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data[marker + 11] = 2  # transform: YCCK
    return bytes(data)


def cmyk() -> Image.Image:
    return twin().convert("CMYK")


def sixteen_bit(image: Image.Image, name: str) -> bytes:
    return encoded(Image.fromarray(np.asarray(image).astype(np.uint16) * 257), name)


def big_endian_tiff() -> bytes:
    samples = (np.asarray(grey()).astype(">u2") * 257).tobytes()
    return encoded(Image.frombytes("I;16B", grey().size, samples), "TIFF")


def sixteen_bit_rgb_png() -> bytes:
    width, height = twin().size
    rows = (np.asarray(twin()).astype(">u2") * 257).reshape(height, -1)
    body = b"".join(b"\x00" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zlib.compress(body)) + png_chunk(b"IEND", b"")


def frames(name: str, count: int = 4) -> bytes:
    negative = Image.fromarray(255 - np.asarray(twin()))
    others = [negative.rotate(10 * number) for number in range(1, count)]
    return encoded(twin(), name, save_all=True, append_images=others, **({"lossless": True} if name == "WEBP" else {}))


def long_gif() -> bytes:
    first, *others = [twin().quantize(256), *[Image.new("P", (64, 48), number % 7) for number in range(499)]]
    return encoded(first, "GIF", save_all=True, append_images=others)


def profile_of_another_space() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


GOOD: dict[str, tuple[Callable[[], bytes], Image.Image, float]] = {
    "progressive JPEG": (lambda: encoded(twin(), "JPEG", quality=95, progressive=True), twin(), 3),
    "JPEG with subsampled chroma": (lambda: encoded(twin(), "JPEG", quality=95, subsampling=2), twin(), 3),
    "grey JPEG": (lambda: encoded(grey(), "JPEG", quality=95), grey(), 3),
    "CMYK JPEG, inverted as Adobe does": (lambda: encoded(cmyk(), "JPEG", quality=95), twin(), 4),
    "YCCK JPEG, inverted as Adobe does": (ycck_jpeg, twin(), 4),
    "CMYK TIFF": (lambda: encoded(cmyk(), "TIFF"), twin(), 1),
    "YCbCr TIFF": (lambda: encoded(twin().convert("YCbCr"), "TIFF"), twin(), 3),
    "TIFF with JPEG inside": (lambda: encoded(twin(), "TIFF", compression="jpeg", quality=95), twin(), 4),
    "TIFF with LZW": (lambda: encoded(twin(), "TIFF", compression="tiff_lzw"), twin(), 0),
    "palette PNG": (lambda: encoded(twin().quantize(256), "PNG"), twin(), 12),
    "palette PNG of 16 colours, 4 bits": (lambda: encoded(twin().quantize(16), "PNG", bits=4), twin().quantize(16), 0),
    "palette GIF": (lambda: encoded(twin().quantize(256), "GIF"), twin(), 12),
    "palette BMP": (lambda: encoded(twin().quantize(256), "BMP"), twin(), 12),
    "1-bit PNG": (lambda: encoded(grey().convert("1"), "PNG"), grey().convert("1"), 0),
    "1-bit TIFF of a fax": (lambda: encoded(grey().convert("1"), "TIFF", compression="group4"), grey().convert("1"), 0),
    "grey PNG": (lambda: encoded(grey(), "PNG"), grey(), 0),
    "16-bit grey PNG": (lambda: sixteen_bit(grey(), "PNG"), grey(), 0),
    "16-bit grey TIFF": (lambda: sixteen_bit(grey(), "TIFF"), grey(), 0),
    "16-bit grey TIFF, big-endian": (big_endian_tiff, grey(), 0),
    "16-bit RGB PNG": (sixteen_bit_rgb_png, twin(), 0),
    "opaque RGBA PNG": (lambda: encoded(twin().convert("RGBA"), "PNG"), twin(), 0),
    "opaque LA PNG": (lambda: encoded(grey().convert("LA"), "PNG"), grey(), 0),
    "opaque RGBA TIFF": (lambda: encoded(twin().convert("RGBA"), "TIFF"), twin(), 0),
    "lossless WebP": (lambda: encoded(twin(), "WEBP", lossless=True), twin(), 0),
    "lossy WebP": (lambda: encoded(twin(), "WEBP", quality=95), twin(), 4),
    "RGB PNG with a transparent colour nobody uses": (lambda: encoded(twin(), "PNG", transparency=(1, 2, 3)), twin(), 0),
    "animated GIF": (lambda: frames("GIF"), twin(), 12),
    "animated WebP": (lambda: frames("WEBP"), twin(), 0),
    "animated PNG": (lambda: frames("PNG"), twin(), 0),
    "TIFF of many pages": (lambda: frames("TIFF"), twin(), 0),
    "GIF of 500 frames": (long_gif, twin(), 12),
    "PNG with a colour profile": (lambda: encoded(twin(), "PNG", icc_profile=profile_of_another_space()), twin(), 0),
    "JPEG with a broken colour profile": (lambda: encoded(twin(), "JPEG", quality=95, icc_profile=b"no profile"), twin(), 3),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(Settings(decode_children=1, decode_memory_bytes=256 * MEBIBYTE)) as made:
        yield made


@pytest.mark.parametrize("kind", GOOD)
def test_a_picture_of_every_kind_equals_its_plain_twin(kind: str) -> None:
    make, wanted, tolerance = GOOD[kind]
    data = make()
    began = time.process_time()
    found = open_picture(data, LIMITS)
    assert time.process_time() - began < 1.0
    assert found.mode == "RGB" and found.size == wanted.size
    difference = np.abs(pixels(found) - pixels(wanted))
    assert difference.mean() <= tolerance / 2 and np.percentile(difference, 99) <= 2 * tolerance


@pytest.mark.parametrize("name", ["PNG", "GIF", "WEBP", "TIFF"])
def test_half_of_a_picture_transparent_is_half_of_its_twin_on_white(name: str) -> None:
    if name == "GIF":
        image = twin().quantize(255)
        image.paste(255, (0, 0, 32, 48))
        data = encoded(image, name, transparency=255)
    else:
        layer = twin().convert("RGBA")
        layer.paste((9, 9, 9, 0), (0, 0, 32, 48))
        data = encoded(layer, name, **({"lossless": True} if name == "WEBP" else {}))
    found = pixels(open_picture(data, LIMITS))
    assert (found[:, :32] == 255).all()
    assert np.abs(found[:, 32:] - pixels(twin())[:, 32:]).mean() < 6


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (3, 2)])
@pytest.mark.parametrize("fit", ["letterbox", "crop", "squash"])
def test_pictures_of_extreme_shape_are_decoded_in_little_memory(pool: DecodePool, size: tuple[int, int], fit: str) -> None:
    recipe = PictureRecipe(64, 64, fit)  # type: ignore[arg-type]
    found = pool.prepare(encoded(Image.new("RGB", size, (0, 99, 0)), "PNG"), recipe)
    assert found.shape == recipe.shape and (found == (0, 99, 0)).all(axis=2).any()


def test_a_bomb_in_a_text_chunk_is_refused_in_little_memory(pool: DecodePool) -> None:
    bomb = zlib.compress(bytes(200 * MEBIBYTE), 1)
    for kind, body in ((b"zTXt", b"Comment\0\0" + bomb), (b"iTXt", b"Comment\0\1\0\0\0" + bomb), (b"iCCP", b"profile\0\0" + bomb)):
        assert reason_of(pool, with_chunk(kind, body)) in ("decode_failed", "decoded")
    assert peak_mebibytes(pool) < 128


def test_sixty_thousand_tags_that_share_a_mebibyte_stay_within_the_memory_limit(pool: DecodePool) -> None:
    """A copy of each tag's bytes would make 60 GiB of a file of 2 MiB; older Pillows make it, and meet the limit."""
    tags = 60_000
    entries = b"".join(struct.pack("<HHII", 1_000 + number, 1, MEBIBYTE, 8 + 2 + 12 * tags + 4) for number in range(tags))
    data = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", tags) + entries + bytes(4) + bytes(MEBIBYTE)
    assert reason_of(pool, data) in ("decode_failed", "decode_memory")
    assert reason_of(pool, encoded(twin(), "TIFF")) == "decoded"
    assert peak_mebibytes(pool) < 256


def test_a_tag_that_claims_four_gibibytes_takes_none(pool: DecodePool) -> None:
    entry = struct.pack("<HHII", 1_000, 1, 0xFFFFFFF0, 26)
    data = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + bytes(4)
    assert reason_of(pool, data) == "decode_failed"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(twin(), "JPEG")[:400], "decode_failed"),
        (b"a text that somebody declared as image/jpeg", "unsupported_content_type"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch x) (w) file\n", "unsupported_content_type"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "unsupported_content_type"),
        (b"", "unsupported_content_type"),
        (
            b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 14_000, 14_000, 8, 2, 0, 0, 0)) + png_chunk(b"IDAT", b"x"),
            "too_many_pixels",
        ),
        (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 9, 8, 2, 0, 0, 0)), "decode_failed"),
        (encoded(twin(), "GIF").replace(b"GIF87a", b"GIF89a")[:13] + bytes(30), "decode_failed"),
    ],
    ids=["truncated JPEG", "text", "EPS", "DOS EPS", "empty", "14000 x 14000", "no width", "empty GIF"],
)
def test_a_bad_picture_is_rejected_with_its_reason_by_a_child_that_lives_on(pool: DecodePool, data: bytes, reason: str) -> None:
    assert reason_of(pool, encoded(twin(), "PNG")) == "decoded"
    before = [child.pid for child in pool._alive]
    assert reason_of(pool, data) == reason
    assert [child.pid for child in pool._alive] == before


def reason_of(pool: DecodePool, data: bytes) -> str:
    try:
        pool.prepare(data, RECIPE)
    except RecordError as error:
        return error.reason
    return "decoded"


def peak_mebibytes(pool: DecodePool) -> float:
    peaks = []
    for child in pool._alive:
        line = next(line for line in Path(f"/proc/{child.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
        peaks.append(int(line.split()[1]) / 1024)
    return max(peaks)
