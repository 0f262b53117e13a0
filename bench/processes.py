"""Real processes: started with settings of their own, watched, stopped; what they cost, from /proc.

Takes: arguments, environment. Gives: `BenchProcess`. Owns: what it started, nothing else. Never: kills by name.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from contracts.errors import UnavailableError

STOP_SECONDS = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")
_RUN_CLI = "import sys; from headwater.cli import main; main(sys.argv[1:])"


def cli(*arguments: str) -> list[str]:
    """Command line of `headwater` in this interpreter."""
    return [sys.executable, "-c", _RUN_CLI, *arguments]


def module_command(module: str, *arguments: str) -> list[str]:
    """Command line of one of our modules in this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def child_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Our environment without settings of the caller's, and with these; names are fields of `contracts.settings.Settings`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}  # noqa: TID251 - for other processes
    root = str(Path(__file__).resolve().parents[1])
    return inherited | {f"HEADWATER_{name.upper()}": value for name, value in settings.items()} | {"PYTHONPATH": root}


def stop_when_stdin_closes() -> threading.Event:
    """For the child's side of a talking process: an event that is set when its stdin is closed, or its parent is gone."""
    stop = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=watch, name="stdin", daemon=True).start()
    return stop


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float | None:
    """User and system time of a process since it started (proc(5), fields 14 and 15); None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return (int(fields[11]) + int(fields[12])) / _TICKS


def child_pids() -> list[int]:
    """Children of this process that run, by the parents that all processes name (proc(5), field 4 of stat)."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if parent == os.getpid():
            found.append(int(path.parent.name))
    return found


def own_cpu_seconds() -> float:
    """CPU-seconds of this process and of those children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def machine_cpu_seconds() -> float:
    """CPU-seconds that the whole machine has spent since boot, stolen time included (proc(5), /proc/stat: all but idle and iowait)."""
    user, nice, system, _idle, _iowait, *rest = (int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(rest)) / _TICKS


class Others:
    """What else ran on the machine since this was made; `pids` are the benchmark's processes that still run."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._machine, self._own = machine_cpu_seconds(), self._spent()

    def _spent(self) -> float:
        return own_cpu_seconds() + sum(cpu_seconds(pid) or 0.0 for pid in self._pids)

    def share(self) -> float:
        """Share of the CPU-seconds that the machine spent."""
        spent = machine_cpu_seconds() - self._machine
        return max(0.0, 1 - (self._spent() - self._own) / spent) if spent > 0 else 0.0


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process; None where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(found[0]) * 1024 if found else None


def memory_mib(pid: int | None) -> dict[str, int]:
    """Memory of a process (None: this one) in MiB: the most that was resident, what is now, and the part that is no file's; {} where it is gone."""
    try:
        lines = Path(f"/proc/{pid or 'self'}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    names = {"peak": "VmHWM", "resident": "VmRSS", "anonymous": "RssAnon"}
    return {name: round(int(fields[field][0]) / 1024) for name, field in names.items() if field in fields}


class BenchProcess:
    """One process of a benchmark; a context: leaving it stops the process.

    Parameters
    ----------
    name : str
        For messages and notes.
    arguments : Sequence of str
        Its command line.
    settings : Mapping of str to str
        Its settings.
    folder : Path
        Where it runs, and where its output goes (``<name>.log``): a folder without a headwater.yaml.
    talks : bool
        Its stdin and stdout are pipes: it says one line when it is ready, and ends when its stdin is closed.
    """

    def __init__(self, name: str, arguments: Sequence[str], settings: Mapping[str, str], folder: Path, *, talks: bool = False) -> None:
        self.name, self._arguments, self._settings, self._folder, self._talks = name, list(arguments), dict(settings), folder, talks
        self.log_path = folder / f"{name}.log"
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None

    def __enter__(self) -> Self:
        self._log = self.log_path.open("a")
        pipe = subprocess.PIPE if self._talks else None
        self._process = subprocess.Popen(
            self._arguments,
            cwd=self._folder,
            env=child_environment(self._settings),
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or self._log,
            stderr=self._log,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the benchmark alone, which then stops its processes in order
        )
        return self

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    def check(self) -> None:
        """Raise UnavailableError, with the end of its output, if it has ended."""
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            end = " | ".join(self.log_path.read_text(errors="replace").strip().splitlines()[-3:])
            raise UnavailableError(f"process {self.name} ended with {code}: {end[:500]}", hint=f"its output is in {self.log_path}")

    def read_line(self) -> str:
        """Next line of a talking process; blocks."""
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(STOP_SECONDS)
            self.check()
        return line.strip()

    def ask(self, line: str) -> str:
        """Write a line to a talking process, and return the line that it answers."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.read_line()

    def finish(self) -> str:
        """Close a talking process's stdin, and return the line that it answers."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        return self.read_line()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout) if process is not None else ():
            if stream is not None:
                stream.close()
        if self._log is not None:
            self._log.close()


def wait_until(
    is_true: Callable[[], bool], what: str, processes: Sequence[BenchProcess], timeout_seconds: float = 120.0, pause_seconds: float = 0.05
) -> None:
    """Wait for a condition; UnavailableError when one of the processes ends or time is over."""
    deadline = time.monotonic() + timeout_seconds
    while not is_true():
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            raise UnavailableError(f"{what} did not happen within {timeout_seconds:g} s", hint="look at the logs of the benchmark's processes")
        time.sleep(pause_seconds)
