"""Checkpoints with random weights: as large and as fast as trained ones, and needing no network.

Takes: a folder, a seed. Gives: safetensors files. Owns: which architecture. Never: says anything about quality.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

FILE_NAME = "vit-b-32-random.safetensors"
VIT_B32 = f"open_clip:ViT-B-32/{FILE_NAME}"
"""Name of the encoder, where `model_dir` is the folder of the file."""


def write_vit_b32(folder: Path, seed: int) -> Any:
    """Write open_clip's ViT-B-32, fp32, 605 MB; gives the model as open_clip made it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.create_model("ViT-B-32", pretrained=None).train(False)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / FILE_NAME)
    return model
