"""What the local stack is made of: Kafka's jars by Maven, MinIO built by Go, both in a cache folder.

Takes: Java 17+, Maven, Go 1.24+ on the PATH. Gives: paths of jars and of the ``minio`` program. Owns: the versions and the cache.
Never: needs root, Docker, or anything outside Python's standard library.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

KAFKA_VERSION = "4.1.0"
# The last commit of MinIO's public repository; no release holds the fix for conditions that are ignored
# without a read quorum (minio/minio#21603, docs: research of conditional writes), so a release is not enough.
MINIO_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
JAVA_MINIMUM = (17,)
GO_MINIMUM = (1, 24)
POM_FILE = Path(__file__).with_name("pom.xml")
FETCH_TIMEOUT_SECONDS = 1800.0

Say = Callable[[str], None]


class StackError(Exception):
    """The stack cannot do what it was asked to; the message says what to do.

    Parameters
    ----------
    message : str
        What is wrong and what to do about it.
    exit_code : int
        2 where the machine lacks something, else 1.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def inherited_environment() -> dict[str, str]:
    """Environment of this process, for tools that need proxies and homes; without settings of a MinIO or a JVM of the user's own."""
    environment = dict(os.environ)  # noqa: TID251 - runs before Headwater is installed: there are no settings here
    return {name: value for name, value in environment.items() if not name.startswith(("MINIO_", "KAFKA_", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"))}


def jars_dir(cache: Path) -> Path:
    """Folder of Kafka's jars; it exists only when it is complete."""
    return cache / f"kafka-{KAFKA_VERSION}"


def minio_program(cache: Path) -> Path:
    """Path of the MinIO server; it exists only when it is complete."""
    return cache / f"minio-{MINIO_VERSION}" / "minio"


def missing_tools(cache: Path) -> list[str]:
    """One line for each tool that `start` would need and does not find; Maven and Go only where the cache lacks their work."""
    problems = []
    if not _is_at_least(["java", "-version"], r'version "(\d+)', JAVA_MINIMUM):
        problems.append("Java 17 or newer (java): apt-get install openjdk-17-jdk-headless")
    if not jars_dir(cache).is_dir() and shutil.which("mvn") is None:
        problems.append("Maven (mvn), which downloads Kafka: apt-get install maven")
    if not minio_program(cache).is_file() and not _is_at_least(["go", "version"], r"go(\d+)\.(\d+)", GO_MINIMUM):
        problems.append("Go 1.24 or newer (go), which builds MinIO: apt-get install golang (Debian 13), else https://go.dev/dl/ on the PATH")
    return problems


def _is_at_least(command: Sequence[str], pattern: str, minimum: tuple[int, ...]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(pattern, answer.stdout + answer.stderr)
    return found is not None and tuple(int(part) for part in found.groups()) >= minimum


def ensure_tools(cache: Path, say: Say) -> None:
    """Fill the cache where it is not full yet.

    Raises
    ------
    StackError
        Tools are missing (all are named at once, exit code 2), or a download or build failed.
    """
    problems = missing_tools(cache)
    if problems:
        raise StackError("the local stack needs, and this machine lacks:\n" + "\n".join(f"  {line}" for line in problems), exit_code=2)
    cache.mkdir(parents=True, exist_ok=True)
    if not jars_dir(cache).is_dir():
        _fetch_kafka(cache, say)
    if not minio_program(cache).is_file():
        _build_minio(cache, say)


def _fetch_kafka(cache: Path, say: Say) -> None:
    say(f"kafka: Maven downloads Apache Kafka {KAFKA_VERSION} (about 45 MB, a few seconds to a minute)")
    target = jars_dir(cache)
    command = ["mvn", "-B", "-q", "-f", str(POM_FILE), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    _fill(target, lambda part: [*command, f"-DoutputDirectory={part}"], {}, "kafka", say)
    say(f"kafka: {len(list(target.glob('*.jar')))} jars, {size_megabytes(target):.0f} MB in {target}")


def _build_minio(cache: Path, say: Say) -> None:
    say(f"minio: Go builds MinIO {MINIO_VERSION} (2 to 5 minutes on two cores, once)")
    target = minio_program(cache)
    command = ["go", "install", f"github.com/minio/minio@{MINIO_VERSION}"]
    # Without cgo the build needs no C compiler; with GOFLAGS emptied no `-mod=vendor` of the user's gets in its way.
    _fill(target.parent, lambda part: command, {"GOBIN": "{part}", "CGO_ENABLED": "0", "GOFLAGS": ""}, "minio", say)
    say(f"minio: {size_megabytes(target.parent):.0f} MB in {target}")


def _fill(target: Path, command_for: Callable[[Path], list[str]], extra: Mapping[str, str], name: str, say: Say) -> None:
    """Fill a folder beside `target` and rename it: whoever finds `target` finds it complete."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    environment = inherited_environment() | {key: value.replace("{part}", str(part)) for key, value in extra.items()}
    log_file = part.with_suffix(".log")
    with log_file.open("wb") as log:
        child = subprocess.Popen(command_for(part), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=part)
    try:
        code = _wait_saying(child, part, name, say)
    except BaseException:  # Ctrl-C too: do not leave a download running behind the user's back
        child.kill()
        child.wait()
        raise
    if code != 0 or not any(part.iterdir()):
        last = "\n".join(log_file.read_text(errors="replace").splitlines()[-15:])
        raise StackError(f"{name}: the download or build failed (exit {code}); is the network there? Last lines of {log_file}:\n{last}")
    part.rename(target)
    log_file.unlink()


def _wait_saying(child: subprocess.Popen[bytes], part: Path, name: str, say: Say) -> int:
    deadline = time.monotonic() + FETCH_TIMEOUT_SECONDS
    while True:
        try:
            return child.wait(timeout=15.0)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise StackError(f"{name}: not done after {FETCH_TIMEOUT_SECONDS:.0f} s; try again") from None
            done = size_megabytes(part)
            say(f"{name}: still at it" + (f", {done:.0f} MB" if done >= 1 else ""))


def size_megabytes(folder: Path) -> float:
    """Size of the files under `folder` in megabytes (10^6 bytes)."""
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file()) / 1e6
