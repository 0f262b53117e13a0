"""Which runtime runs a network: the fastest one here that gives the network's own vectors.

Takes: a `Network`, settings. Gives: a `Runner`. Owns: the order of runtimes, and the parity check at the start.
Never: runs what fails the check: it says by how much, and takes float32 torch.

The order is fixed because measuring gave the same one everywhere (docs/benchmarks.md, W1c): OpenVINO, ONNX Runtime, torch. Only
bfloat16 depends on the machine: OpenVINO says whether the CPU computes in it, torch is timed.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contracts.errors import SettingsError, UnavailableError
from contracts.settings import Settings
from embedding.converted import Converted, converted
from embedding.graph_runners import OnnxRunner, OpenVinoRunner
from embedding.network import GPU_BATCH_ITEMS, Network, Runner
from embedding.parity import MIN_COSINE, centred_cosine

if TYPE_CHECKING:
    import torch

    from embedding.torch_runner import TorchRunner

logger = logging.getLogger(__name__)
SHORT_GAIN = 0.8
"""Share of float32's time that bfloat16 may take: less of a gain is noise, and not worth its rounding."""
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""What drivers that torch's CUDA and ROCm builds use leave there: NVIDIA's, the one of WSL, AMD's."""
Inputs = tuple[NDArray[np.generic], ...]
PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}


def open_network(network: Network, settings: Settings) -> Runner:
    """Load a network with the runtime of `embed_runtime`; takes seconds, and up to a minute when it is converted for the first time.

    Raises
    ------
    SettingsError
        The runtime that was asked for by name is not installed, or the device is not there.
    """
    runner = _graph_runner(network, settings) or _torch_runner(network, settings)
    logger.info("network %s runs on %s", network.name, runner.label)
    return runner


