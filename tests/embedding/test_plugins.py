"""Encoders from other packages: found by real entry points of real distributions in a folder, and blamed by name when they break the protocol."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import RecordError, SettingsError
from contracts.settings import Settings
from embedding.open_encoder import describe_space, full_encoder_name, open_encoder

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
import hashlib
import numpy as np
from contracts.encoder import EmbeddingSpace, PictureRecipe
from embedding.pictures import PictureLimits
from embedding.prepare import prepared_array

DIMENSION = 16
RECIPE = PictureRecipe(8, 8, "squash")


def describe_space(name, settings):
    return EmbeddingSpace(name, hashlib.sha256(b"weights").hexdigest(), RECIPE.description, DIMENSION, "cosine")


class ToyEncoder:
    picture_recipe = RECIPE

    def __init__(self, name, settings):
        self.space = describe_space(name, settings)
        self.limits = PictureLimits.from_settings(settings)

    def prepare_picture(self, data):
        return prepared_array(data, RECIPE, self.limits)

    def encode_pictures(self, pictures):
        return unit(pictures.reshape(len(pictures), -1)[:, :DIMENSION].astype(np.float32) + 1)

    def encode_texts(self, texts):
        return unit(np.array([[1 + text.count(chr(97 + at)) for at in range(DIMENSION)] for text in texts], np.float32).reshape(-1, DIMENSION))


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def open_encoder(name, settings):
    return ToyEncoder(name, settings)
"""
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with one module and one entry point on the path, as an installer does."""

    def write(distribution: str, prefix: str, source: str, module: str | None = None, target: str = "") -> Path:
        folder = tmp_path / distribution
        module = module or distribution.replace("-", "_")
        info = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[headwater.encoders]\n{prefix} = {target or module}\n")
        (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, module, raising=False)
        return folder

    return write


def test_a_plugins_encoder_is_opened_by_its_prefix_and_described_in_the_same_space(install: Install) -> None:
    install("acme-toy", "acme", GOOD)
    encoder = open_encoder("acme:small", Settings())
    assert encoder.space == describe_space("acme:small", Settings()) and encoder.space.space_id.startswith("acme:small@")
    assert encoder.encode_texts(["abc", "aab"]).shape == (2, 16) and encoder.encode_texts([]).shape == (0, 16)
    assert full_encoder_name("acme:small", Settings(), with_pictures=True) == "acme:small"
    with pytest.raises(RecordError, match="not JPEG"):
        encoder.prepare_picture(b"no picture")
    with pytest.raises(SettingsError, match=r"name one of: .*acme\[:\.\.\.\]"):
        open_encoder("acmee:small", Settings())


def test_the_command_line_creates_a_collection_with_a_plugins_encoder(install: Install, tmp_path: Path) -> None:
    folder = install("acme-toy", "acme", GOOD)
    environment = {"HEADWATER_LOG_URL": "sqlite:///log.sqlite", "HEADWATER_STORE_URL": "file:///store", "PYTHONPATH": f"{ROOT}:{folder}"}
    code = "from headwater.cli import main; main(['collection', 'create', 'c', '--encoder', 'acme:small', '--fields', 'image'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "fields image" in done.stdout, done.stderr


def test_two_plugins_of_one_prefix_are_both_named_and_neither_is_imported(install: Install) -> None:
    install("acme-toy", "acme", "raise SystemExit('imported')")
    install("other-toy", "acme", "raise SystemExit('imported')")
    with pytest.raises(SettingsError, match=r"claimed by several plug-ins: acme-toy 1\.2, other-toy 1\.2"):
        open_encoder("acme", Settings())


@pytest.mark.parametrize("prefix", ["lite", "remote", "lite+map"])
def test_a_plugin_cannot_take_a_name_of_ours(install: Install, prefix: str) -> None:
    install("acme-toy", prefix, GOOD)
    with pytest.raises(SettingsError, match=r"acme-toy 1\.2 has the name of an encoder of ours"):
        describe_space(prefix, Settings())


BROKEN = {
    "does not import": ("import no_such_package_at_all", "needs the package no_such_package_at_all"),
    "raises at import": ("raise RuntimeError('half\\ninstalled')", "failed in loading: RuntimeError: half"),
    "has no open_encoder": (GOOD.replace("def open_encoder", "def opened"), "has no function open_encoder"),
    "fails when opened": (GOOD.replace("return ToyEncoder(name, settings)", "return 1 / 0"), "failed in open_encoder: ZeroDivisionError"),
    "gives no encoder": (GOOD.replace("return ToyEncoder(name, settings)", "return settings"), "without space, picture_recipe"),
    "has a space of its own kind": (GOOD.replace("return EmbeddingSpace(", "return ("), "by tuple|of type tuple|not by a contracts"),
    "takes another name": (GOOD.replace("EmbeddingSpace(name,", "EmbeddingSpace('lite',"), "calls its space 'lite'"),
    "compares by dot": (GOOD.replace('"cosine"', '"dot"'), "compares by 'dot'"),
    "has no recipe": (GOOD.replace("picture_recipe = RECIPE", "picture_recipe = (8, 8, 3)"), "picture_recipe of type tuple"),
    "prepares other pixels": (
        GOOD.replace("return prepared_array(data, RECIPE, self.limits)", "return np.zeros((9, 8, 3), np.uint8)"),
        r"\(9, 8, 3\)",
    ),
    "rejects good pictures": (GOOD.replace("return prepared_array(data, RECIPE, self.limits)", "raise OSError('x')"), "known to be good"),
    "gives float64": (
        GOOD.replace(".astype(np.float32)\n\n\ndef open", "\n\n\ndef open").replace("DIMENSION].astype(np.float32)", "DIMENSION]"),
        "float64",
    ),
    "gives another dimension": (GOOD.replace("[:, :DIMENSION]", "[:, :7]"), r"float32 of shape \(2, 7\), not to float32 of shape \(2, 16\)"),
    "gives lists": (GOOD.replace("return unit(pictures", "return list(pictures"), "to list|failed in"),
    "is not of unit length": (GOOD.replace("rows / np", "2 * rows / np"), r"not of unit length \(2\)"),
    "gives NaN": (GOOD.replace("rows / np", "np.nan * rows / np"), r"not of unit length \(nan\)"),
    "fails on texts": (GOOD.replace("for text in texts]", "for text in texts.split()]"), "failed in encode_texts: AttributeError"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_plugin_is_one_line_that_names_its_distribution(install: Install, how: str) -> None:
    source, told = BROKEN[how]
    assert source != GOOD
    install("acme-toy", "acme", source)
    with pytest.raises(SettingsError, match=told) as caught:
        open_encoder("acme:small", Settings())
    assert "acme-toy 1.2" in str(caught.value) and "\n" not in str(caught.value)


def test_an_answer_that_breaks_the_protocol_later_is_noticed_too(install: Install) -> None:
    install("acme-toy", "acme", GOOD.replace("for text in texts]", "for text in (texts[:2] if len(texts) > 2 else texts)]"))
    encoder = open_encoder("acme:small", Settings())
    assert np.allclose(np.linalg.norm(encoder.encode_texts(["a", "b"]), axis=1), 1)
    with pytest.raises(SettingsError, match=r"acme-toy 1\.2 encodes texts to float32 of shape \(2, 16\)"):
        encoder.encode_texts(["a", "b", "c"])
