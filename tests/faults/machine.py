"""Faults 32, 33, 34 and 37: disks, memory and clocks of the machine that a role runs on.

Takes: a trial. Gives: `VARIANTS`. Owns: which role meets what. Never: fills, limits or shifts anything of a process that it did not start.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.faults.ground import Ground
from tests.faults.grounds import DiskGround, embedded, full, mounted, remount, small_minio, without_inodes
from tests.faults.lines import supervised
from tests.faults.trial import Trial, Variant
from tests.faults.wrong_bytes import query_node, serves_all, state_of
from tests.system.processes import until

PARTS = "tests.faults.parts"
CGROUPS = Path("/sys/fs/cgroup")
DAY = 86_400.0
BURST_ITEMS = 10_000
GROUP_BYTES = 256 << 10

# ---- 32, 33: disks -----------------------------------------------------------------------------------------------------


def disk_of(trial: Trial) -> Path:
    assert isinstance(trial.ground, DiskGround)
    return trial.ground.disk


def disk_refuses(trial: Trial, refusing: Callable[[Path], AbstractContextManager[None]], seconds: float = 6.0) -> None:
    """INV-1, 5, 10: nothing can be written for a while; whoever ends is started again, and goes on where the stored bytes end."""
    trial.wait_flowing()
    with supervised(trial, most=20):
        with refusing(disk_of(trial)):
            time.sleep(seconds)
        trial.wait_acknowledged(20)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    remount(folder, "ro")
    try:
        yield
    finally:
        remount(folder, "rw")


def cache_refuses(trial: Trial, options: str, refusing: Callable[[Path], AbstractContextManager[None]]) -> None:
    """INV-5, 8: a query node whose cache takes nothing says so, serves what it can, and everything once there is room."""
    disk = trial.stack.enter_context(mounted(trial.folder / "small", options))
    trial.wait_flowing()
    node = query_node(trial, "node", cache_dir=disk)
    with refusing(disk):
        node.start()
        until(lambda: bool(state_of(node, trial.record.name).get("errors")), 60, "the node says what is wrong", 0.3, [node])
        trial.note(f"node: {next(iter(state_of(node, trial.record.name)['errors'].values()))[:200]}")
        time.sleep(3)
        node.must_run()
    trial.stop_loads()
    trial.over()
    serves_all(trial, node)


def small_files(trial: Trial) -> None:
    """As above, by a limit on the size of files (RLIMIT_FSIZE) instead of the disk's."""
    trial.wait_flowing()
    trial.wait_acknowledged(500)
    node = query_node(trial, "node")
    node.start()
    until(lambda: "coverage" in state_of(node, trial.record.name), 60, "the node answers", 0.2, [node])
    _, most = resource.prlimit(node.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (100, most))
    until(lambda: bool(state_of(node, trial.record.name).get("errors")), 60, "the node says what is wrong", 0.3, [node])
    trial.note(f"node: {next(iter(state_of(node, trial.record.name)['errors'].values()))[:200]}")
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (most, most))
    trial.stop_loads()
    trial.over()
    serves_all(trial, node)


@contextmanager
def injected(pids: list[int], inject: str, told: Path) -> Iterator[None]:
    """Calls of these processes fail as strace(1) is told, while the context lasts."""
    traced = [f"--attach={pid}" for pid in pids]
    calls = inject.partition(":")[0]
    strace = subprocess.Popen(["strace", "-f", "-qq", "-o", str(told), "-e", f"trace={calls}", "-e", f"inject={inject}", *traced])
    try:
        yield
    finally:
        strace.send_signal(signal.SIGTERM)  # it lets go of them; a killed one would leave them stopped
        strace.wait(30)


def fails_to_sync(trial: Trial, seconds: float = 6.0) -> None:
    """INV-1, 5: every fsync of worker and builder fails with EIO for a while: nothing that was not synced counts as stored."""
    assert shutil.which("strace"), "strace is not installed"
    trial.wait_flowing()
    told = trial.folder / "strace.txt"
    with supervised(trial, most=20):
        pids = [process.pid for process in trial.roles.values()]
        with injected(pids, "fsync,fdatasync:error=EIO", told):
            time.sleep(seconds)
    failed = told.read_text().count("EIO")
    trial.note(f"{failed} calls of fsync and fdatasync failed")
    assert failed, "nothing was synced meanwhile"


# ---- 34: memory --------------------------------------------------------------------------------------------------------


@contextmanager
def cgroup(name: str) -> Iterator[tuple[Path, str]]:
    """A memory cgroup and the name of its limit; version 1 or 2, whichever this machine has; needs root."""
    is_first = (CGROUPS / "memory" / "memory.limit_in_bytes").exists()
    path = (CGROUPS / "memory" if is_first else CGROUPS) / name
    path.mkdir()
    try:
        yield path, "memory.limit_in_bytes" if is_first else "memory.max"
    finally:
        for _ in range(100):
            try:
                path.rmdir()
                break
            except OSError:  # its last process is just going
                time.sleep(0.1)


