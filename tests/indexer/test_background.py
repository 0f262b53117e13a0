"""A job beside the loop begins only where its thread has room: Python's `Thread.start` waits for ever for one that could not."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
from indexer.background import THREAD_BYTES, Background
background = Background("test")
background.start(lambda stop: 7)
background.wait(60)
assert background.take().result == 7
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + THREAD_BYTES // 2, resource.RLIM_INFINITY))
try:
    background.start(lambda stop: 7)
except MemoryError:
    assert background.is_free
    print("said so")
"""


def test_a_thread_that_has_no_room_is_told_and_not_waited_for() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "said so", done.stderr
