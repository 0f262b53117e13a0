"""The local stack: Apache Kafka and MinIO on loopback, without Docker and without root.

    python3 -m deploy.local.stack start     (make stack)
    python3 -m deploy.local.stack stop      (make stack-stop; --wipe removes the data too)
    python3 -m deploy.local.stack status

Takes: Java 17+, and for the first start Maven and Go 1.24+. Gives: two servers and ``deploy/local/stack.env``.
Owns: ``deploy/local/run`` (data, logs, pid files) and the order of things. Never: touches a process that it did not start.
The bucket that ``HEADWATER_STORE_URL`` names is created by Headwater's own store when it is opened first.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deploy.local.processes import ProcessRecord, end, load_record, log_path, record_path, tail_of_log
from deploy.local.services import HOST, NotificationTarget, is_kafka_ready, is_minio_ready, load_credentials, pick_port, start_kafka, start_minio
from deploy.local.tools import StackError, ensure_tools

LOCAL_DIR = Path(__file__).resolve().parent
READY_TIMEOUT_SECONDS = 90.0
BUCKET = "headwater"

NOTIFICATIONS = ("BUCKETS", "bucket-notifications")
"""Name and topic of the target that the store knows: a bucket's events go there once they are sent to arn:minio:sqs::BUCKETS:kafka."""


def start_notifying_minio(cache: Path, run_dir: Path, port: int) -> ProcessRecord:
    """Start the store with the broker, which is started before it, as target of bucket notifications."""
    kafka = load_record(run_dir, "kafka")
    name, topic = NOTIFICATIONS
    return start_minio(cache, run_dir, port, None if kafka is None else NotificationTarget(name, kafka.port, topic))


Starter = Callable[[Path, Path, int], ProcessRecord]
STARTERS: dict[str, tuple[Starter, Callable[[int], bool]]] = {
    "kafka": (start_kafka, is_kafka_ready),
    "minio": (start_notifying_minio, is_minio_ready),
}


class Progress:
    """Writes lines that begin with the seconds since the command began."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, line: str) -> None:
        """Write one line at once."""
        sys.stdout.write(f"[{time.monotonic() - self._began:6.1f} s] {line}\n")
        sys.stdout.flush()


@contextlib.contextmanager
def only_one(run_dir: Path) -> Iterator[None]:
    """Let two commands at once take turns; the lock goes with its process, however that ends."""
    run_dir.mkdir(parents=True, exist_ok=True)
    run_dir.chmod(0o700)
    with (run_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment_text(kafka_port: int, minio_port: int, access_key: str, secret_key: str) -> str:
    """Text of ``stack.env``: what Headwater needs to use this stack, one NAME=VALUE a line."""
    return (
        f"HEADWATER_LOG_URL=kafka://{HOST}:{kafka_port}\n"
        f"HEADWATER_STORE_URL=s3://{HOST}:{minio_port}/{BUCKET}\n"
        f"HEADWATER_STORE_ACCESS_KEY={access_key}\n"
        f"HEADWATER_STORE_SECRET_KEY={secret_key}\n"
    )


def write_private(path: Path, text: str) -> None:
    """Replace a file at once by one that only its owner can read."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)


def start(local_dir: Path, cache: Path, ports: dict[str, int], say: Callable[[str], None]) -> None:
    """Start what does not run yet, wait until all is ready, write ``stack.env``.

    Parameters
    ----------
    local_dir : Path
        Folder of ``run/`` and ``stack.env``.
    cache : Path
        Folder of the jars and the MinIO program.
    ports : dict[str, int]
        Preferred ports of ``kafka`` and ``minio``; another one is taken where somebody else listens.
    say : callable
        Takes progress lines.

    Raises
    ------
    StackError
        A tool is missing, or a server did not become ready; what this call started is ended again.
    """
    run_dir = local_dir / "run"
    with only_one(run_dir):
        running = {name: load_record(run_dir, name) for name in STARTERS}
        if not all(running.values()):
            ensure_tools(cache, say)
        started: list[ProcessRecord] = []
        serving: dict[str, int] = {}
        try:
            for name, (starter, _) in STARTERS.items():
                record = running[name]
                if record is None:
                    record = starter(cache, run_dir, pick_port(ports[name], taken=frozenset(serving.values())))
                    started.append(record)
                    say(f"{name}: started, pid {record.pid}, log {log_path(run_dir, name)}")
                else:
                    say(f"{name}: runs already, pid {record.pid}")
                serving[name] = record.port
                running[name] = record
            for record in running.values():
                if record is not None:
                    _wait_until_ready(record, run_dir, say)
        except BaseException:  # Ctrl-C too: leave nothing half started
            end(started, run_dir)
            raise
        access_key, secret_key = load_credentials(run_dir)
        env_file = local_dir / "stack.env"
        write_private(env_file, environment_text(serving["kafka"], serving["minio"], access_key, secret_key))
        say(f"wrote {env_file}; use it with: set -a; . {env_file}; set +a")


