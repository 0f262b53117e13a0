"""EfficientNet-Lite0's forward pass in torch.

Takes: uint8 pictures, shape (n, 224, 224, 3), RGB. Gives: features and logits side by side, shape (n, 1280 + 1000).
Owns: the layers. Never: parses a weights file whose hash it does not know.

Model: Tan and Le 2019, https://arxiv.org/abs/1905.11946, and its Lite variant (no squeeze-and-excite, ReLU6),
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Written out here because importing timm
costs every query node three seconds and 200 MB; a test holds the logits equal to timm's ``tf_efficientnet_lite0``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.nn import functional

from embedding.efficientnet_lite0 import WEIGHTS

_BLOCKS = 16
_STRIDE_2_BLOCKS = frozenset({1, 3, 5, 11})
"""The first blocks of stages 2, 3, 4 and 6 (table 1 of the paper, at depth 1.0)."""
_BATCH_NORM_EPSILON = 1e-3
_State = Mapping[str, torch.Tensor]


class _Convolution(torch.nn.Module):
    """A convolution with the batch norm after it folded in; pads as TensorFlow's SAME does."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, state: _State, convolution: str, norm: str, stride: int = 1) -> None:
        """Fold ``norm(conv(x)) = gamma (w x - mean) / sqrt(var + eps) + beta`` into one weight and one bias."""
        super().__init__()
        weight = state[f"{convolution}.weight"]
        gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _BATCH_NORM_EPSILON)
        self.register_buffer("weight", (weight * gain.reshape(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain)
        self.stride = stride
        self.groups = weight.shape[0] if "depthwise" in convolution else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to x, shape (n, channels, side, side)."""
        side, kernel = int(x.shape[-1]), int(self.weight.shape[-1])
        padding = max((-(-side // self.stride) - 1) * self.stride + kernel - side, 0)
        if padding % 2:  # SAME puts the odd pixel right and below, which conv2d itself cannot
            x = functional.pad(x, (padding // 2, padding - padding // 2) * 2)
            padding = 0
        return functional.conv2d(x, self.weight, self.bias, self.stride, padding // 2, groups=self.groups)


class _Block(torch.nn.Module):
    """Inverted residual: widen (but in the first block), filter each channel, narrow; add the input where shapes allow."""

    def __init__(self, state: _State, number: int) -> None:
        super().__init__()
        name = f"_blocks.{number}"
        self.expand = _Convolution(state, f"{name}._expand_conv", f"{name}._bn0") if number else None
        self.depthwise = _Convolution(state, f"{name}._depthwise_conv", f"{name}._bn1", stride=2 if number in _STRIDE_2_BLOCKS else 1)
        self.project = _Convolution(state, f"{name}._project_conv", f"{name}._bn2")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to x, shape (n, channels, side, side)."""
        wide = x if self.expand is None else functional.relu6(self.expand(x))
        narrow: torch.Tensor = self.project(functional.relu6(self.depthwise(wide)))
        return narrow + x if narrow.shape == x.shape else narrow


class EfficientNetModule(torch.nn.Module):
    """The network.

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

    classifier_weight: torch.Tensor
    classifier_bias: torch.Tensor

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        state = torch.load(io.BytesIO(WEIGHTS.read(path)), map_location="cpu", weights_only=True)
        self.stem = _Convolution(state, "_conv_stem", "_bn0", stride=2)
        self.blocks = torch.nn.ModuleList(_Block(state, number) for number in range(_BLOCKS))
        self.head = _Convolution(state, "_conv_head", "_bn1")
        self.register_buffer("classifier_weight", state["_fc.weight"])
        self.register_buffer("classifier_bias", state["_fc.bias"])
        self.train(False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features and logits, shape (n, 1280 + 1000), float32."""
        # Rows of pixels become channels-last memory as they lie: depthwise convolutions take half the time there.
        x = ((pictures.float() - 127.0) / 128.0).to(self.classifier_weight.dtype).permute(0, 3, 1, 2)
        x = functional.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        features = functional.relu6(self.head(x)).mean((2, 3))
        return torch.cat([features, functional.linear(features, self.classifier_weight, self.classifier_bias)], 1).float()
