"""Weights files: found in installed packages, read once, hashed before anything parses them.

Takes: a package and a path inside it, the sha256 that the code pins. Gives: the verified bytes.
Owns: the rule that unverified bytes never reach a loader (research/reliability.md S9).
Never: imports the package that carries a file, follows a URL, or falls back to another file.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import CorruptError, SettingsError


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A weights file that ships in a package: `parts` lead from the package's folder to it."""

    package: str
    parts: tuple[str, ...]
    sha256: str

    def path(self) -> Path:
        """Where the file lies; SettingsError when the package is not installed.

        Raises
        ------
        SettingsError
            The package is missing; the hint says how to install it.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise SettingsError(f"package {self.package} is not installed", hint="pip install 'headwater[indexer]'")
        return Path(spec.submodule_search_locations[0]).joinpath(*self.parts)

    def read(self, path: Path | None = None) -> bytes:
        """Return the file's bytes once their hash is the pinned one; loaders get these bytes, never the path.

        Parameters
        ----------
        path : Path, optional
            Another copy of the same file; the hash must be the same.

        Raises
        ------
        SettingsError
            The file is not there.
        CorruptError
            The file is there, and is another one.
        """
        where = path or self.path()
        try:
            body = where.read_bytes()
        except OSError as error:
            raise SettingsError(f"weights file {where} cannot be read", hint=f"reinstall the package {self.package}") from error
        if hashlib.sha256(body).hexdigest() != self.sha256:
            raise CorruptError(f"weights file {where} has another sha256 than the code names", hint=f"reinstall the package {self.package}")
        return body


def combined_sha256(*files: PinnedFile) -> str:
    """Hash over the hashes of all weights files of an encoder, in its own order (`EmbeddingSpace.weights_sha256`)."""
    return hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()
