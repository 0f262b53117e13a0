"""Starts a `headwater` command with faulty parts: what the engines are made of is wrapped here, in the test's process; the code has no hook.

    python -m tests.faults.role [--crash "put manifest, answered:2"]... [--with MODULE:FUNCTION[=JSON]]... -- run index --collection C

``--crash`` is read by `tests.faults.crash_points`; ``--with`` calls a function, with the JSON value where there is one, before the command begins:
it calls `wrap_store`, `wrap_log`, or patches what it likes.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from typing import Any

import headwater.wiring
from contracts.log import Log
from contracts.store import ObjectStore


def wrap_store(wrap: Callable[[ObjectStore], ObjectStore]) -> None:
    """Every store that this process opens for its engines is what `wrap` makes of it."""
    before = headwater.wiring.open_store
    headwater.wiring.open_store = lambda *arguments: wrap(before(*arguments))  # type: ignore[assignment]


def wrap_log(wrap: Callable[[Log], Log]) -> None:
    """As `wrap_store`, for the log."""
    before = headwater.wiring.open_log
    headwater.wiring.open_log = lambda *arguments: wrap(before(*arguments))


def call(text: str) -> None:
    """Call ``MODULE:FUNCTION[=JSON]``."""
    name, separator, value = text.partition("=")
    module, _, function = name.partition(":")
    arguments: list[Any] = [json.loads(value)] if separator else []
    getattr(importlib.import_module(module), function)(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crash", action="append", default=[], help="POINT[:N][=kill|stop|raise]")
    parser.add_argument("--with", dest="parts", action="append", default=[], help="MODULE:FUNCTION[=JSON]")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    for part in asked.parts:
        call(part)
    if asked.crash:
        from tests.faults.crash_points import install

        install(asked.crash)
    from headwater.cli import main as command

    command([each for each in asked.command if each != "--"])


if __name__ == "__main__":
    main()
