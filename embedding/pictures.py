"""Pictures from strangers: sniffed, measured, then decoded, always to RGB on white and upright.

Takes: encoded bytes, limits. Gives: Pillow pictures, squares for an encoder, thumbnails. Owns: what we accept as a picture.
Never: trusts a content type or a file name, decodes more pixels than the header was allowed to name, or needs torch.

Formats are an allow-list handed to Pillow, so that its other parsers (EPS, PDF, FITS, ...) are never reached:
https://pillow.readthedocs.io/en/stable/handbook/security.html; limits: research/reliability.md S1 to S3.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contracts.errors import RecordError, SettingsError
from contracts.settings import Settings

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
_ORIENTATION_TAG = 0x0112
_UPRIGHT_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation of EXIF 2.3, section 4.6.4."""
WHITE = (255, 255, 255)
THUMBNAIL_QUALITY = 85


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What a picture may be: bytes as encoded, pixels as its header names them."""

    max_bytes: int
    max_pixels: int

    @classmethod
    def from_settings(cls, settings: Settings) -> PictureLimits:
        """Limits `max_picture_bytes` and `max_picture_pixels`."""
        return cls(settings.max_picture_bytes, settings.max_picture_pixels)


def sniff_format(data: bytes) -> str | None:
    """Name of the picture format that the first bytes belong to, or None; what a producer says is not asked."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for signature, name in _SIGNATURES if data.startswith(signature)), None)


def open_picture(data: bytes, limits: PictureLimits, needed_pixels: int | None = None) -> Image.Image:
    """Decode the first frame of a picture within limits.

    Parameters
    ----------
    data : bytes
        An encoded JPEG, PNG, WebP, GIF, BMP or TIFF.
    limits : PictureLimits
        Checked before anything is decoded.
    needed_pixels : int, optional
        Length of the longer side that the caller will scale down to: a JPEG is then decoded at the smallest of its
        1/2, 1/4, 1/8 scales that still has twice as many (three times as fast on large photographs).

    Returns
    -------
    Image.Image
        Mode RGB, upright, transparency on white.

    Raises
    ------
    RecordError
        ``too_large``, ``unsupported_content_type``, ``too_many_pixels`` or ``decode_failed``.
    """
    if len(data) > limits.max_bytes:
        raise RecordError("too_large", f"the picture has {len(data)} bytes, the limit is {limits.max_bytes}")
    name = sniff_format(data)
    if name is None:
        raise RecordError("unsupported_content_type", "the content is not JPEG, PNG, WebP, GIF, BMP or TIFF")
    try:
        image = _open_within(data, name, limits.max_pixels)
        if needed_pixels is not None:
            _draft(image, 2 * needed_pixels)
        image.load()
        return _upright(image, _to_rgb(image))
    except (RecordError, MemoryError):  # too little memory is our trouble, not the record's
        raise
    except Exception as error:  # decoders fail in many ways on bad bytes (OSError, SyntaxError, struct.error, ...); all mean the same
        raise RecordError("decode_failed", f"the {name} picture cannot be decoded: {type(error).__name__}") from error


def letterbox(image: Image.Image, size_pixels: int) -> NDArray[np.uint8]:
    """Scale a picture so that all of it fits a white square; gives RGB, shape (size_pixels, size_pixels, 3)."""
    scale = size_pixels / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    square = np.full((size_pixels, size_pixels, 3), 255, np.uint8)
    left, top = (size_pixels - width) // 2, (size_pixels - height) // 2
    square[top : top + height, left : left + width] = np.asarray(small)
    return square


def thumbnail(data: bytes, size_pixels: int, limits: PictureLimits) -> bytes:
    """Make a JPEG whose longer side has at most `size_pixels`; smaller pictures keep their size.

    Raises
    ------
    RecordError
        As `open_picture`.
    SettingsError
        `size_pixels` is not between 1 and 4096.
    """
    if not 1 <= size_pixels <= 4096:
        raise SettingsError(f"a thumbnail of {size_pixels} pixels cannot be made", hint="ask for 1 to 4096")
    image = open_picture(data, limits, needed_pixels=size_pixels)
    image.thumbnail((size_pixels, size_pixels), Image.Resampling.BICUBIC, reducing_gap=3.0)
    body = io.BytesIO()
    image.save(body, "JPEG", quality=THUMBNAIL_QUALITY)
    return body.getvalue()


def _open_within(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Read the header only, and refuse what it announces if that is too much."""
    pillow_limit = Image.MAX_IMAGE_PIXELS
    if pillow_limit is not None and max_pixels > pillow_limit:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own guard stays on, at the limit that the operator set
    try:
        image = Image.open(io.BytesIO(data), formats=[name])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RecordError("too_many_pixels", f"the picture's header names more than {max_pixels} pixels") from error
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise RecordError("too_many_pixels", f"the picture's header names {pixels} pixels, the limit is {max_pixels}")
    return image


def _draft(image: Image.Image, longer_side: int) -> None:
    """Let the JPEG decoder scale down while it decodes; other formats do not know how, and are left alone."""
    scale = longer_side / max(image.size)
    if scale < 1:
        width, height = image.size
        image.draft("RGB", (max(1, int(width * scale)), max(1, int(height * scale))))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; transparent parts show white."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", layer.size, WHITE)
        canvas.paste(layer, mask=layer.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(samples: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Bring grey samples of 16 bits, 32 bits or floating point to 0..255.

    Pillow clips such samples, which turns most scans white. Integers are read as 16 bits where one is over 255; floats
    have no agreed range, so they are stretched from their lowest to their highest.
    """
    if np.issubdtype(samples.dtype, np.floating):
        finite = np.nan_to_num(samples.astype(np.float32), posinf=0.0, neginf=0.0)
        span = float(finite.max() - finite.min()) or 1.0
        stretched: NDArray[np.float32] = (finite - finite.min()) * np.float32(255.0 / span)
        return stretched.astype(np.uint8)
    wide = samples.astype(np.int64)
    is_16_bit = samples.dtype.itemsize == 2 or wide.max() > 255
    eight = np.clip(wide >> 8 if is_16_bit else wide, 0, 255)
    return eight.astype(np.uint8)


def _upright(source: Image.Image, image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF block says."""
    try:
        orientation = source.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block must not cost a good picture; it only means "not turned"
        return image
    method = _UPRIGHT_BY_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)
