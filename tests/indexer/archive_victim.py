"""An archiver that kills itself with SIGKILL just before its n-th manifest commit: its tar is stored, no manifest names it.

python -m tests.indexer.archive_victim COLLECTION N        (settings from the environment)
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from backends.open_store import open_store
from contracts.engines import Engines
from contracts.settings import load_settings
from contracts.store import ObjectStore, PutOutcome
from headwater.wiring import open_engines
from indexer.archive_role import run_archive


class Trap:
    """A store that ends the process before a manifest with tars is put for the n-th time."""

    def __init__(self, inner: ObjectStore, commits: int) -> None:
        self._inner, self._left = inner, commits

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        if "/archive/" in key and "/manifest/" in key and b'.tar"' in data:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._inner.put_if_absent(key, data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def main() -> None:
    name, commits = sys.argv[1], int(sys.argv[2])
    settings = load_settings()
    with open_engines(settings) as engines:
        trapped = Engines(settings, engines.log, Trap(open_store(settings), commits), engines.metrics)  # type: ignore[arg-type]
        run_archive(trapped, [name], threading.Event())


if __name__ == "__main__":
    main()
