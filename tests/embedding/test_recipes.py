"""Promises of `contracts.encoder.PictureRecipe`: every picture comes out at the recipe's size, as the model's authors would make it."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from contracts.encoder import PictureRecipe
from embedding.pictures import PictureLimits, fit_picture, open_picture, prepare_picture
from embedding.prepare import prepared_array

LIMITS = PictureLimits(1 << 24, 1 << 26)
RECIPES = [
    PictureRecipe(64, 48, fit, resampling, is_exact=is_exact)  # type: ignore[arg-type]
    for fit in ("letterbox", "crop", "squash")
    for resampling in ("bilinear", "bicubic", "box")
    for is_exact in (True, False)
]


def photograph(width: int, height: int) -> Image.Image:
    """Smooth structure of every direction, so that a shift, a turn or another filter shows."""
    coarse = np.random.default_rng(7).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: object) -> bytes:
    body = io.BytesIO()
    image.save(body, "JPEG", quality=95, **options)
    return body.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (640, 480), (479, 641), (20_000, 1), (1, 20_000), (64, 48)])
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_every_recipe_gives_its_own_size_for_every_shape(recipe: PictureRecipe, size: tuple[int, int]) -> None:
    pixels = prepared_array(jpeg(Image.new("RGB", size, (10, 200, 30))), recipe, LIMITS)
    assert pixels.shape == recipe.shape and pixels.nbytes == recipe.size_bytes
    middle = pixels[22:26, 30:34].astype(int)  # of a line in a letterbox, one row or column
    assert np.abs(middle - (10, 200, 30)).max(-1).min() <= 4


@pytest.mark.slow  # importing torchvision takes seconds
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (501, 333), (333, 501), (224, 900), (300, 300), (100, 77)])
@pytest.mark.parametrize("resampling", ["bilinear", "bicubic"])
def test_an_exact_crop_is_torchvisions_resize_and_centre_crop(size: tuple[int, int], resampling: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = photograph(*size)
    mode = transforms.InterpolationMode(resampling)
    wanted = transforms.CenterCrop(224)(transforms.Resize(224, interpolation=mode)(image))
    found = fit_picture(image, PictureRecipe(224, 224, "crop", resampling, is_exact=True))  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(found), np.asarray(wanted))


@pytest.mark.parametrize("size", [(640, 480), (480, 640)])
def test_a_squash_scales_each_side_on_its_own(size: tuple[int, int]) -> None:
    image = photograph(*size)
    found = fit_picture(image, PictureRecipe(96, 64, "squash", "bilinear", is_exact=True))
    assert np.array_equal(np.asarray(found), np.asarray(image.resize((96, 64), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_fast_way_gives_nearly_the_pixels_of_the_exact_one(recipe: PictureRecipe, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photograph(1600, 1200), exif=exif)
    fast = np.asarray(prepare_picture(data, replace(recipe, is_exact=False), LIMITS)).astype(int)
    exact = np.asarray(prepare_picture(data, replace(recipe, is_exact=True), LIMITS)).astype(int)
    assert np.abs(fast - exact).mean() < 2.0


@pytest.mark.parametrize("fit", ["letterbox", "crop", "squash"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_jpeg_is_never_decoded_below_twice_the_pixels_needed(fit: str, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    data = jpeg(photograph(2048, 1024), exif=exif)
    recipe = PictureRecipe(100, 200, fit)  # type: ignore[arg-type]
    full, scaled = open_picture(data, LIMITS), open_picture(data, LIMITS, recipe)
    assert scaled.width < full.width and scaled.size[0] * full.height == pytest.approx(scaled.size[1] * full.width, rel=0.02)
    needed = {"letterbox": min, "crop": max}.get(fit)
    across, down = 100 / full.width, 200 / full.height
    ratio = scaled.width / full.width
    assert ratio >= 2 * (needed(across, down) if needed else max(across, down))


def test_a_recipe_survives_json_and_tells_itself_apart() -> None:
    recipe = PictureRecipe(336, 224, "letterbox", "box", is_exact=True, background=(1, 2, 3))
    assert PictureRecipe.from_json(recipe.to_json()) == recipe
    changed = [replace(recipe, width_pixels=224), replace(recipe, fit="crop"), replace(recipe, resampling="bicubic"), replace(recipe, is_exact=False)]
    changed += [replace(recipe, background=(0, 0, 0)), recipe]
    assert len({one.description for one in changed}) == len(changed)


def test_what_is_outside_a_letterbox_has_the_recipes_colour() -> None:
    recipe = PictureRecipe(32, 32, "letterbox", background=(0, 0, 0))
    pixels = np.asarray(fit_picture(Image.new("RGB", (64, 32), (200, 200, 200)), recipe))
    assert pixels[:8].max() == 0 and pixels[-8:].max() == 0 and pixels[16].min() == 200
