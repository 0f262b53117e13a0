"""Promises of `embedding.pictures`: what strangers send is measured before it is decoded, and always becomes RGB on white."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from contracts.encoder import PictureRecipe
from contracts.errors import RecordError, SettingsError
from contracts.settings import Settings
from embedding.pictures import PictureLimits, fit_picture, open_picture, sniff_format, thumbnail

LIMITS = PictureLimits(max_bytes=4 * 1024 * 1024, max_pixels=89_478_485)
RED = (200, 10, 20)


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    body = io.BytesIO()
    image.save(body, name, **options)
    return body.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of about 70 bytes that announces any size and holds hardly any pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\x00")) + chunk(b"IEND", b"")


def two_colours(width: int = 40, height: int = 20) -> Image.Image:
    """Left half red, right half blue, so that turning and mirroring show."""
    image = Image.new("RGB", (width, height), RED)
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def reason_of(data: bytes, limits: PictureLimits = LIMITS) -> str:
    with pytest.raises(RecordError) as caught:
        open_picture(data, limits)
    return caught.value.reason


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_each_accepted_format_is_told_by_its_content_and_decodes_to_rgb(name: str) -> None:
    data = encoded(Image.new("RGB", (12, 8), RED), name)
    assert sniff_format(data) == name
    image = open_picture(data, LIMITS)
    assert (image.mode, image.size) == ("RGB", (12, 8))
    assert np.abs(np.asarray(image).reshape(-1, 3).mean(0) - RED).max() < 8


@pytest.mark.parametrize(("width", "height"), [(14_000, 14_000), (10_000, 10_000), (60_000, 60_000)])
def test_a_bomb_is_refused_by_its_header_before_memory_is_taken(width: int, height: int) -> None:
    data = png_header(width, height)
    assert len(data) < 80
    tracemalloc.start()
    assert reason_of(data) == "too_many_pixels"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1024 * 1024


def test_the_pixel_limit_is_the_operators_in_both_directions() -> None:
    data = encoded(Image.new("L", (101, 100)), "PNG")
    assert reason_of(data, PictureLimits(LIMITS.max_bytes, 10_000)) == "too_many_pixels"
    assert open_picture(data, PictureLimits(LIMITS.max_bytes, 10_100)).size == (101, 100)


def test_a_limit_above_pillows_own_lets_larger_headers_through_to_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)  # restored afterwards; stands for Pillow's 89 million
    data = encoded(Image.new("L", (50, 50)), "PNG")
    assert open_picture(data, PictureLimits(LIMITS.max_bytes, 2_500)).size == (50, 50)
    assert reason_of(data, PictureLimits(LIMITS.max_bytes, 2_499)) == "too_many_pixels"


def test_more_bytes_than_the_limit_are_refused_unread() -> None:
    assert reason_of(b"\xff\xd8\xff" + bytes(100), PictureLimits(100, LIMITS.max_pixels)) == "too_large"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_a_picture_cut_short_is_refused_not_half_shown(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), name)
    assert reason_of(data[: len(data) // 2]) == "decode_failed"


@pytest.mark.parametrize(
    "data",
    [
        b"this is a text, whatever its name says",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"%PDF-1.7\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"SIMPLE  =                    T",
        b"",
    ],
)
def test_what_is_not_an_accepted_picture_never_reaches_a_parser(data: bytes) -> None:
    assert reason_of(data) == "unsupported_content_type"


def test_a_picture_signature_before_garbage_fails_as_a_picture() -> None:
    for signature in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\x00", b"RIFF\x00\x00\x00\x00WEBP"):
        assert reason_of(signature + b"garbage" * 20) == "decode_failed"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_turned_by_exif_equals_the_picture_turned_by_hand(orientation: int) -> None:
    upright = two_colours()
    # EXIF names how the stored pixels lie; store them so, and decoding must bring the upright picture back.
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = upright if stored is None else upright.transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_picture(data, LIMITS)), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so once and goes on
def test_a_broken_exif_block_does_not_cost_the_picture() -> None:
    data = encoded(two_colours(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff broken")
    assert open_picture(data, LIMITS).size == (40, 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_show_white_and_opaque_ones_their_colour(mode: str, name: str) -> None:
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.paste((90, 90, 90, 255), (0, 0, 5, 10))
    options = {"lossless": True} if name == "WEBP" else {}
    pixels = np.asarray(open_picture(encoded(image.convert(mode), name, **options), LIMITS))
    assert pixels[5, 8].tolist() == [255, 255, 255]
    assert pixels[5, 2].tolist() == [90, 90, 90]


def test_half_transparent_black_is_grey_on_white() -> None:
    pixels = np.asarray(open_picture(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"), LIMITS))
    assert abs(int(pixels[0, 0, 0]) - 127) <= 1


def test_a_palette_with_a_transparent_colour_shows_white_there() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 4, 8))
    for name in ("PNG", "GIF"):
        pixels = np.asarray(open_picture(encoded(image, name, transparency=0), LIMITS))
        assert pixels[0, 7].tolist() == [255, 255, 255]
        assert pixels[0, 0].tolist() == [0, 0, 255]


def test_black_and_white_grey_and_cmyk_become_rgb() -> None:
    assert np.asarray(open_picture(encoded(Image.new("1", (4, 4), 1), "PNG"), LIMITS)).min() == 255
    assert np.asarray(open_picture(encoded(Image.new("L", (4, 4), 77), "PNG"), LIMITS)).tolist()[0][0] == [77, 77, 77]
    for name in ("JPEG", "TIFF"):
        pixel = np.asarray(open_picture(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), name), LIMITS))[8, 8]
        assert pixel[0] > 200 and pixel[1] < 60 and pixel[2] < 60


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_tones(name: str) -> None:
    ramp = np.linspace(0, 65_535, 256, dtype=np.uint16).reshape(16, 16)
    pixels = np.asarray(open_picture(encoded(Image.fromarray(ramp), name), LIMITS))[..., 0]
    assert np.abs(pixels.astype(int).ravel() - np.arange(256)).max() <= 1


def test_floating_point_grey_is_stretched_to_the_whole_range() -> None:
    ramp = np.linspace(-1.0, 3.0, 256, dtype=np.float32).reshape(16, 16)
    pixels = np.asarray(open_picture(encoded(Image.fromarray(ramp), "TIFF"), LIMITS))[..., 0]
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.all(np.diff(pixels.ravel().astype(int)) >= 0)


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(name: str) -> None:
    first, *others = [Image.new("RGB", (8, 8), (10 * n, 255 - 10 * n, 0)) for n in range(5)]
    pixels = np.asarray(open_picture(encoded(first, name, save_all=True, append_images=others), LIMITS))
    assert np.abs(pixels[4, 4].astype(int) - [0, 255, 0]).max() < 8


def test_a_jpeg_decoded_at_a_smaller_scale_looks_like_the_whole_one() -> None:
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    data = encoded(coarse.resize((2400, 1800), Image.Resampling.BICUBIC), "JPEG", quality=90)
    recipe = PictureRecipe(224, 224, "letterbox")
    scaled = open_picture(data, LIMITS, recipe)
    assert 448 <= max(scaled.size) < 2400
    difference = pixels_of(fit_picture(scaled, recipe)) - pixels_of(fit_picture(open_picture(data, LIMITS), recipe))
    assert np.abs(difference).mean() < 2.0


@pytest.mark.parametrize("size", [(640, 320), (320, 640), (50, 50), (1, 5000)])
def test_a_letterbox_holds_the_whole_picture_in_the_middle_of_a_white_square(size: tuple[int, int]) -> None:
    square = pixels_of(fit_picture(Image.new("RGB", size, (0, 0, 0)), PictureRecipe(64, 64, "letterbox")))
    assert square.shape == (64, 64, 3)
    dark = (square < 128).all(axis=2)
    rows, columns = dark.any(axis=1).sum(), dark.any(axis=0).sum()
    assert max(rows, columns) == 64
    assert (columns, rows) == tuple(max(1, round(side * 64 / max(size))) for side in size)
    assert dark[31:33, 31:33].any()
    assert (square[~dark] == 255).all()


def test_a_thumbnail_is_a_small_upright_jpeg_on_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = thumbnail(encoded(two_colours(800, 400), "PNG", exif=exif), 100, LIMITS)
    with Image.open(io.BytesIO(body)) as image:
        assert (image.format, image.size) == ("JPEG", (50, 100))


def test_a_thumbnail_of_a_small_picture_is_not_blown_up() -> None:
    with Image.open(io.BytesIO(thumbnail(encoded(two_colours(), "GIF"), 256, LIMITS))) as image:
        assert image.size == (40, 20)


def test_a_thumbnail_keeps_the_limits_and_refuses_absurd_sizes() -> None:
    with pytest.raises(RecordError, match="pixels"):
        thumbnail(png_header(14_000, 14_000), 100, LIMITS)
    for size_pixels in (0, 5000):
        with pytest.raises(SettingsError):
            thumbnail(encoded(two_colours(), "PNG"), size_pixels, LIMITS)


def test_limits_come_from_the_settings() -> None:
    assert PictureLimits.from_settings(Settings(max_picture_bytes=7, max_picture_pixels=9)) == PictureLimits(7, 9)