def _wait_until_ready(record: ProcessRecord, run_dir: Path, say: Callable[[str], None]) -> None:
    is_ready = STARTERS[record.name][1]
    began = time.monotonic()
    said = began
    while not is_ready(record.port):
        now = time.monotonic()
        if not record.is_running():
            raise StackError(f"{record.name}: it ended. Last lines of its log:\n{tail_of_log(run_dir, record.name)}")
        if now - began > READY_TIMEOUT_SECONDS:
            raise StackError(
                f"{record.name}: not ready after {READY_TIMEOUT_SECONDS:.0f} s. Last lines of its log:\n{tail_of_log(run_dir, record.name)}"
            )
        if now - said > 3.0:
            said = now
            say(f"{record.name}: not ready yet")
        time.sleep(0.1)
    say(f"{record.name}: ready on {HOST}:{record.port}")


def stop(local_dir: Path, wipe: bool, say: Callable[[str], None]) -> None:
    """End the processes that `start` started and remove ``stack.env``; with `wipe` their data, logs and credentials too."""
    run_dir = local_dir / "run"
    with only_one(run_dir):
        records = [record for name in STARTERS if (record := load_record(run_dir, name)) is not None]
        ended = end(records, run_dir)
        for name in STARTERS:
            say(f"{name}: {ended.get(name, 'not running')}")
            record_path(run_dir, name).unlink(missing_ok=True)
        (local_dir / "stack.env").unlink(missing_ok=True)
        if wipe:
            for entry in run_dir.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name != "lock":
                    entry.unlink()
            say(f"removed the data in {run_dir}")


def status(local_dir: Path, say: Callable[[str], None]) -> bool:
    """Tell what runs; True when all runs and is ready."""
    run_dir = local_dir / "run"
    healthy = True
    for name, (_, is_ready) in STARTERS.items():
        record = load_record(run_dir, name)
        ready = record is not None and is_ready(record.port)
        healthy = healthy and ready
        word = "ready" if ready else "not ready"
        say(f"{name}: not running" if record is None else f"{name}: {word} on {HOST}:{record.port}, pid {record.pid}")
    return healthy


def main(arguments: list[str] | None = None) -> int:
    """Run one command; exit code 0, 1 (failed), 2 (the machine lacks something) or 3 (`status`: something does not run)."""
    parser = argparse.ArgumentParser(prog="python3 -m deploy.local.stack", description="Kafka and MinIO on loopback, without Docker.")
    parser.add_argument("command", choices=["start", "stop", "status"])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/headwater/stack", help="folder of the jars and the MinIO program")
    parser.add_argument("--dir", type=Path, default=LOCAL_DIR, help="folder of run/ and stack.env")
    parser.add_argument("--kafka-port", type=int, default=9092, help="preferred port; 9093 beside it is the controller's")
    parser.add_argument("--minio-port", type=int, default=9000, help="preferred port")
    parser.add_argument("--wipe", action="store_true", help="stop: remove data, logs and credentials too")
    options = parser.parse_args(arguments)
    say = Progress()
    local_dir = options.dir.resolve()
    try:
        if options.command == "start":
            start(local_dir, options.cache.expanduser().resolve(), {"kafka": options.kafka_port, "minio": options.minio_port}, say)
        elif options.command == "stop":
            stop(local_dir, options.wipe, say)
        else:
            return 0 if status(local_dir, say) else 3
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
