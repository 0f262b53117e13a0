"""Headwater as real processes: started from the command line, waited for, killed -9, started again; their stderr is kept.

Takes: arguments and an environment. Gives: running processes. Owns: their end: none outlives its context.
Never: reaches into a process; what it does is seen from outside.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from headwater.client import HeadwaterClient
from tests.system.sites import Site, free_port

HEADWATER = str(Path(sys.executable).parent / "headwater")
ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 180.0


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these ``HEADWATER_*`` variables and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("HEADWATER_")}  # noqa: TID251 - for other processes
    return kept | dict(variables)


def command(site: Site, *arguments: str, timeout_seconds: float = 120.0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``headwater ARGUMENTS`` to its end."""
    return subprocess.run(
        [HEADWATER, *arguments],
        cwd=site.folder,
        env=environment_of(site.environment | variables),
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def done(answer: subprocess.CompletedProcess[str]) -> str:
    """Standard output of a command that must have succeeded."""
    assert answer.returncode == 0, f"{answer.args} ended with {answer.returncode}: {answer.stderr}"
    return answer.stdout


def until(check: Callable[[], bool], seconds: float, what: str, every_seconds: float = 0.05, alive: Sequence[Process] = ()) -> float:
    """Wait for `check`, fail when it does not come true in time or a process ends; gives the seconds it took."""
    began = time.monotonic()
    while not check():
        for process in alive:
            process.must_run()
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}\n" + "\n".join(p.stderr()[-3000:] for p in alive)
        time.sleep(every_seconds)
    return time.monotonic() - began


class Process:
    """One ``headwater`` process that can die and come again; stderr of all its lives is in one file.

    Parameters
    ----------
    name : str
        What it is called in messages and files.
    arguments : sequence of str
        After ``headwater``.
    site : Site
        Its log and store; working folder too.
    variables : Mapping of str to str
        Variables of this process alone.
    program : sequence of str
        What is started with the arguments.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], site: Site, variables: Mapping[str, str] | None = None, program: Sequence[str] = (HEADWATER,)
    ) -> None:
        self.name, self.arguments, self.site, self.variables = name, list(arguments), site, dict(variables or {})
        self.program = list(program)
        self.log = site.folder / f"{name}.stderr"
        self.lives = 0
        self._popen: subprocess.Popen[bytes] | None = None
        self._began_at = 0

    def start(self) -> None:
        assert self._popen is None, f"{self.name} runs"
        self._began_at = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as stderr:
            self._popen = subprocess.Popen(
                [*self.program, *self.arguments],
                cwd=self.site.folder,
                env=environment_of({"HEADWATER_LOG_LEVEL": "INFO"} | self.site.environment | self.variables),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        self.lives += 1

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until the process says that its role runs (the query role: until it answers ``/readyz`` with 200)."""
        until(self._is_ready, seconds, f"{self.name} is ready", alive=[self])

    def _is_ready(self) -> bool:
        if b"running " not in self.log.read_bytes()[self._began_at :]:
            return False
        if "HEADWATER_QUERY_PORT" not in self.variables:
            return True
        with self.client() as client:
            return client.ready()

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} does not run"
        return self._popen.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.variables['HEADWATER_QUERY_PORT']}"

    def client(self) -> HeadwaterClient:
        return HeadwaterClient(self.url)

    def must_run(self) -> None:
        assert self._popen is not None, f"{self.name} was not started"
        code = self._popen.poll()
        assert code is None, f"{self.name} ended with {code}: {self.stderr()[-3000:]}"

    def kill(self) -> None:
        """``kill -9``, and wait until the process is gone."""
        self.must_run()
        assert self._popen is not None
        self._popen.kill()
        assert self._popen.wait(30) == -signal.SIGKILL
        self._popen = None

    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def has_died(self) -> int | None:
        """Exit code of a process that ended by itself, which may then be started again; None while it runs."""
        assert self._popen is not None, f"{self.name} was not started"
        code = self._popen.poll()
        if code is not None:
            self._popen = None
        return code

    def terminate(self) -> None:
        """SIGTERM, and nothing is waited for."""
        assert self._popen is not None
        self._popen.terminate()

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, as an operator ends it; gives the exit code."""
        assert self._popen is not None
        self.terminate()
        code = self._popen.wait(seconds)
        self._popen = None
        return code

    def end(self) -> None:
        """Whatever it is doing: it is gone afterwards."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait(30)
        self._popen = None

    def stderr(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def role(name: str, site: Site, collection: str | None = None) -> Process:
    """Process of a role (``embed``, ``index``, ``query``), or of all of them (``up``)."""
    variables = {"HEADWATER_QUERY_PORT": str(free_port())} if name in ("query", "up") else {}
    arguments = ["up"] if name == "up" else ["run", name]
    if collection is not None and name in ("embed", "index"):
        arguments += ["--collection", collection]
    return Process(name, arguments, site, variables)


@contextmanager
def running(site: Site, *names: str, collection: str | None = None) -> Iterator[dict[str, Process]]:
    """Processes of these roles, ready; killed when the context ends."""
    processes = {name: role(name, site, collection) for name in names}
    with ExitStack() as stack:
        for process in processes.values():
            stack.callback(process.end)
            process.start()
        for process in processes.values():
            process.wait_ready()
        try:
            yield processes
        except BaseException:
            for process in processes.values():  # what pytest shows under the failure: without it nobody knows what the role saw
                print(f"---- {process.name}, end of stderr ----\n{process.stderr()[-6000:]}", file=sys.stderr)
            raise
