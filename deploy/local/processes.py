"""Processes of the local stack: started detached, recognised for certain, ended by name and birth.

Takes: a command line and a folder. Gives: `ProcessRecord`. Owns: the ``*.json`` pid files under ``deploy/local/run``.
Never: signals a process that it did not start; a pid counts only together with its start time and the boot it belongs to.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessRecord:
    """What is written down about a process that we started.

    Parameters
    ----------
    name : str
        ``kafka`` or ``minio``.
    pid : int
        Process id; the kernel gives it to another process later on.
    start_ticks : int
        Start time in clock ticks since boot, field 22 of ``/proc/PID/stat`` (proc(5)).
    boot_id : str
        The boot that `start_ticks` counts from.
    port : int
        TCP port on 127.0.0.1 that it serves.
    """

    name: str
    pid: int
    start_ticks: int
    boot_id: str
    port: int

    def is_running(self) -> bool:
        """Tell whether exactly this process, and not a later one with its pid, still runs."""
        return self.boot_id == _boot_id() and self.start_ticks == read_start_ticks(self.pid)


def _boot_id() -> str:
    return BOOT_ID_FILE.read_text().strip()


def read_start_ticks(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot; None when it is gone or only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name (field 2) may hold blanks and brackets: count from its last bracket.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def launch(name: str, command: Sequence[str], environment: Mapping[str, str], port: int, run_dir: Path) -> ProcessRecord:
    """Start a process that outlives this one, its output in ``<name>.log``, and write its record.

    Parameters
    ----------
    name : str
        Names the record and the log file.
    command : Sequence[str]
        Program and arguments, without secrets (other users can read them).
    environment : Mapping[str, str]
        The whole environment of the new process.
    port : int
        The port it was told to serve.
    run_dir : Path
        Folder of records and logs.
    """
    log_file = log_path(run_dir, name)
    log_file.touch(mode=0o600)
    with log_file.open("wb") as log:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=run_dir,
            start_new_session=True,  # or Ctrl-C and the end of the terminal would end it too
        )
    child.returncode = 0  # it is on its own now: its record speaks for it, and Popen need not warn that it still runs
    # A child cannot vanish before it is waited for, but it may already have failed: then there is no start time.
    record = ProcessRecord(name, child.pid, read_start_ticks(child.pid) or 0, _boot_id(), port)
    record_path(run_dir, name).write_text(json.dumps(asdict(record)) + "\n")
    return record


def record_path(run_dir: Path, name: str) -> Path:
    """Path of the pid file of `name`."""
    return run_dir / f"{name}.json"


def log_path(run_dir: Path, name: str) -> Path:
    """Path of the log of `name`."""
    return run_dir / f"{name}.log"


def load_record(run_dir: Path, name: str) -> ProcessRecord | None:
    """Return the record of `name` if that very process still runs, else None."""
    try:
        record = ProcessRecord(**json.loads(record_path(run_dir, name).read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # a torn or foreign file names no process of ours
        return None
    return record if record.is_running() else None


def end(records: Sequence[ProcessRecord], run_dir: Path, patience_seconds: float = 15.0) -> dict[str, str]:
    """End these processes: TERM to all, KILL to who is left after `patience_seconds`; forget their records.

    Returns
    -------
    dict[str, str]
        How each ended: ``stopped``, ``killed`` or ``not running``.
    """
    ended: dict[str, str] = {}
    handles: dict[str, int] = {}
    try:
        for record in records:
            handle = _open_handle(record)
            if handle is None:
                ended[record.name] = "not running"
            else:
                handles[record.name] = handle
                signal.pidfd_send_signal(handle, signal.SIGTERM)
        deadline = time.monotonic() + patience_seconds
        for name, handle in handles.items():
            if _wait_for_end(handle, deadline - time.monotonic()):
                ended[name] = "stopped"
                continue
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            _wait_for_end(handle, 5.0)
            ended[name] = "killed"
    finally:
        for handle in handles.values():
            os.close(handle)
    for record in records:
        record_path(run_dir, record.name).unlink(missing_ok=True)
    return ended


def _open_handle(record: ProcessRecord) -> int | None:
    """Open a pidfd (pidfd_open(2)) first and check the identity after: from then on the pid cannot change owner."""
    try:
        handle = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return None
    if record.is_running():
        return handle
    os.close(handle)
    return None


def _wait_for_end(handle: int, timeout_seconds: float) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)  # a pidfd becomes readable when its process ends
    return bool(poll.poll(max(0.0, timeout_seconds) * 1000))


def tail_of_log(run_dir: Path, name: str, lines: int = 25) -> str:
    """Return the last lines of the log of `name`."""
    try:
        text = log_path(run_dir, name).read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
