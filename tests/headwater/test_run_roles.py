"""Promises of the one-process runner: one failure stops all and is told, a stop is awaited, metrics are served."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.engines import Engines
from contracts.errors import CorruptError, FencedError, HeadwaterError, SettingsError, UnavailableError
from contracts.settings import load_settings
from headwater.logging_setup import set_up_logging
from headwater.run_roles import RoleRunner, served_metrics


def patient(stopped: list[str]) -> object:
    def run(stop: threading.Event) -> None:
        stop.wait()
        stopped.append("patient")

    return run


def failing(stop: threading.Event) -> None:
    raise FencedError("a newer worker owns partition 3")


def test_the_first_fatal_error_stops_the_other_roles_and_is_raised() -> None:
    stopped: list[str] = []
    with pytest.raises(FencedError, match="partition 3"), RoleRunner({"a": patient(stopped), "b": failing}, 5) as runner:  # type: ignore[dict-item]
        runner.wait()
    assert stopped == ["patient"]


def test_an_error_that_nobody_waited_for_is_raised_when_the_context_ends() -> None:
    with pytest.raises(FencedError), RoleRunner({"b": failing}, 5):
        time.sleep(0.1)


def test_a_bug_in_a_role_reaches_the_caller_as_it_is() -> None:
    def broken(stop: threading.Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), RoleRunner({"x": broken}, 5) as runner:
        runner.wait()


def test_a_role_that_ends_by_itself_is_a_failure() -> None:
    with pytest.raises(HeadwaterError, match="role x ended although nobody stopped it"), RoleRunner({"x": lambda stop: None}, 5) as runner:
        runner.wait()


def test_a_role_that_does_not_stop_in_time_is_named() -> None:
    release = threading.Event()
    with pytest.raises(HeadwaterError, match="roles slow did not stop within 0.1 s"), RoleRunner({"slow": lambda stop: release.wait(20)}, 0.1):
        pass
    release.set()


WAITS = """
import os, signal, sys, threading, time
from headwater.run_roles import RoleRunner

number, stopped = signal.Signals(int(sys.argv[1])), []
before = signal.getsignal(number)

def role(stop):
    stop.wait()
    stopped.append("role")

def send():
    while signal.getsignal(number) is before:
        time.sleep(0.01)
    os.kill(os.getpid(), number)

with RoleRunner({"a": role}, 5) as runner:
    threading.Thread(target=send, daemon=True).start()
    runner.wait()
    assert signal.getsignal(number) is before
assert stopped == ["role"]
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_and_the_old_handlers_come_back(number: signal.Signals) -> None:
    """In a process of its own: a signal that went astray would end the tests."""
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", WAITS, str(int(number))], cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_callers_error_comes_before_a_roles(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CorruptError), RoleRunner({"b": failing}, 5):
        raise CorruptError("mine")


def engines(**overrides: object) -> Engines:
    return Engines(load_settings(log_url="memory://", store_url="memory://", **overrides), MemoryLog(), MemoryStore())


def test_metrics_are_served_on_their_port_and_the_port_is_free_afterwards() -> None:
    started = engines(metrics_port=0)
    started.metrics.dead_letters.labels("photos", "empty").inc()
    with served_metrics(started) as port:
        assert port
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert b'headwater_dead_letters_total{collection="photos",reason="empty"} 1.0' in answer.read()
    with served_metrics(engines(metrics_port=port)) as again:
        assert again == port
        with pytest.raises(UnavailableError, match="cannot listen"), served_metrics(engines(metrics_port=port)):
            pass
    with served_metrics(engines()) as none:
        assert none is None


@pytest.mark.parametrize("as_json", [True, False])
def test_a_log_line_carries_its_values_and_never_a_secret(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    settings = load_settings(store_secret_key="hunter2hunter2", log_level="INFO")
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        for handler in before:
            root.removeHandler(handler)
        set_up_logging(settings, as_json=as_json)
        logging.getLogger("x").info("put failed", extra={"url": "http://hunter2hunter2@host"})
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    line = capsys.readouterr().err
    assert "put failed" in line
    assert "[secret]@host" in line
    assert "hunter2" not in line
    assert line.startswith("{") == as_json


def test_an_unknown_log_level_is_refused() -> None:
    with pytest.raises(SettingsError, match="log_level"):
        set_up_logging(load_settings(log_level="LOUD"))
