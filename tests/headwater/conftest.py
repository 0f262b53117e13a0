from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headwater.cli import main

Headwater = Callable[..., "Ended"]


class Ended:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with an SQLite log and a folder store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWATER_LOG_URL", f"sqlite:///{tmp_path}/log.sqlite")
    monkeypatch.setenv("HEADWATER_STORE_URL", f"file:///{tmp_path}/store")
    monkeypatch.setenv("HEADWATER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def headwater(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Headwater:
    """Run a command line in this process."""

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int) or code is None
        return Ended(code or 0, said.out, said.err)

    return run
