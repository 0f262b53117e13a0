"""The local stack: says what it lacks, ends only what it started, and starting twice changes nothing.

A stack that runs is left running: these tests only ask it to start again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.processes import ProcessRecord, end, launch, load_record, read_start_ticks, record_path
from deploy.local.services import is_kafka_ready, is_minio_ready, kafka_properties, load_credentials, pick_port, random_cluster_id
from deploy.local.stack import environment_text, write_private
from deploy.local.tools import jars_dir, minio_program

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "deploy" / "local"


def run_stack(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.local.stack", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False)  # noqa: TID251


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[ProcessRecord]:
    record = launch("kafka", ["sleep", "600"], {"PATH": os.defpath}, 1, tmp_path)
    yield record
    end([record], tmp_path, patience_seconds=1.0)


def test_all_missing_tools_are_named_at_once_with_the_command_that_installs_them(tmp_path: Path) -> None:
    answer = run_stack("start", "--dir", str(tmp_path / "here"), "--cache", str(tmp_path / "cache"), PATH="")
    assert answer.returncode == 2
    for tool, remedy in (("java", "apt-get install openjdk-17-jdk-headless"), ("mvn", "apt-get install maven"), ("go", "apt-get install golang")):
        [line] = [line for line in answer.stderr.splitlines() if f"({tool})" in line]
        assert remedy in line
    assert not (tmp_path / "here" / "stack.env").exists()


def test_a_tool_whose_work_is_in_the_cache_is_not_asked_for(tmp_path: Path) -> None:
    jars_dir(tmp_path).mkdir()
    minio_program(tmp_path).parent.mkdir()
    minio_program(tmp_path).touch()
    answer = run_stack("start", "--dir", str(tmp_path / "here"), "--cache", str(tmp_path), PATH="")
    assert answer.returncode == 2
    assert "(java)" in answer.stderr
    assert "(mvn)" not in answer.stderr
    assert "(go)" not in answer.stderr


def test_the_environment_file_holds_exactly_the_four_settings_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "stack.env"
    write_private(path, environment_text(9092, 9000, "who", "what"))
    assert path.read_text() == (
        "HEADWATER_LOG_URL=kafka://127.0.0.1:9092\n"
        "HEADWATER_STORE_URL=s3://127.0.0.1:9000/headwater\n"
        "HEADWATER_STORE_ACCESS_KEY=who\n"
        "HEADWATER_STORE_SECRET_KEY=what\n"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["stack.env"]


def test_credentials_are_random_private_and_kept(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = load_credentials(tmp_path)
    assert load_credentials(tmp_path) == first
    other = load_credentials(tmp_path / "other")
    assert first[0] != other[0]
    assert first[1] != other[1]
    assert len(first[1]) == 40
    assert stat.S_IMODE((tmp_path / "credentials.json").stat().st_mode) == 0o600


def test_a_process_that_we_started_is_recognised_and_ended(tmp_path: Path, sleeper: ProcessRecord) -> None:
    assert load_record(tmp_path, "kafka") == sleeper
    assert os.getsid(sleeper.pid) == sleeper.pid  # it outlives our terminal
    assert end([sleeper], tmp_path) == {"kafka": "stopped"}
    assert load_record(tmp_path, "kafka") is None
    assert not record_path(tmp_path, "kafka").exists()
    assert end([sleeper], tmp_path) == {"kafka": "not running"}


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "another boot"}])
def test_a_process_that_merely_has_the_pid_is_never_signalled(tmp_path: Path, sleeper: ProcessRecord, change: dict[str, object]) -> None:
    foreign = dataclasses.replace(sleeper, **change)
    record_path(tmp_path, "kafka").write_text(json.dumps(dataclasses.asdict(foreign)))
    assert load_record(tmp_path, "kafka") is None
    assert end([foreign], tmp_path) == {"kafka": "not running"}
    answer = run_stack("stop", "--dir", str(tmp_path))
    assert answer.returncode == 0
    assert read_start_ticks(sleeper.pid) == sleeper.start_ticks


def test_a_process_that_ignores_the_polite_signal_is_killed_after_a_while(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    record = launch("minio", [sys.executable, "-c", program], {}, 1, tmp_path)
    try:
        while "deaf" not in (tmp_path / "minio.log").read_text():
            assert record.is_running()
        assert end([record], tmp_path, patience_seconds=0.3) == {"minio": "killed"}
    finally:
        if record.is_running():
            os.kill(record.pid, signal.SIGKILL)
    assert not record.is_running()


def test_a_taken_port_is_left_to_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        assert pick_port(taken) != taken
    assert pick_port(taken) == taken
    assert pick_port(taken, taken=frozenset({taken})) != taken


def test_the_broker_listens_on_loopback_only_and_takes_large_records(tmp_path: Path) -> None:
    lines = dict(line.split("=", 1) for line in kafka_properties(tmp_path, 9092, 9093).splitlines())
    for name in ("listeners", "advertised.listeners", "controller.quorum.voters"):
        assert set(re.findall(r"\d+\.\d+\.\d+\.\d+", lines[name])) == {"127.0.0.1"}
    assert int(lines["message.max.bytes"]) == 64 * 1024 * 1024 < int(lines["socket.request.max.bytes"])
    assert lines["auto.create.topics.enable"] == "false"


def test_a_clusters_id_is_never_taken_for_an_option() -> None:
    """One in 64 began with a dash, and then the stack did not start."""
    made = [random_cluster_id() for _ in range(2000)]
    assert len(set(made)) == 2000 and all(len(each) == 22 and not each.startswith("-") for each in made)


def test_nothing_that_listens_elsewise_is_taken_for_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert not is_kafka_ready(port)
    assert not is_minio_ready(port)


def test_stopping_what_does_not_run_is_no_error_and_removes_the_environment_file(tmp_path: Path) -> None:
    (tmp_path / "stack.env").write_text("stale")
    assert run_stack("status", "--dir", str(tmp_path)).returncode == 3
    for _ in range(2):
        assert run_stack("stop", "--dir", str(tmp_path), "--wipe").returncode == 0
    assert not (tmp_path / "stack.env").exists()


@pytest.mark.kafka
@pytest.mark.minio
def test_starting_a_running_stack_again_keeps_its_processes_and_settings() -> None:
    before = {name: load_record(LOCAL / "run", name) for name in ("kafka", "minio")}
    if None in before.values():
        pytest.skip("the local stack does not run: make stack")
    settings = (LOCAL / "stack.env").read_text()
    assert run_stack("start").returncode == 0
    assert {name: load_record(LOCAL / "run", name) for name in ("kafka", "minio")} == before
    assert (LOCAL / "stack.env").read_text() == settings
    assert stat.S_IMODE((LOCAL / "stack.env").stat().st_mode) == 0o600
    assert run_stack("status").returncode == 0
