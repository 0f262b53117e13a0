"""Promises of `embedding.decode_pool`: whatever a picture does to its decoder, only that picture is rejected."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contracts.encoder import PictureRecipe
from contracts.errors import RecordError, UnavailableError
from contracts.settings import MEBIBYTE, Settings
from embedding.decode_pool import DecodePool
from embedding.pictures import PictureLimits
from embedding.prepare import prepared_array
from tests.embedding.crashing_child import ABORT, DIE_ONCE, HANG, HOARD, LIE, SLEEP

RECIPE = PictureRecipe(64, 64, "letterbox")
ROOT = Path(__file__).resolve().parents[2]
CRASHING = "tests.embedding.crashing_child"


def encoded(image: Image.Image, name: str = "PNG", **options: object) -> bytes:
    body = io.BytesIO()
    image.save(body, name, **options)
    return body.getvalue()


def coloured(number: int) -> bytes:
    return encoded(Image.new("RGB", (80, 60), (number % 256, 255 - number % 256, 7)), "JPEG")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(Settings(decode_children=2, decode_memory_bytes=256 * MEBIBYTE)) as made:
        yield made


def crashing_pool(decode_seconds: float) -> DecodePool:
    return DecodePool(Settings(decode_children=2, decode_memory_bytes=256 * MEBIBYTE, decode_seconds=decode_seconds), CRASHING)


@pytest.fixture(scope="module")
def crashing() -> Iterator[DecodePool]:
    with crashing_pool(60.0) as made:
        yield made


@pytest.fixture(scope="module")
def impatient() -> Iterator[DecodePool]:
    with crashing_pool(1.0) as made:
        yield made


def reason_of(pool: DecodePool, data: bytes) -> str:
    with pytest.raises(RecordError) as caught:
        pool.prepare(data, RECIPE)
    return caught.value.reason


def children(pool: DecodePool) -> set[int]:
    return {child.pid for child in pool._alive}


@pytest.mark.parametrize("recipe", [RECIPE, PictureRecipe(30, 20, "crop", "box"), PictureRecipe(224, 224, "squash", "bilinear", is_exact=True)])
def test_a_child_gives_the_pixels_that_this_process_would(pool: DecodePool, recipe: PictureRecipe) -> None:
    limits = PictureLimits.from_settings(Settings())
    for number in (1, 200):
        assert np.array_equal(pool.prepare(coloured(number), recipe), prepared_array(coloured(number), recipe, limits))


def test_many_callers_at_once_each_get_their_own_picture(pool: DecodePool) -> None:
    wanted = [prepared_array(coloured(number), RECIPE, PictureLimits.from_settings(Settings())) for number in range(60)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: pool.prepare(coloured(number), RECIPE), range(60)))
    assert np.array_equal(found, wanted)
    assert len(children(pool)) <= 2


def test_a_rejected_picture_costs_no_child(pool: DecodePool) -> None:
    pool.prepare(coloured(1), RECIPE)
    before = children(pool)
    assert reason_of(pool, b"%!PS-Adobe-3.0 EPSF-3.0\n") == "unsupported_content_type"
    assert reason_of(pool, b"\xff\xd8\xff garbage") == "decode_failed"
    assert reason_of(pool, b"") == "unsupported_content_type"
    assert children(pool) == before


def test_a_thumbnail_is_made_by_a_child_too(pool: DecodePool) -> None:
    with Image.open(io.BytesIO(pool.thumbnail(coloured(3), 40))) as image:
        assert (image.format, image.size) == ("JPEG", (40, 30))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(ABORT, "decode_crashed"), (HANG, "decode_timeout"), (SLEEP, "decode_timeout"), (HOARD, "decode_memory"), (LIE, "decode_crashed")],
)
def test_a_child_that_dies_hangs_hoards_or_lies_is_replaced_and_its_neighbours_are_decoded(
    crashing: DecodePool, impatient: DecodePool, bad: bytes, reason: str
) -> None:
    pool = impatient if reason == "decode_timeout" else crashing
    good = [pool.submit(coloured(number), RECIPE) for number in range(8)]
    guilty = pool.submit(bad, RECIPE)
    more = [pool.submit(coloured(number), RECIPE) for number in range(8, 16)]
    assert isinstance(guilty.exception(20), RecordError)
    assert guilty.exception().reason == reason  # type: ignore[union-attr]
    assert all(abs(int(future.result(20)[32, 32, 0]) - number) < 9 for number, future in enumerate(good + more))


def test_a_child_that_dies_by_chance_costs_nothing(crashing: DecodePool, tmp_path: Path) -> None:
    marker = tmp_path / "once"
    marker.touch()
    assert reason_of(crashing, DIE_ONCE + str(marker).encode()) == "decode_failed"  # the second try read on, and found no picture
    assert not marker.exists()


def test_a_child_killed_from_outside_costs_no_picture(pool: DecodePool) -> None:
    pool.prepare(coloured(1), RECIPE)
    for pid in children(pool):
        os.kill(pid, signal.SIGKILL)
    assert pool.prepare(coloured(9), RECIPE).shape == RECIPE.shape


def test_a_real_picture_beyond_the_memory_limit_is_rejected_and_the_next_one_decoded(pool: DecodePool) -> None:
    big = encoded(Image.new("RGB", (9_000, 9_000)), "PNG", compress_level=1)
    assert reason_of(pool, big) == "decode_memory"
    assert pool.prepare(coloured(9), RECIPE).shape == RECIPE.shape


def test_limits_are_checked_by_the_child() -> None:
    with DecodePool(Settings(decode_children=1, max_picture_bytes=300, max_picture_pixels=100)) as small:
        assert reason_of(small, encoded(Image.new("L", (11, 10)))) == "too_many_pixels"
        assert reason_of(small, bytes(301)) == "too_large"


def test_a_child_holds_no_secret_and_opens_no_framework(pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_STORE_SECRET_KEY", "a-very-secret-key")
    with DecodePool(Settings(decode_children=1)) as fresh:
        fresh.prepare(coloured(1), RECIPE)
        (pid,) = children(fresh)
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "_imaging" in maps and not [name for name in ("torch", "faiss", "numpy", "pyarrow", "pydantic") if name in maps]
        assert not [link for link in Path(f"/proc/{pid}/fd").iterdir() if str(link.readlink()).endswith((".sqlite", ".pyc"))]


def test_two_children_are_small(pool: DecodePool) -> None:
    pool.warm()
    resident_kib = 0
    for pid in children(pool):
        line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
        resident_kib += int(line.split()[1])
    assert len(children(pool)) == 2 and resident_kib < 150 * 1024


def test_closing_ends_every_child_even_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedding.decode_pool.END_SECONDS", 0.1)
    hanging = DecodePool(Settings(decode_children=2, decode_seconds=60.0), CRASHING)
    stuck = [hanging.submit(HANG, RECIPE), hanging.submit(coloured(1), RECIPE)]
    stuck[1].result(20)
    pids = children(hanging)
    began = time.monotonic()
    hanging.close()
    assert time.monotonic() - began < 10 and isinstance(stuck[0].exception(1), UnavailableError)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("after_seconds", [0.0, 0.05, 0.1, 0.15, 0.2])
def test_closing_ends_a_child_that_was_just_starting_for_a_picture_that_hangs(after_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedding.decode_pool.END_SECONDS", 0.1)
    pool = DecodePool(Settings(decode_children=1, decode_seconds=60.0), CRASHING)
    stuck = pool.submit(HANG, RECIPE)
    time.sleep(after_seconds)
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 20
    assert stuck.cancelled() or isinstance(stuck.exception(1), UnavailableError)


def test_children_end_when_their_parent_is_killed() -> None:
    code = (
        "import os, signal\n"
        "from contracts.settings import Settings\n"
        "from embedding.decode_pool import DecodePool\n"
        "pool = DecodePool(Settings(decode_children=2)); pool.warm()\n"
        "print(*[child.pid for child in pool._alive], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    pids = done.stdout.split()
    assert len(pids) == 2, done.stderr
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_where_no_child_starts_no_picture_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedding.decode_pool.RETRY_SECONDS", 0.01)
    with DecodePool(Settings(decode_children=1), "no.such.module") as broken, pytest.raises(UnavailableError, match="no decoding process"):
        broken.prepare(coloured(1), RECIPE)
