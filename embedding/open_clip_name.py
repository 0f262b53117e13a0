"""Names of open_clip encoders, and what they mean on this machine: an architecture, a weights file, how pictures are prepared.

    open_clip:ViT-B-32/laion2b_s34b_b79k              weights that open_clip knows by this tag; fetched at first use
    open_clip:ViT-B-32/models/my.safetensors          a file, from the current folder, or else from the setting model_dir
    open_clip:ViT-B-32//srv/models/my.pt#sha256=...   an absolute path; the file must have this hash

Takes: a name, settings. Gives: `OpenClipModel`. Owns: the form of a name, and where preprocessing comes from.
Never: loads weights; fetches a file that was not named by a tag.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.encoder import EmbeddingSpace, Fit, PictureRecipe
from contracts.errors import SettingsError, UnavailableError
from contracts.settings import Settings
from embedding.weights_file import file_sha256

PREFIX = "open_clip:"
CONFIG_FILE = "open_clip_config.json"
"""Beside weights on the hub and in open_clip's own exports; its `preprocess_cfg` says how pictures were prepared in training."""
MAX_CHARACTERS = 1024
"""Of a text; 77 tokens of prose are some 350. The tokenizer's work on one long word grows with the square of its length."""
PIN = "#sha256="
_FORM = re.compile(r"open_clip:(?P<arch>[A-Za-z0-9._-]{1,100})/(?P<source>[^#]{1,1000})(?:#sha256=(?P<sha256>[0-9a-f]{64}))?")
_HINT = "write open_clip:ARCH/TAG or open_clip:ARCH/FILE, with #sha256=HEX behind it to pin the file"
_FITS: dict[str, Fit] = {"shortest": "crop", "longest": "letterbox", "squash": "squash"}
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode", "fill_color")


@dataclass(frozen=True, slots=True)
class OpenClipModel:
    """An open_clip model as it lies on this machine.

    `config` is open_clip's configuration of the architecture; `mean` and `deviation` are of pixels from 0 to 1, RGB.
    """

    architecture: str
    config: Mapping[str, Any]
    weights_path: Path
    weights_sha256: str
    recipe: PictureRecipe
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    @property
    def space(self) -> EmbeddingSpace:
        """The space of its vectors. Neither the path nor the tag is part of it: the same bytes are the same space everywhere."""
        text = self.config["text_cfg"]
        tokenizer = text.get("hf_tokenizer_name") or "clip bpe"
        gelu = ", quick gelu" if self.config.get("quick_gelu") else ""
        return EmbeddingSpace(
            encoder=f"{PREFIX}{self.architecture}",
            weights_sha256=self.weights_sha256,
            preprocessing=f"picture: {self.recipe.description}, (x/255-{_told(self.mean)})/{_told(self.deviation)}; "
            f"text: first {MAX_CHARACTERS} characters, {tokenizer}, {text.get('context_length', 77)} tokens{gelu}",
            dimension=int(self.config["embed_dim"]),
            metric="cosine",
        )


def find_model(name: str, settings: Settings) -> OpenClipModel:
    """What a name means here; the weights file is hashed, not parsed.

    Raises
    ------
    SettingsError
        The name, the architecture or the path is wrong.
    CorruptError
        The file has another hash than the pinned one.
    UnavailableError
        The weights of a tag are not on this machine, and cannot be fetched.
    """
    import open_clip

    match = _FORM.fullmatch(name)
    if match is None:
        raise SettingsError(f"encoder {name[:200]!r} is not an open_clip name", hint=_HINT)
    architecture, source, pinned = match["arch"], match["source"], match["sha256"]
    config = open_clip.get_model_config(architecture)
    if config is None:
        near = [known for known in open_clip.list_models() if known[:4] == architecture[:4]][:8]
        raise SettingsError(f"open_clip has no architecture {architecture!r}", hint=f"for example {', '.join(near or ['ViT-B-32', 'RN50'])}")
    published = open_clip.get_pretrained_cfg(architecture, source)
    if published:
        path, preprocessing = _fetch(architecture, source, published), published
        config["quick_gelu"] = bool(published.get("quick_gelu", False)) or bool(config.get("quick_gelu", False))
    else:
        path = Path(source) if Path(source).is_file() else settings.model_dir / source
        preprocessing = _preprocessing_of_file(architecture, path)
    recipe, mean, deviation = _picture_steps(config, preprocessing)
    return OpenClipModel(architecture, config, path, file_sha256(path, pinned), recipe, mean, deviation)


def full_name(name: str, settings: Settings) -> str:
    """The name with the hash of its weights file behind it: on any machine it is then this very encoder, or none. Raises as `find_model`."""
    return f"{name.partition(PIN)[0]}{PIN}{find_model(name, settings).weights_sha256}"


def _fetch(architecture: str, tag: str, published: Mapping[str, Any]) -> Path:
    """The tag's weights file, out of the hub's cache on this machine or from the network."""
    from open_clip.pretrained import download_pretrained

    try:
        return Path(download_pretrained(published))
    except Exception as error:  # a dozen classes of three libraries
        raise UnavailableError(
            f"the weights of {architecture}/{tag} are not on this machine and cannot be fetched: {type(error).__name__}",
            hint="connect to huggingface.co once, or name a file: open_clip:ARCH/FILE",
        ) from error


def _preprocessing_of_file(architecture: str, path: Path) -> Mapping[str, Any]:
    """How pictures were prepared for a file's weights: its own configuration says so, else all published weights of its architecture do.

    Where those disagree, open_clip's own default is taken, as open_clip does for a file.
    """
    import open_clip

    beside = path.parent / CONFIG_FILE
    if beside.is_file():
        try:
            found = json.loads(beside.read_bytes())["preprocess_cfg"]
            return {name: found[name] for name in _PREPROCESSING if found.get(name) is not None}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(f"{beside} cannot be read, or has no preprocess_cfg", hint="mend or remove it") from error
    published = [open_clip.get_pretrained_cfg(architecture, tag) for tag in open_clip.list_pretrained_tags_by_model(architecture)]
    ways = [{name: way[name] for name in _PREPROCESSING if name in way} for way in published]
    return ways[0] if ways and all(way == ways[0] for way in ways) else {}


def _picture_steps(
    config: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> tuple[PictureRecipe, tuple[float, float, float], tuple[float, float, float]]:
    from open_clip.transform import PreprocessCfg

    steps = {
        **{name: getattr(PreprocessCfg(), name) for name in _PREPROCESSING},
        **{n: preprocessing[n] for n in _PREPROCESSING if n in preprocessing},
    }
    size = config["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    try:
        fill = int(steps["fill_color"])
        recipe = PictureRecipe(
            width_pixels=int(width),
            height_pixels=int(height),
            fit=_FITS[steps["resize_mode"]],
            resampling="bilinear" if steps["interpolation"] == "bilinear" else "bicubic",
            background=(fill, fill, fill) if _FITS[steps["resize_mode"]] == "letterbox" else (255, 255, 255),
        )
        return recipe, _triple(steps["mean"]), _triple(steps["std"])
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"preprocessing that we do not know: {error}", hint=f"mend {CONFIG_FILE} beside the weights") from error


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (values,) * 3 if isinstance(values, int | float) else values
    return float(red), float(green), float(blue)


def _told(values: tuple[float, float, float]) -> str:
    return "({:g},{:g},{:g})".format(*values)
