"""W1c, the encoder itself: pictures a second of our encoder, divided by eager float32 torch of the same model.

Prepared pictures in, vectors out, in one process, A B B A; no decoding, no log. Where torch finds a GPU both run there (`..._gpu`), and what is
timed begins and ends in the memory of the CPU. docs/benchmarks.md says how to read it.

Takes: `Bench`. Gives: ratios by mode; rates, runtimes and cosines as notes. Owns: what eager means.
Never: counts a speed whose vectors are others: a centred cosine below 0.99 is an error.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.checkpoints import VIT_B32, VIT_L14, write_random
from bench.frame import Bench, Goal, Measure, Outcome
from bench.intervals import abba, percentile, ratio
from bench.machine import ROOT, gpu_name
from bench.processes import machine_cpu_seconds, own_cpu_seconds
from contracts.encoder import Encoder
from contracts.errors import CorruptError
from contracts.settings import Settings
from embedding.open_encoder import open_encoder
from embedding.parity import MIN_COSINE, centred_cosine

PICTURES, GPU_PICTURES = 32, 256
"""Of the samples; as many as a worker hands to its encoder at most (`embed_batch_items`)."""
EAGER_BATCHES, GPU_EAGER_BATCHES = (8, 32), (8, 32, 256)
MEDIA = ROOT / "examples" / "media"
Pictures = NDArray[np.uint8]
Vectors = NDArray[np.float32]
Encode = Callable[[Pictures], Vectors]


class EncoderSpeed:
    """The workload."""

    name = "W1c"
    title = "encoder: our pictures per second / eager fp32 torch"

    def __init__(self) -> None:
        goals = {"vit_b32": 3.5, "lite": 6.0}
        self.goals = {f"{mode}{suffix}": Goal(limit, smaller_is_better=False) for mode, limit in goals.items() for suffix in ("", "_gpu")}

    def run(self, bench: Bench) -> Outcome:
        """See `bench.frame.Workload.run`."""
        threads, gpu = os.cpu_count() or 1, gpu_name()
        count = bench.length(self.name, "gpu_pictures" if gpu else "pictures")
        outcome = Outcome(notes={"threads": threads, "gpu": gpu, "pictures_per_sample": count, "order": "A B B A, ours first"})
        for mode, prepare in (_GPU_MODES if gpu else _MODES).items():
            with tempfile.TemporaryDirectory(prefix="bench-w1c-") as folder:
                settings = Settings(
                    cache_dir=Path(folder) / "cache", model_dir=Path(folder), embed_threads=threads, embed_device="auto", embed_runtime="auto"
                )
                with bench.steps(f"W1c {mode}: load and convert"):
                    encoder, eager = prepare(settings, bench.seed)
                pictures = np.resize(_samples(encoder, GPU_PICTURES if gpu else PICTURES), (count, *encoder.picture_recipe.shape))
                outcome.modes[mode], outcome.notes[mode] = _compare(
                    bench, mode, encoder, eager, pictures, GPU_EAGER_BATCHES if gpu else EAGER_BATCHES
                )
        return outcome


def _compare(
    bench: Bench, mode: str, encoder: Encoder, eager: Callable[[int], Encode], pictures: Pictures, batches: Sequence[int]
) -> tuple[Measure, dict[str, Any]]:
    """Time both on the same pictures; the eager model runs at the batch size that suits it best."""
    for size in batches:
        eager(size)(pictures[:size])  # the first pass at a size chooses and loads what computes it
    by_batch = {size: _rate(eager(size), pictures) for size in batches}
    batch = max(by_batch, key=lambda size: by_batch[size])
    encoders: dict[str, Encode] = {"A": encoder.encode_pictures, "B": eager(batch)}
    cosine = centred_cosine(encoders["B"](pictures), encoders["A"](pictures))
    if cosine < MIN_COSINE:
        raise CorruptError(f"{mode}: our vectors have a centred cosine of {cosine:.4f} with eager torch's", hint="HEADWATER_EMBED_RUNTIME=torch")
    rates: dict[str, list[float]] = {"A": [], "B": []}
    machine, own = machine_cpu_seconds(), own_cpu_seconds()
    order = abba(bench.length("W1c", "pairs"))
    with bench.steps(f"W1c {mode}: measure", len(order)) as step:
        for which in order:
            rates[which].append(_rate(encoders[which], pictures))
            step.done()
    spent = machine_cpu_seconds() - machine
    notes = {
        "runtime": getattr(encoder, "runtime", ""),
        "centred_cosine": cosine,
        "our_pictures_per_second": _told(rates["A"]),
        "eager_pictures_per_second": _told(rates["B"]),
        "eager_batch": batch,
        "eager_pictures_per_second_by_batch": by_batch,
        "others_share_of_cpu": 1 - (own_cpu_seconds() - own) / spent if spent else 0.0,
    }
    return ratio(rates["A"], rates["B"]), notes


def _rate(encode: Encode, pictures: Pictures) -> float:
    begin = time.perf_counter()
    encode(pictures)
    return len(pictures) / (time.perf_counter() - begin)


def _told(rates: Sequence[float]) -> dict[str, float]:
    measure = percentile(rates, 50, "pictures/s")
    return {"median": measure.value, "low": measure.low, "high": measure.high}


def _samples(encoder: Encoder, count: int) -> Pictures:
    """Sample pictures, spread over their categories, as the encoder wants them."""
    files = sorted(path for path in MEDIA.rglob("*") if path.suffix in (".jpg", ".png"))
    return np.stack([encoder.prepare_picture(path.read_bytes()) for path in files[:: len(files) // count][:count]])


def _in_batches(run: Callable[[Any], Any], size: int, device: Any) -> Encode:
    """Eager torch as its users write it: a tensor in, a tensor out, no gradients; the copy back waits for a GPU to be done."""
    import torch

    def encode(pictures: Pictures) -> Vectors:
        with torch.inference_mode():
            return np.concatenate([run(torch.from_numpy(pictures[at : at + size]).to(device)).cpu().numpy() for at in range(0, len(pictures), size)])

    return encode


def _lite(settings: Settings, seed: int) -> tuple[Encoder, Callable[[int], Encode]]:
    """`lite`, and timm's EfficientNet-Lite0 with the same last step: the mean of the likeliest classes' name vectors."""
    import io

    import timm
    import torch

    from embedding import efficientnet_lite0, lite
    from embedding.torch_runner import torch_device

    device = torch_device(settings)
    encoder = open_encoder("lite", settings)
    state = torch.load(io.BytesIO(efficientnet_lite0.WEIGHTS.read()), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    network.train(False).to(device)
    names = torch.from_numpy(encoder.encode_texts(efficientnet_lite0.class_names())).to(device)
    torch.set_num_threads(settings.embed_threads)

    def run(pictures: torch.Tensor) -> torch.Tensor:
        logits = network(((pictures.float() - 127.0) / 128.0).permute(0, 3, 1, 2).contiguous())
        best = torch.topk(logits / lite.TEMPERATURE, lite.TOP_CLASSES, dim=1)
        mixed = torch.bmm(torch.softmax(best.values, dim=1).unsqueeze(1), names[best.indices]).squeeze(1)
        return torch.nn.functional.normalize(mixed, dim=1)

    return encoder, lambda size: _in_batches(run, size, device)


def _clip(name: str, settings: Settings, seed: int) -> tuple[Encoder, Callable[[int], Encode]]:
    """A model of open_clip's with random weights, as a file of ours and as open_clip makes it: the speed does not depend on what was learned."""
    import open_clip
    import torch

    from embedding.torch_runner import torch_device

    device = torch_device(settings)
    model = write_random(name, settings.model_dir, seed).to(device)
    encoder = open_encoder(name, settings)
    torch.set_num_threads(settings.embed_threads)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN, device=device).view(1, 3, 1, 1)
    deviation = torch.tensor(open_clip.OPENAI_DATASET_STD, device=device).view(1, 3, 1, 1)

    def run(pictures: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model.encode_image((pictures.permute(0, 3, 1, 2).float() / 255 - mean) / deviation, normalize=True)
        return found

    return encoder, lambda size: _in_batches(run, size, device)


_MODES = {"lite": _lite, "vit_b32": partial(_clip, VIT_B32)}
_GPU_MODES = {f"{mode}_gpu": prepare for mode, prepare in (_MODES | {"vit_l14": partial(_clip, VIT_L14)}).items()}
