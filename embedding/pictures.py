"""Pictures from strangers: sniffed, measured, then decoded, always to RGB on white and upright.

Takes: encoded bytes, limits, a recipe. Gives: Pillow pictures, pixels for an encoder, thumbnails. Owns: what we accept as a picture.
Never: trusts a content type or a file name, decodes more pixels than the header was allowed to name, or needs torch;
imports numpy only for pictures of floating-point samples: this module is most of a decoding process (`embedding.decode_child`).

Formats are an allow-list handed to Pillow, so that its other parsers (EPS, PDF, FITS, ...) are never reached:
https://pillow.readthedocs.io/en/stable/handbook/security.html; limits: research/reliability.md S1 to S3.
"""

from __future__ import annotations

import importlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from contracts.encoder import PictureRecipe
from contracts.errors import RecordError, SettingsError

if TYPE_CHECKING:  # pydantic and numpy cost a decoding process 0.3 s and 40 MB
    from contracts.settings import Settings

for _format in ("Bmp", "Gif", "Jpeg", "Png", "Tiff", "WebP"):  # else Pillow imports all of its forty parsers at the first TIFF
    importlib.import_module(f"PIL.{_format}ImagePlugin")

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
_FIRST_TURNED = 5  # from here on, width and height are exchanged
_OUT_OF_MEMORY = "out of memory"  # how Pillow's decoders say so, in an OSError
WHITE = (255, 255, 255)
THUMBNAIL_QUALITY = 85
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX}
_REDUCING_GAP = 3.0
_MOST_STRIP = 8
"""A crop looks at no more than this many times the shape's proportions; all but banners are far below."""


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


def open_picture(data: bytes, limits: PictureLimits, recipe: PictureRecipe | None = None) -> Image.Image:
    """Decode the first frame of a picture within limits.

    Parameters
    ----------
    data : bytes
        An encoded JPEG, PNG, WebP, GIF, BMP or TIFF.
    limits : PictureLimits
        Checked before anything is decoded.
    recipe : PictureRecipe, optional
        What the picture is for. Unless it is exact, a JPEG is decoded at the smallest of its 1/2, 1/4, 1/8 scales that still
        has twice the pixels needed on each side (three times as fast on large photographs).

    Returns
    -------
    Image.Image
        Mode RGB, upright, transparency on white.

    Raises
    ------
    RecordError
        ``too_large``, ``unsupported_content_type``, ``too_many_pixels`` or ``decode_failed``.
    MemoryError
        More memory is needed than there is.
    """
    if len(data) > limits.max_bytes:
        raise RecordError("too_large", f"the picture has {len(data)} bytes, the limit is {limits.max_bytes}")
    name = sniff_format(data)
    if name is None:
        raise RecordError("unsupported_content_type", "the content is not JPEG, PNG, WebP, GIF, BMP or TIFF")
    try:
        image = _open_within(data, name, limits.max_pixels)
        if recipe is not None and not recipe.is_exact and name == "JPEG":
            _draft(image, recipe, is_turned=_orientation(image) >= _FIRST_TURNED)
        image.load()
        return _upright(_to_rgb(image), _orientation(image))
    except (RecordError, MemoryError):  # too little memory is told from a bad picture by the caller
        raise
    except Exception as error:  # decoders fail in many ways on bad bytes (OSError, SyntaxError, struct.error, ...); all mean the same
        if _OUT_OF_MEMORY in str(error):
            raise MemoryError from error
        raise RecordError("decode_failed", f"the {name} picture cannot be decoded: {type(error).__name__}") from error


def prepare_picture(data: bytes, recipe: PictureRecipe, limits: PictureLimits) -> Image.Image:
    """Decode a picture and bring it to the recipe's size, mode RGB; raises as `open_picture`."""
    return fit_picture(open_picture(data, limits, recipe), recipe)


