"""Checkpoints with random weights: as large and as fast as trained ones, and needing no network.

Takes: a folder, a seed. Gives: safetensors files. Owns: which architecture. Never: says anything about quality.
"""

from __future__ import annotations

from pathlib import Path


def vit_b32_file(folder: Path, seed: int) -> Path:
    """Write ViT-B-32 of open_clip, fp32, 605 MB."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = open_clip.create_model("ViT-B-32", pretrained=None)
    path = folder / "vit-b-32.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path