def killed_for_memory(trial: Trial, role: str) -> None:
    """INV-1, 2: the kernel kills a role amid its batches: what it allocates from now on is charged to a group that has next to nothing."""
    path, limit = trial.stack.enter_context(cgroup(f"headwater-faults-{os.getpid()}-{role}"))
    (path / limit).write_text(str(GROUP_BYTES))
    trial.wait_flowing()
    process = trial.roles[role]
    trial.start_load(1500.0, records=BURST_ITEMS)
    trial.wait_acknowledged(100)
    (path / "cgroup.procs").write_text(str(process.pid))  # pages that it has stay charged where they are
    deadline = time.monotonic() + 60
    while (code := process.has_died()) is None:
        assert time.monotonic() < deadline, f"{role} is not killed for its memory"
        time.sleep(0.1)
    assert code == -signal.SIGKILL, f"{role} ended with {code}"
    trial.note(f"{role} was killed: {oom_kills(path)}")
    (path / limit).write_text("-1" if "limit" in limit else "max")
    trial.start(role)
    trial.wait_acknowledged(100)


def oom_kills(path: Path) -> str:
    told = path / ("memory.oom_control" if (path / "memory.oom_control").exists() else "memory.events")
    found = [line for line in told.read_text().splitlines() if line.startswith("oom_kill ")]
    assert found and int(found[0].split()[1]) > 0, f"the kernel killed nobody: {told.read_text()}"
    return found[0]


def no_address_space(trial: Trial, role: str) -> None:
    """INV-1, 2: allocations fail in the middle of the work (RLIMIT_AS): the role ends, or goes on when it may; nothing half is committed."""
    trial.wait_flowing()
    process = trial.roles[role]
    _, most = resource.prlimit(process.pid, resource.RLIMIT_AS)
    size = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    with supervised(trial, most=3) as ends:
        resource.prlimit(process.pid, resource.RLIMIT_AS, (size, most))
        trial.start_load(1500.0, records=BURST_ITEMS)
        time.sleep(8)
        if not ends:
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_AS, (most, most))
        time.sleep(5)  # it may be ending just now
        if not ends:
            trial.note(f"{role} lived through it")


# ---- 37: clocks --------------------------------------------------------------------------------------------------------


def clocks(trial: Trial, *, off: tuple[float, ...], dates: bool) -> None:
    """INV-4, 5: the clock of all roles jumps: order is that of offsets, and nobody collects by it what is needed."""
    file = trial.folder / "clock"
    asked = json.dumps({"file": str(file), "dates": dates})
    for role in ("embed", "index", "maintain"):
        trial.start(role, parts=[f"{PARTS}:follow_clock={asked}"])
    trial.wait_flowing()
    with supervised(trial, most=None if dates else 0) as ends:
        for seconds in off:
            fresh = file.with_suffix(".new")
            fresh.write_text(str(seconds))
            fresh.replace(file)
            trial.note(f"{seconds:+g} s")
            time.sleep(5)
        file.write_text("0")
    if dates:  # requests signed a day off are refused: the role ends and says why
        assert any("RequestTimeTooSkewed" in one for one in ends), f"nobody named the clock: {ends}"


def of_embedded(*, log: bool = False, store: bool = False) -> Callable[[Ground, Path], AbstractContextManager[Ground]]:
    return partial(embedded, log=log, store=store)


VARIANTS = [
    Variant(32, "the store's disk (MinIO)", partial(disk_refuses, refusing=full), on=small_minio),
    Variant(32, "the store's disk (folder)", partial(disk_refuses, refusing=full), on=of_embedded(store=True)),
    Variant(32, "the log's disk (SQLite)", partial(disk_refuses, refusing=full), on=of_embedded(log=True)),
    Variant(32, "the store's inodes (folder)", partial(disk_refuses, refusing=without_inodes), on=of_embedded(store=True)),
    Variant(32, "a query node's cache", partial(cache_refuses, options="size=4m", refusing=full)),
    Variant(32, "a query node's cache, inodes", partial(cache_refuses, options="size=64m,nr_inodes=2000", refusing=without_inodes)),
    Variant(32, "a query node's files are limited", small_files),
    Variant(33, "fsync fails with EIO", fails_to_sync, on=of_embedded()),
    Variant(33, "the store's disk is read-only", partial(disk_refuses, refusing=read_only), on=of_embedded(store=True)),
    Variant(33, "a query node's cache is read-only", partial(cache_refuses, options="size=64m", refusing=read_only)),
    Variant(34, "the kernel kills the embed worker", partial(killed_for_memory, role="embed")),
    Variant(34, "the kernel kills the builder", partial(killed_for_memory, role="index")),
    Variant(34, "no address space for the embed worker", partial(no_address_space, role="embed")),
    Variant(34, "no address space for the builder", partial(no_address_space, role="index")),
    Variant(37, "a day ahead, a day behind, to and fro", partial(clocks, off=(DAY, -DAY, 3600.0, -7.0, 0.5), dates=False), ()),
    Variant(37, "a day off, requests signed by it", partial(clocks, off=(DAY, 0.0, -DAY), dates=True), ()),
]