def fit_picture(image: Image.Image, recipe: PictureRecipe) -> Image.Image:
    """Bring an RGB picture to the recipe's size."""
    wanted = (recipe.width_pixels, recipe.height_pixels)
    if recipe.fit == "crop":
        image = _without_far_ends(image, wanted)
    width, height = scaled = _scaled_size(image.size, recipe)
    small = image.resize(scaled, _RESAMPLING[recipe.resampling], reducing_gap=None if recipe.is_exact else _REDUCING_GAP)
    if recipe.fit == "letterbox":
        canvas = Image.new("RGB", wanted, recipe.background)
        canvas.paste(small, ((wanted[0] - width) // 2, (wanted[1] - height) // 2))
        return canvas
    if scaled == wanted:
        return small
    left, top = round((width - wanted[0]) / 2), round((height - wanted[1]) / 2)
    return small.crop((left, top, left + wanted[0], top + wanted[1]))


def _scaled_size(size: tuple[int, int], recipe: PictureRecipe) -> tuple[int, int]:
    """Size to which a picture of this size is scaled before it is padded or cut."""
    wide, high = recipe.width_pixels / size[0], recipe.height_pixels / size[1]
    if recipe.fit == "squash":
        return recipe.width_pixels, recipe.height_pixels
    if recipe.fit == "letterbox":
        scale = min(wide, high)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    # Rounded down as torchvision does; the side that decides comes out exact.
    if wide >= high:
        return recipe.width_pixels, max(recipe.height_pixels, recipe.width_pixels * size[1] // size[0])
    return max(recipe.width_pixels, recipe.height_pixels * size[0] // size[1]), recipe.height_pixels


def _without_far_ends(image: Image.Image, wanted: tuple[int, int]) -> Image.Image:
    """Cut a strip's ends off before it is scaled: of 1 x 20000 pixels, scaled to cover 224, a thousand million would be made."""
    width, height = image.size
    most_width, most_height = -(-_MOST_STRIP * height * wanted[0] // wanted[1]), -(-_MOST_STRIP * width * wanted[1] // wanted[0])
    if width <= most_width and height <= most_height:
        return image
    left, top = max(0, (width - most_width) // 2), max(0, (height - most_height) // 2)
    return image.crop((left, top, width - left, height - top))


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
    image = open_picture(data, limits, PictureRecipe(size_pixels, size_pixels, "letterbox"))
    image.thumbnail((size_pixels, size_pixels), Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP)
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


def _draft(image: Image.Image, recipe: PictureRecipe, *, is_turned: bool) -> None:
    """Let the JPEG decoder scale down while it decodes."""
    width, height = image.size
    needed = _scaled_size((height, width) if is_turned else (width, height), recipe)
    across, down = reversed(needed) if is_turned else needed
    scale = 2 * max(across / width, down / height)
    if scale < 1:
        image.draft("RGB", (max(1, int(width * scale)), max(1, int(height * scale))))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; transparent parts show white."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bits(image).convert("RGB")
    if image.mode == "LA":  # in one channel: a copy as RGBA would be four times as large
        grey = Image.new("L", image.size, 255)
        grey.paste(image.getchannel("L"), mask=image.getchannel("A"))
        return grey.convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "La", "PA"):
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGB", layer.size, WHITE)
        canvas.paste(layer, mask=layer.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring grey samples of 16 bits, 32 bits or floating point to mode L.

    Pillow clips such samples, which turns most scans white. Integers are read as 16 bits where one is over 255; floats
    have no agreed range, so they are stretched from their lowest to their highest.
    """
    if image.mode == "F":
        return _stretched(image)
    is_16_bit = image.mode.startswith("I;16") or image.getextrema()[1] > 255  # type: ignore[operator]
    wide = image.convert("I")
    return (wide.point(lambda sample: sample * (1 / 256)) if is_16_bit else wide).convert("L")


def _stretched(image: Image.Image) -> Image.Image:
    import numpy as np  # here alone: scientific pictures may hold infinities and not-a-numbers, which Pillow cannot find

    samples = np.array(image)
    np.nan_to_num(samples, copy=False, posinf=0.0, neginf=0.0)
    np.clip(samples, -1e38, 1e38, out=samples)
    lowest, highest = float(samples.min()), float(samples.max())
    samples -= np.float32(lowest)
    samples *= np.float32(255.0 / ((highest - lowest) or 1.0))
    return Image.fromarray(samples.astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """How the EXIF block says that the picture lies, 1 to 8; 1 where it says nothing that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a broken EXIF block must not cost a good picture; it only means "not turned"
        return 1
    return found if found in _UPRIGHT_BY_ORIENTATION else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT_BY_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)
