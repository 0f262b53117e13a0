"""The two towers of an open_clip model as modules of their own, and how weights get into them.

Takes: an `OpenClipModel`. Gives: `PictureTower`, `TextTower`. Owns: the check that weights fit the architecture.
Never: resizes what does not fit, or leaves a tensor at random.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from contracts.errors import CorruptError, SettingsError
from embedding.open_clip_name import OpenClipModel
from embedding.weights_file import read_weights

logger = logging.getLogger(__name__)


class PictureTower(torch.nn.Module):
    """Prepared pictures to unit vectors."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, visual: torch.nn.Module, mean: tuple[float, float, float], deviation: tuple[float, float, float]) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("mean", 255.0 * torch.tensor(mean))
        self.register_buffer("deviation", 255.0 * torch.tensor(deviation))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Unit vectors, shape (n, dimension), float32, of uint8 pictures, shape (n, height, width, 3)."""
        scaled = (pictures.float() - self.mean.float()) / self.deviation.float()
        found: Any = self.visual(scaled.permute(0, 3, 1, 2).to(self.mean.dtype))
        features = found[0] if isinstance(found, tuple) else found  # CoCa's gives its tokens too
        return functional.normalize(features.float(), dim=-1)


class TextTower(torch.nn.Module):
    """Token ids to unit vectors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Unit vectors, shape (n, dimension), float32, of token ids, shape (n, context length)."""
        return functional.normalize(self.model.encode_text(tokens).float(), dim=-1)


def load_model(model: OpenClipModel) -> torch.nn.Module:
    """Make the architecture and fill it from the weights file; in evaluation mode, float32, on the CPU.

    Raises
    ------
    SettingsError
        The file holds another architecture's weights, or more than tensors.
    CorruptError
        The file is damaged, or changed since it was described.
    """
    sha256, state = read_weights(model.weights_path, model.weights_sha256)
    if sha256 != model.weights_sha256:
        raise CorruptError(f"weights file {model.weights_path} changed while it was read", hint="try again")
    made = _empty(model)
    try:
        state = _in_its_form(made, state)
        _check_fit(model, made.state_dict(), state)
        made.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise SettingsError(f"weights file {model.weights_path} does not fit {model.architecture}: {error}", hint="name its architecture") from error
    made.requires_grad_(False).train(False)
    return made


def _empty(model: OpenClipModel) -> torch.nn.Module:
    """The architecture with random weights; nothing is fetched for its parts."""
    from open_clip.model import CLIP, CustomTextCLIP

    config = copy.deepcopy(dict(model.config))
    if "multimodal_cfg" in config:
        from open_clip.coca_model import CoCa as Whole
    else:
        is_custom = bool(config.get("custom_text")) or "hf_model_name" in config["text_cfg"]
        Whole = CustomTextCLIP if is_custom else CLIP  # noqa: N806 - a class
    config.pop("custom_text", None)
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    try:
        made: torch.nn.Module = Whole(**config)
    except OSError as error:  # parts of transformers' are described on the hub only
        raise SettingsError(
            f"parts of {model.architecture} are described on the hub, and are not on this machine",
            hint=f"fetch them once: hf download {config['text_cfg'].get('hf_model_name')}",
        ) from error
    return made


def _in_its_form(made: Any, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring weights of older and foreign forms to the names that open_clip uses now; its own functions know those forms."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    found: dict[str, torch.Tensor] = dict(convert_state_dict(made, dict(state)))
    if "positional_embedding" in found and not hasattr(made, "positional_embedding"):
        found = dict(convert_to_custom_text_state_dict(found))
    for name in ("logit_scale", "logit_bias"):  # a number, or a list of one
        wanted = getattr(made, name, None)
        if wanted is not None and name in found and found[name].numel() == 1:
            found[name] = found[name].reshape(wanted.shape)
    if getattr(made, "logit_bias", None) is not None and "logit_bias" not in found:
        found["logit_bias"] = torch.zeros_like(made.logit_bias)
    known = made.state_dict()
    positions = "text.transformer.embeddings.position_ids"  # transformers keeps it no more
    if positions in found and positions not in known:
        del found[positions]
    return found


def _check_fit(model: OpenClipModel, known: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    missing = [name for name in known if name not in state]
    foreign = [name for name in state if name not in known]
    reshaped = [name for name in known if name in state and known[name].shape != state[name].shape]
    if missing or foreign or reshaped:
        example = (reshaped or missing or foreign)[0]
        detail = f"{len(missing)} tensors are missing, {len(foreign)} unknown, {len(reshaped)} of another shape; the first is {example}"
        raise SettingsError(
            f"weights file {model.weights_path} holds another architecture's weights than {model.architecture}: {detail}",
            hint="name the architecture that the file was trained with",
        )
