"""Checkpoints with random weights: as large and as fast as trained ones, and needing no network.

Takes: a folder, a seed. Gives: safetensors files. Owns: which architecture. Never: says anything about quality.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

VIT_B32, VIT_L14 = (f"open_clip:{architecture}/{architecture.lower()}-random.safetensors" for architecture in ("ViT-B-32", "ViT-L-14"))
"""Names of encoders, where `model_dir` is the folder of their files."""


def write_random(encoder: str, folder: Path, seed: int) -> Any:
    """Write the file of one of these encoders, fp32, 605 MB and 1.7 GB; gives the model as open_clip made it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    architecture, _, file_name = encoder.removeprefix("open_clip:").partition("/")
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.create_model(architecture, pretrained=None).train(False)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / file_name)
    return model
