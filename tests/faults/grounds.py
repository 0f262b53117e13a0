"""Other ground than the usual one: disks that can be filled or made read-only, under a store, under a log, and under the embedded pair of both.

Takes: the usual ground, a folder. Gives: contexts for `Variant.on`. Owns: mounts, and a second MinIO. Never: fills a disk that it did not mount.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.processes import end
from deploy.local.services import HOST, is_minio_ready, load_credentials, start_minio
from tests.faults.ground import BUCKET, CACHE, Ground
from tests.system.processes import until
from tests.system.sites import free_port

MIB = 1 << 20


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs at `folder`; only root may make one."""
    folder.mkdir(parents=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"no disk of its own can be mounted here: {made.stderr.strip()}"
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """Make a disk ``ro`` or ``rw`` while it is used; between two writes, since no file may be open for writing then."""
    for _ in range(100):
        done = subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"remount {option}: {done.stderr.strip()}")


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """The disk of `folder` has no byte left while the context lasts."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def without_inodes(folder: Path) -> Iterator[None]:
    """The disk of `folder` takes no further file while the context lasts."""
    made: list[Path] = []
    try:
        while True:
            made.append(folder / f"inode-{len(made)}")
            made[-1].touch()
    except OSError:
        made.pop()
    try:
        yield
    finally:
        for path in made:
            path.unlink()


class DiskGround(Ground):
    """A ground without servers of its own; `urls` are its log and store, `disk` is what can be filled."""

    def __init__(self, folder: Path, disk: Path, urls: dict[str, str]) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.disk, self._urls = disk, urls

    def environment(self) -> dict[str, str]:
        return dict(self._urls)


@contextmanager
def embedded(usual: Ground, folder: Path, *, log: bool = False, store: bool = False) -> Iterator[DiskGround]:
    """A SQLite log and a folder store, either or both on a disk of 48 MiB."""
    with mounted(folder / "disk", f"size={48 * MIB},nr_inodes=3000") as disk:
        urls = {
            "HEADWATER_LOG_URL": f"sqlite:///{(disk if log else folder) / 'log.sqlite'}",
            "HEADWATER_STORE_URL": f"file:///{(disk if store else folder) / 'store'}",
        }
        ground = DiskGround(folder, disk, urls)
        try:
            yield ground
        finally:
            ground.end_query()


@contextmanager
def small_minio(usual: Ground, folder: Path) -> Iterator[DiskGround]:
    """The usual broker, and a MinIO of its own on a disk of 64 MiB."""
    with mounted(folder / "disk", f"size={64 * MIB},nr_inodes=30000") as disk:
        run_dir, port = disk / "run", free_port()
        run_dir.mkdir()
        record = start_minio(CACHE, run_dir, port)
        try:
            until(lambda: is_minio_ready(port), 30, "the small MinIO is ready")
            access_key, secret_key = load_credentials(run_dir)
            store = {"URL": f"s3://{HOST}:{port}/{BUCKET}", "ACCESS_KEY": access_key, "SECRET_KEY": secret_key}
            ground = DiskGround(folder, disk, usual.environment() | {f"HEADWATER_STORE_{name}": value for name, value in store.items()})
            try:
                yield ground
            finally:
                ground.end_query()
        finally:
            end([record], run_dir)
