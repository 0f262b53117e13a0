"""What every run shares: compiled files are kept; the fast run (`-m "... not slow"`) draws fewer examples and names the tests that slow it."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter

import pytest

from tests.examples import FAST, choose_profile

SLOW_SECONDS = 1.0
SHOWN = 20

sys.dont_write_bytecode = False  # pytest rewrites every test module: that takes longer than many of them run, in each worker, unless it is kept
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # noqa: TID251 - the same for the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")  # noqa: TID251 - each worker has a core: threads of faiss and torch beside it only spin
spent_seconds: Counter[str] = Counter()


def pytest_configure(config: pytest.Config) -> None:
    if FAST in config.getoption("markexpr"):
        choose_profile("fast")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # modules and thousands of tests stay until the end: no collection needs to walk them again


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    spent_seconds[report.nodeid] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what to shorten or to mark as slow. It is no failure: time on a busy machine proves nothing."""
    slow = [(seconds, name) for name, seconds in spent_seconds.most_common() if seconds >= SLOW_SECONDS]
    if FAST not in config.getoption("markexpr") or not slow:
        return
    total = sum(seconds for seconds, _ in slow)
    terminalreporter.section(f"fast run: {len(slow)} tests above {SLOW_SECONDS:g} s, {total:.0f} s of {spent_seconds.total():.0f} s")
    for seconds, name in slow[:SHOWN]:
        terminalreporter.write_line(f"{seconds:6.1f} s  {name}")
