"""What collections share: memory that is counted, and threads that load the newest of every partition first."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading

import pytest

from query.load_pool import LoadPool
from query.memory_budget import MemoryBudget, MemoryFullError


def test_what_does_not_fit_is_refused_with_numbers_and_what_goes_makes_room() -> None:
    memory = MemoryBudget(1000)
    first = memory.hold(600, "segment A")
    with pytest.raises(MemoryFullError, match="segment B needs 500 bytes of memory; 600 of 1000 are in use") as raised:
        memory.hold(500, "segment B")
    assert raised.value.error_code == "memory_full" and "HEADWATER_MEMORY_BYTES" in raised.value.hint
    del first
    gc.collect()
    second = memory.hold(500, "segment B")
    assert memory.used_bytes == second.size_bytes == 500


def test_tails_count_but_are_never_refused() -> None:
    memory = MemoryBudget(1000)
    memory.set_growing("things", 1001)
    assert memory.exceeded
    with pytest.raises(MemoryFullError):
        memory.hold(1, "segment A")
    memory.set_growing("things", 10)
    assert not memory.exceeded and memory.used_bytes == 10
    memory.set_growing("things", 0)
    assert memory.used_bytes == 0


def test_without_a_limit_everything_fits() -> None:
    memory = MemoryBudget(0)
    memory.set_growing("things", 10**15)
    assert memory.hold(10**15, "segment A").size_bytes == 10**15 and not memory.exceeded


def test_work_of_lower_rank_goes_first_and_within_a_rank_what_came_first() -> None:
    pool, gate, done = LoadPool(1), threading.Event(), []
    first = pool.submit(0, gate.wait)
    works = [pool.submit(rank, lambda rank=rank, name=name: done.append((rank, name))) for name in "ab" for rank in (0, 1, 2)]
    gate.set()
    for work in (first, *works):
        work.result(5)
    assert done == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "a"), (2, "b")]
    pool.close()


def test_nothing_else_is_begun_while_work_of_the_first_rank_is_under_way() -> None:
    pool, gate, begun, done = LoadPool(4), threading.Event(), threading.Semaphore(0), []
    first = [pool.submit(0, lambda: begun.release() or gate.wait(5)) for _ in range(2)]
    for _ in first:
        assert begun.acquire(timeout=5)
    later = [pool.submit(rank, lambda rank=rank: done.append(rank)) for rank in (2, 1)]
    assert pool.submit(0, lambda: "at once").result(5) == "at once"
    threading.Event().wait(0.05)
    assert done == [], "two threads are idle"
    gate.set()
    for work in (*first, *later):
        work.result(5)
    assert sorted(done) == [1, 2]
    failing = pool.submit(0, lambda: 1 / 0)
    assert pool.submit(1, lambda: "goes on").result(5) == "goes on" and failing.exception(5) is not None
    pool.close()


def test_as_many_threads_work_at_once_as_there_are_and_errors_come_out_where_results_are_asked_for() -> None:
    pool, barrier = LoadPool(3), threading.Barrier(3)
    works = [pool.submit(0, lambda: barrier.wait(5)) for _ in range(3)]
    assert sorted(work.result(5) for work in works) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        pool.submit(0, lambda: 1 / 0).result(5)
    pool.close()


def test_a_closed_pool_cancels_what_waits() -> None:
    pool, gate, started = LoadPool(1), threading.Event(), threading.Event()
    running, waiting = pool.submit(0, lambda: started.set() or gate.wait()), pool.submit(0, lambda: None)
    assert started.wait(5)
    pool.close()
    gate.set()
    assert running.result(5) and waiting.cancelled() and pool.submit(0, lambda: None).cancelled()


HEAPS = """
import ctypes, sys, threading
import numpy as np
from query.one_heap import use_one_heap
if sys.argv[1] == "one":
    use_one_heap()
held, barrier = [], threading.Barrier(6)
def hold():
    barrier.wait(5)
    held.extend(np.ones(2000 + at) for at in range(200))
    barrier.wait(5)
threads = [threading.Thread(target=hold) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library = ctypes.CDLL(None)
library.fopen.restype = ctypes.c_void_p
library.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
library.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
library.fclose.argtypes = [ctypes.c_void_p]
file = library.fopen(b"/dev/stdout", b"w")
library.malloc_info(0, file)
library.fclose(file)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="another C library has other heaps")
def test_threads_share_the_main_heap() -> None:
    def heaps(kind: str) -> int:
        found = subprocess.run([sys.executable, "-c", HEAPS, kind], capture_output=True, text=True, check=True)
        return found.stdout.count("<heap nr=")

    assert heaps("one") < heaps("many")
