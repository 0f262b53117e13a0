"""Promises of the open_clip encoder: open_clip's own vectors, from files of many forms, and nothing but tensors from any of them."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from contracts.errors import CorruptError, HeadwaterError, SettingsError, UnavailableError
from contracts.settings import Settings
from embedding.open_encoder import describe_space, open_encoder
from tests import open_clip_models
from tests.open_clip_models import ARCHITECTURE, WIDER

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.slow  # importing open_clip alone takes seconds

MEDIA = Path(__file__).resolve().parents[2] / "examples" / "media"
TEXTS = ["a dog", "two red cars in the rain at night", ""]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    open_clip_models.register(tmp_path_factory.mktemp("architectures"))
    return open_clip_models.random_model()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(model_dir=tmp_path, cache_dir=tmp_path / "cache", embed_runtime="torch", embed_device="cpu", embed_threads=1)


@pytest.fixture
def weights(reference: Any, tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in reference.state_dict().items()}, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def name_of(file: Path | str, architecture: str = ARCHITECTURE) -> str:
    return f"open_clip:{architecture}/{file}"


def sample_files(count: int) -> Iterator[bytes]:
    for path in sorted(MEDIA.rglob("*.jpg"))[:count]:
        yield path.read_bytes()


def expected_pictures(reference: Any, files: list[bytes]) -> np.ndarray:
    """What open_clip itself makes of the same files."""
    import open_clip
    import torch

    steps = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(size=64), is_train=False)
    tensors = torch.stack([steps(Image.open(io.BytesIO(data)).convert("RGB")) for data in files])
    with torch.no_grad():
        found: np.ndarray = reference.encode_image(tensors, normalize=True).numpy()
    return found


def expected_texts(reference: Any) -> np.ndarray:
    import open_clip
    import torch

    with torch.no_grad():
        found: np.ndarray = reference.encode_text(open_clip.get_tokenizer(ARCHITECTURE)(TEXTS), normalize=True).numpy()
    return found


def test_vectors_are_open_clips_own(reference: Any, weights: Path, settings: Settings) -> None:
    encoder = open_encoder(name_of(weights.name), settings)
    files = list(sample_files(6))
    given = encoder.encode_pictures(np.stack([encoder.prepare_picture(data) for data in files]))
    expected = expected_pictures(reference, files)
    assert given.dtype == np.float32 and given.shape == (6, 32)
    assert np.abs(np.linalg.norm(given, axis=1) - 1).max() < 1e-5
    centre = expected.mean(0)
    ours, theirs = given - centre, expected - centre
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 0.98, "pixels differ by the decoder's scaling only"
    assert np.abs(encoder.encode_texts(TEXTS) - expected_texts(reference)).max() < 1e-5


def test_a_long_text_counts_up_to_its_limit_and_nothing_gives_no_vectors(weights: Path, reference: Any, settings: Settings) -> None:
    encoder = open_encoder(name_of(weights.name), settings)
    long = "house boat tree " * 5000
    assert np.allclose(encoder.encode_texts([long]), encoder.encode_texts([long[:1024]]))
    assert encoder.encode_texts(["x" * 100_000]).shape == (1, 32)
    assert encoder.encode_texts([]).shape == (0, 32)
    assert encoder.encode_pictures(np.empty((0, 64, 64, 3), np.uint8)).shape == (0, 32)
    with pytest.raises(ValueError, match="shape"):
        encoder.encode_pictures(np.zeros((1, 100, 100, 3), np.uint8))


def test_threads_that_encode_at_the_same_time_get_what_they_would_get_alone(weights: Path, reference: Any, settings: Settings) -> None:
    encoder = open_encoder(name_of(weights.name), settings)
    pictures = np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    alone = encoder.encode_pictures(pictures)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda row: encoder.encode_pictures(pictures[row : row + 5]), range(0, 40, 5)))
        texts = list(pool.map(lambda _: encoder.encode_texts(TEXTS), range(8)))
    assert np.allclose(np.concatenate(together), alone, atol=1e-5)
    assert all(np.allclose(found, texts[0], atol=1e-5) for found in texts)


def _state_dict(state: dict[str, torch.Tensor], path: Path) -> None:
    import torch

    torch.save(state, path)


def _training_checkpoint(state: dict[str, torch.Tensor], path: Path) -> None:
    import torch

    torch.save({"epoch": 3, "name": "run", "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)


def _half_precision(state: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.half().contiguous() for name, value in state.items()}, path)


@pytest.mark.parametrize("write", [_state_dict, _training_checkpoint, _half_precision])
def test_every_form_of_file_gives_the_same_vectors(
    write: Callable[[dict[str, torch.Tensor], Path], None], reference: Any, tmp_path: Path, settings: Settings
) -> None:
    write(reference.state_dict(), tmp_path / "weights.bin")  # told apart by content, not by name
    encoder = open_encoder(name_of("weights.bin"), settings)
    assert np.abs(encoder.encode_texts(TEXTS) - expected_texts(reference)).max() < 2e-3


def test_a_space_is_the_bytes_of_the_file_wherever_it_lies(weights: Path, reference: Any, tmp_path: Path, settings: Settings) -> None:
    from safetensors.torch import save_file

    space = describe_space(name_of(weights.name), settings)
    assert space.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (space.encoder, space.dimension, space.metric) == (f"open_clip:{ARCHITECTURE}", 32, "cosine")
    moved = tmp_path / "elsewhere" / "other.bin"
    moved.parent.mkdir()
    moved.write_bytes(weights.read_bytes())
    assert describe_space(name_of(moved), settings) == space, "an absolute path stands behind a second slash"
    assert open_encoder(name_of(weights.name), settings).space == space
    save_file({name: value.contiguous() for name, value in open_clip_models.random_model(seed=1).state_dict().items()}, moved)
    assert describe_space(name_of(moved), settings).space_id != space.space_id


def test_preprocessing_comes_from_the_configuration_beside_the_weights_and_is_part_of_the_space(
    weights: Path, reference: Any, tmp_path: Path, settings: Settings
) -> None:
    plain = describe_space(name_of(weights.name), settings)
    ours = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "longest", "fill_color": 7}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": ours}))
    encoder = open_encoder(name_of(weights.name), settings)
    recipe = encoder.picture_recipe
    assert (recipe.fit, recipe.resampling, recipe.background, recipe.shape) == ("letterbox", "bilinear", (7, 7, 7), (64, 64, 3))
    assert encoder.space.space_id != plain.space_id
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(SettingsError, match="open_clip_config.json"):
        describe_space(name_of(weights.name), settings)


def test_an_architecture_whose_published_weights_agree_is_prepared_as_they_are(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "any").write_bytes(b"the space needs its hash only")
    assert "squash 224" in describe_space(name_of("any", "ViT-B-16-SigLIP"), settings).preprocessing
    assert "(x/255-(0.5,0.5,0.5))/(0.5,0.5,0.5)" in describe_space(name_of("any", "ViT-B-16-SigLIP"), settings).preprocessing
    assert "crop 224 bicubic" in describe_space(name_of("any", "ViT-B-32"), settings).preprocessing
    assert "quick gelu" in describe_space(name_of("any", "ViT-B-32-quickgelu"), settings).preprocessing


def test_a_pinned_hash_is_held_for_the_space_and_for_the_weights(weights: Path, reference: Any, settings: Settings) -> None:
    right = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert open_encoder(f"{name_of(weights.name)}#sha256={right}", settings).space == describe_space(name_of(weights.name), settings)
    for ask in (describe_space, open_encoder):
        with pytest.raises(CorruptError, match="pinned"):
            ask(f"{name_of(weights.name)}#sha256={'0' * 64}", settings)


@pytest.mark.parametrize("form", ["safetensors", "state dict"])
def test_a_truncated_file_is_corrupt(form: str, weights: Path, reference: Any, tmp_path: Path, settings: Settings) -> None:
    import torch

    torch.save(reference.state_dict(), tmp_path / "tiny.pt")
    body = (weights if form == "safetensors" else tmp_path / "tiny.pt").read_bytes()
    (tmp_path / "cut").write_bytes(body[: len(body) * 2 // 3])
    with pytest.raises(CorruptError, match="cut off"):
        open_encoder(name_of("cut"), settings)


def test_another_architectures_weights_are_refused_with_what_does_not_fit(weights: Path, reference: Any, settings: Settings) -> None:
    with pytest.raises(SettingsError, match=r"another architecture's weights.*of another shape; the first is \w+"):
        open_encoder(name_of(weights.name, WIDER), settings)


def test_a_file_that_lacks_tensors_is_refused_not_filled_with_random_ones(reference: Any, tmp_path: Path, settings: Settings) -> None:
    from safetensors.torch import save_file

    state = {name: value.contiguous() for name, value in reference.state_dict().items() if not name.startswith("visual.ln_post")}
    save_file(state, tmp_path / "lacking")
    with pytest.raises(SettingsError, match="2 tensors are missing"):
        open_encoder(name_of("lacking"), settings)


def _bare_pickle(code: bytes) -> bytes:
    return code


def _zipped_pickle(code: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as pack:
        pack.writestr("archive/data.pkl", code)
        pack.writestr("archive/version", "3\n")
        pack.writestr("archive/byteorder", "little")
    return archive.getvalue()


@pytest.mark.parametrize("wrap", [_bare_pickle, _zipped_pickle])
def test_a_pickle_with_code_in_it_is_refused_and_the_code_does_not_run(
    wrap: Callable[[bytes], bytes], reference: Any, tmp_path: Path, settings: Settings
) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "evil").write_bytes(
        wrap(b"\x80\x02cposix\nsystem\n(X" + len(f"touch {marker}").to_bytes(4, "little") + f"touch {marker}".encode() + b"tR.")
    )
    with pytest.raises(SettingsError, match="pickle|Python objects") as caught:
        open_encoder(name_of("evil"), settings)
    assert "safetensors" in caught.value.hint
    assert not marker.exists()


def test_a_program_in_place_of_weights_is_not_run(reference: Any, tmp_path: Path, settings: Settings) -> None:
    import torch

    class Program(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    with pytest.warns(FutureWarning):
        torch.jit.script(Program()).save(str(tmp_path / "program.pt"))
    with pytest.raises(SettingsError, match="TorchScript"):
        open_encoder(name_of("program.pt"), settings)


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("open_clip:", SettingsError, "not an open_clip name"),
        ("open_clip:ViT-B-32", SettingsError, "not an open_clip name"),
        ("open_clip:../../etc/passwd", SettingsError, "no architecture"),
        ("open_clip:NoSuch-99/file.pt", SettingsError, "no architecture 'NoSuch-99'"),
        (f"open_clip:{ARCHITECTURE}/nowhere.pt", SettingsError, "nowhere.pt cannot be read"),
        (f"open_clip:{ARCHITECTURE}/nowhere.pt#sha256=12", SettingsError, "not an open_clip name"),
    ],
)
def test_a_wrong_name_is_told_in_one_line(name: str, kind: type[HeadwaterError], told: str, reference: Any, settings: Settings) -> None:
    with pytest.raises(kind) as caught:
        describe_space(name, settings)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_a_tag_that_cannot_be_fetched_are_told_in_one_line(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError, match="ViT-B-32/laion2b_s34b_b79k .*cannot be fetched") as caught:
        describe_space("open_clip:ViT-B-32/laion2b_s34b_b79k", settings)
    assert "open_clip:ARCH/FILE" in caught.value.hint


def test_both_towers_keep_their_vectors_with_bfloat16_weights(weights: Path, reference: Any, settings: Settings) -> None:
    import torch

    from embedding.open_clip_name import find_model
    from embedding.open_clip_towers import PictureTower, TextTower, load_model
    from embedding.parity import MIN_COSINE, centred_cosine, probe_pictures
    from embedding.torch_runner import TorchRunner

    model = find_model(name_of(weights.name), settings)
    pictures = probe_pictures(64, 64)
    tokens = np.random.default_rng(2).integers(1, 40_000, (6, 16))
    given = {}
    for dtype in (torch.float32, torch.bfloat16):
        whole: Any = load_model(model)
        tower = PictureTower(whole.visual, model.mean, model.deviation)
        run, read = (TorchRunner(module, torch.device("cpu"), dtype, 1) for module in (tower, TextTower(whole)))
        given[dtype] = run(pictures), read(tokens)
    for true, short in zip(given[torch.float32], given[torch.bfloat16], strict=True):
        assert not np.array_equal(true, short), "they are rounded"
        assert centred_cosine(true, short) >= MIN_COSINE
