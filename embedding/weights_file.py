"""Weights files of the operator's: safetensors, or a PyTorch state dict; read once, hashed, then parsed as plain tensors.

Takes: a path, the sha256 that was pinned, if one was. Gives: the file's hash, its tensors. Owns: which files we read.
Never: runs code that a file holds: a pickle with more than tensors in it is refused (research/reliability.md S9).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import CorruptError, HeadwaterError, SettingsError

if TYPE_CHECKING:
    import torch

_CHUNK_BYTES = 4 << 20
_ZIP = b"PK\x03\x04"
_EXPORT_HINT = "save its state dict with safetensors.torch.save_file"
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Plain numbers that OpenAI's files hold beside the weights."""


def file_sha256(path: Path, pinned: str | None) -> str:
    """Hex sha256 of a weights file, read in pieces.

    Raises
    ------
    SettingsError
        The file cannot be read.
    CorruptError
        It has another hash than the pinned one.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK_BYTES):
                digest.update(piece)
    except OSError as error:
        raise _unreadable(path, error) from error
    return _checked(path, digest.hexdigest(), pinned)


def read_weights(path: Path, pinned: str | None) -> tuple[str, dict[str, torch.Tensor]]:
    """Hash a weights file, then parse the very bytes that were hashed.

    Returns
    -------
    tuple of str and dict
        The file's hex sha256, and its tensors by name, without the ``module.`` that training on several GPUs puts before each.

    Raises
    ------
    SettingsError
        The file cannot be read, or holds more than tensors.
    CorruptError
        It has another hash than the pinned one, is cut off, or is no weights file.
    """
    try:
        body = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    sha256 = _checked(path, hashlib.sha256(body).hexdigest(), pinned)
    return sha256, _tensors(path, _parse(path, body))


def _unreadable(path: Path, error: OSError) -> SettingsError:
    reason = error.strerror or type(error).__name__
    return SettingsError(
        f"weights file {path} cannot be read: {reason}", hint="mend the path; a relative one starts from the current folder or HEADWATER_MODEL_DIR"
    )


def _checked(path: Path, found: str, pinned: str | None) -> str:
    if pinned is not None and found != pinned:
        raise CorruptError(f"weights file {path} has sha256 {found}, not the pinned {pinned}", hint="fetch the file again, or mend the pin")
    return found


def _parse(path: Path, body: bytes) -> Any:
    """Parse by what the bytes are, not by what the file is called."""
    if body[8:9] == b"{" and int.from_bytes(body[:8], "little") < (100 << 20):
        return _parse_safetensors(path, body)
    if body.startswith(_ZIP):
        return _parse_torch(path, body)
    if body.startswith((b"\x80", b"(")):
        raise SettingsError(f"weights file {path} is a bare pickle and is not read: pickles run code", hint=_EXPORT_HINT)
    raise CorruptError(f"weights file {path} is neither safetensors nor a PyTorch file", hint="fetch the file again")


def _parse_safetensors(path: Path, body: bytes) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(body)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptError(f"weights file {path} is damaged or cut off: {error}", hint="fetch the file again") from error


def _parse_torch(path: Path, body: bytes) -> Any:
    import torch

    try:
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and tensor readers each raise their own
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> HeadwaterError:
    text = str(error)
    if "TorchScript" in text:
        return SettingsError(f"weights file {path} is a TorchScript program, not a state dict, and is not run", hint=_EXPORT_HINT)
    if "unsupported" in text.lower():  # its unpickler's words for a global or an instruction that is not on its list
        return SettingsError(f"weights file {path} holds Python objects beside tensors; they are not loaded", hint=_EXPORT_HINT)
    return CorruptError(f"weights file {path} is damaged or cut off: {type(error).__name__}", hint="fetch the file again")


def _tensors(path: Path, parsed: Any) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(parsed, Mapping) and isinstance(parsed.get("state_dict"), Mapping):  # a checkpoint of training
        parsed = parsed["state_dict"]
    if not isinstance(parsed, Mapping) or not parsed:
        raise SettingsError(f"weights file {path} holds no state dict", hint=_EXPORT_HINT)
    found = {str(name): value for name, value in parsed.items() if name not in _NOT_WEIGHTS}
    if not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise SettingsError(f"weights file {path} holds more than tensors", hint=_EXPORT_HINT)
    prefix = "module."
    if all(name.startswith(prefix) for name in found):
        return {name.removeprefix(prefix): value for name, value in found.items()}
    return found