def encoder_threads(settings: Settings, waits_asleep: bool) -> int:
    """Threads of an encoder: `embed_threads`, else one for each core where they sleep while they wait, half of that where they spin.

    Torch's threads burn the cores of decoders and broker while they wait for each other (measured on two busy cores: 225 to 327 ms
    a picture instead of 22 to 25); those of OpenVINO and ONNX Runtime, as they are opened here, sleep (docs/benchmarks.md, W1).
    """
    cores = os.cpu_count() or 2
    return settings.embed_threads or (cores if waits_asleep else max(1, cores // 2))


def _graph_runner(network: Network, settings: Settings) -> Runner | None:
    """The network on OpenVINO or ONNX Runtime, or None where torch is to run it."""
    runtime = _runtime(settings)
    if runtime is None:
        return None
    try:
        true_copy = converted(network, settings.cache_dir, settings.networks_dir)
    except SettingsError as error:
        logger.warning("network %s runs in torch, which is slower: %s", network.name, error)
        return None
    for name, open_runner in _ways(runtime, true_copy, settings):
        try:
            runner = open_runner()
            cosine = centred_cosine(true_copy.true, runner(*network.probe))
        except Exception as error:  # noqa: BLE001 - runtimes raise classes of their own; whatever it is, torch can do the work
            logger.warning("network %s cannot run on %s: %s", network.name, name, str(error).partition("\n")[0][:300])
            continue
        if cosine >= MIN_COSINE:
            logger.debug("network %s on %s: centred cosine %.6f", network.name, runner.label, cosine)
            return runner
        # bfloat16 may be too coarse for a network (EfficientNet-Lite0 stands at 0.989 in torch); float32 then follows, and nothing is amiss
        level = logging.INFO if name.endswith("bf16") else logging.WARNING
        told = "network %s on %s gives other vectors: centred cosine %.4f, at least %.2f is asked for"
        logger.log(level, told, network.name, name, cosine, MIN_COSINE)
    return None


def _runtime(settings: Settings) -> str | None:
    wanted = settings.embed_runtime
    if wanted in PACKAGES:
        if find_spec(PACKAGES[wanted]) is None:
            raise SettingsError(f"embed_runtime is {wanted}, and {PACKAGES[wanted]} is not installed", hint=f"pip install 'headwater[{wanted}]'")
        return wanted
    if wanted == "torch" or _has_gpu(settings):
        return None
    return next((name for name, package in PACKAGES.items() if find_spec(package) is not None), None)


def _has_gpu(settings: Settings) -> bool:
    """Whether torch runs on a GPU here: then no other runtime is faster. Torch, seconds and 200 MB, is imported only where there may be one."""
    if settings.embed_device == "cpu" or find_spec("torch") is None:
        return False
    if settings.embed_device == "auto" and not any(Path(device).exists() for device in _GPU_DEVICES):
        return False
    from embedding.torch_runner import torch_device

    return torch_device(settings).type == "cuda"


def _ways(runtime: str, graph: Converted, settings: Settings) -> Iterator[tuple[str, Callable[[], Runner]]]:
    """Ways of running the graph, fastest first."""
    threads = encoder_threads(settings, waits_asleep=True)
    if runtime == "openvino":
        if OpenVinoRunner.has_bf16():
            yield "openvino bf16", lambda: OpenVinoRunner(graph.graph, "bf16", threads)
        yield "openvino f32", lambda: OpenVinoRunner(graph.graph, "f32", threads)
    else:
        yield "onnxruntime f32", lambda: OnnxRunner(graph.graph, threads)


def _torch_runner(network: Network, settings: Settings) -> TorchRunner:
    """Torch in float32, or with bfloat16 weights where they pass the check and are faster on this device."""
    import torch

    from embedding.torch_runner import TorchRunner, torch_device

    device, threads = torch_device(settings), encoder_threads(settings, waits_asleep=False)
    plain = TorchRunner(network.make_module(), device, torch.float32, threads)
    short = _short_runner(plain, network, device, threads)
    if plain.on_gpu:
        torch.cuda.empty_cache()  # what full batches took to be timed, others may need
    if short is None:
        return plain
    cosine = centred_cosine(plain(*network.probe), short(*network.probe))
    if cosine < MIN_COSINE:
        logger.info("network %s: bfloat16 weights fail the parity check, centred cosine %.4f", network.name, cosine)
        return plain
    return short


def _short_runner(plain: TorchRunner, network: Network, device: torch.device, threads: int) -> TorchRunner | None:
    """The network with bfloat16 weights, or None where that is not faster, or both do not fit into the device's memory."""
    import torch

    from embedding.torch_runner import TorchRunner

    try:
        inputs, plain_seconds = _timed(plain, network)
        short = TorchRunner(copy.deepcopy(plain.module), device, torch.bfloat16, threads)
        one = tuple(values[:1] for values in inputs)
        if not short.on_gpu and _seconds(short, one, repetitions=1) > plain_seconds:
            return None  # after one item: a CPU that only imitates bfloat16 is ten times slower
        return short if _seconds(short, inputs) < SHORT_GAIN * plain_seconds else None
    except (MemoryError, UnavailableError, torch.OutOfMemoryError) as error:
        logger.info("network %s: bfloat16 is not tried, memory is too small: %s", network.name, str(error).partition("\n")[0])
        return None


def _timed(plain: Runner, network: Network) -> tuple[Inputs, float]:
    """What both precisions are timed on, and what float32 takes for it: the probe, on a GPU as often as fills a batch, if its memory holds that."""
    if plain.on_gpu:
        filled = tuple(np.resize(values, (GPU_BATCH_ITEMS, *values.shape[1:])) for values in network.probe)
        try:
            return filled, _seconds(plain, filled)
        except MemoryError:
            logger.info("network %s: a batch of %d in float32 is too much for the memory of the GPU", network.name, GPU_BATCH_ITEMS)
    return network.probe, _seconds(plain, network.probe)


def _seconds(runner: Runner, inputs: Inputs, repetitions: int = 3) -> float:
    """Shortest time, in seconds, that these inputs take."""
    times = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        runner(*inputs)
        times.append(time.perf_counter() - begin)
    return min(times)
