"""Networks run by torch: on the CPU or a GPU, in float32 or with bfloat16 weights.

Takes: a module, a device, a type of weights. Gives: a `Runner`. Owns: torch's threads, and where tensors live.
Never: converts numbers under the hood: with frozen weights autocast converts all of them at every call, and is slower than float32.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.errors import SettingsError, UnavailableError
from contracts.settings import Settings


def torch_device(settings: Settings) -> torch.device:
    """The device of `embed_device`; SettingsError where it names a GPU that is not there."""
    wanted = settings.embed_device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SettingsError(f"embed_device is {wanted}, and torch finds no such GPU", hint="set HEADWATER_EMBED_DEVICE=auto, or install the driver")
    return device


class TorchRunner:
    """A module that runs in this process.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode; it is moved, not copied.
    device : torch.device
        Where it runs.
    dtype : torch.dtype
        Of its weights.
    threads : int
        Of the CPU. They are the process's: the last runner that was made decides.

    Raises
    ------
    UnavailableError
        The weights do not fit into the device's memory, as far as others leave it free.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device, dtype: torch.dtype, threads: int) -> None:
        torch.set_num_threads(threads)
        try:
            self.module = module.to(device=device, dtype=dtype)
        except torch.OutOfMemoryError as error:
            told = f"the network's weights do not fit into the memory of {device}"
            raise UnavailableError(told, hint="free its memory, or set HEADWATER_EMBED_DEVICE=cpu") from error
        self._device = device
        self.on_gpu = device.type == "cuda"
        self.label = f"torch {torch.__version__} {'bf16' if dtype == torch.bfloat16 else 'f32'} on {device}"

    def __call__(self, *inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        """Run the module; inputs are copied to the device, the output back.

        Raises
        ------
        MemoryError
            They do not fit into the device's memory; fewer may.
        """
        try:
            with torch.inference_mode():
                tensors = [self._on_device(values) for values in inputs]
                given: NDArray[np.float32] = self.module(*tensors).float().cpu().numpy()
                return given
        except torch.OutOfMemoryError as error:
            told = str(error)
        # Out here: as a cause, torch's error would hold all tensors of the failed pass, in its traceback, while the caller tries fewer items.
        raise MemoryError(told)

    def _on_device(self, values: NDArray[np.generic]) -> torch.Tensor:
        if not self.on_gpu:
            return torch.tensor(values)
        # By way of pinned memory: 256 pictures take 1.5 ms to an H100 instead of 9, beside 8 ms in ViT-B/32 (docs/benchmarks.md, W1c).
        pinned = torch.from_numpy(np.require(values, requirements=["C", "W"])).pin_memory()
        return pinned.to(self._device, non_blocking=True)
