"""The folder store among processes, crashes, full disks and planted links."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backends.folder_store import LEFTOVER_SECONDS, TEMPORARY_FOLDER, FolderStore
from contracts.clock import ManualClock
from contracts.errors import SettingsError, UnavailableError
from contracts.store import PutOutcome

RACER = """
import sys, time
from pathlib import Path
from backends.folder_store import FolderStore
store = FolderStore(Path(sys.argv[1]))
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.readline()
outcomes = [store.put_if_absent(f"race/{n}", sys.argv[2].encode()).value for n in range(20)]
sys.stdout.write(" ".join(outcomes) + "\\n")
"""

ENDLESS_WRITER = """
import sys
from pathlib import Path
from backends.folder_store import FolderStore
store = FolderStore(Path(sys.argv[1]))
body = b"x" * (4 << 20)
for number in range(1_000_000):
    store.put_if_absent(f"many/{number:06d}", body)
    if number == 0:
        sys.stdout.write("writing\\n"); sys.stdout.flush()
    elif number > 4:
        store.delete(f"many/{number - 4:06d}")
"""


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def spawn(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow
def test_of_sixteen_processes_racing_for_twenty_keys_one_wins_each(tmp_path: Path) -> None:
    racers = [spawn(RACER, str(tmp_path), str(number)) for number in range(16)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outcomes = [racer.communicate(timeout=60)[0].split() for racer in racers]
    store = FolderStore(tmp_path)
    for key in range(20):
        winners = [number for number in range(16) if outcomes[number][key] == "created"]
        assert len(winners) == 1
        found = store.get(f"race/{key}")
        assert found is not None
        assert int(found.data) == winners[0]
    assert names_in(tmp_path / TEMPORARY_FOLDER) == []
    store.close()


def test_a_writer_killed_in_the_middle_leaves_no_partial_object(tmp_path: Path) -> None:
    for round_number in range(4):
        writer = spawn(ENDLESS_WRITER, str(tmp_path / str(round_number)))
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        time.sleep(0.05 + 0.03 * round_number)
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=10)
        store = FolderStore(tmp_path / str(round_number))
        listed = list(store.list(""))
        assert listed
        for info in listed:
            found = store.get(info.key)
            assert found is not None
            assert len(found.data) == info.size_bytes == 4 << 20
        store.close()


def test_what_a_dead_process_left_is_never_listed_and_removed_when_it_is_old(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put_if_absent("kept", b"x")
    store.close()
    now = time.time()
    for name, age in (("123-old", LEFTOVER_SECONDS + 60), ("123-young", 60.0)):
        leftover = tmp_path / TEMPORARY_FOLDER / name
        leftover.write_bytes(b"partial")
        os.utime(leftover, (now - age, now - age))
    store = FolderStore(tmp_path)
    assert [info.key for info in store.list("")] == ["kept"]
    assert names_in(tmp_path / TEMPORARY_FOLDER) == ["123-young"]
    store.close()


def test_no_symbolic_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    store = FolderStore(tmp_path / "store")
    (tmp_path / "store" / "folder").symlink_to(outside)
    (tmp_path / "store" / "file").symlink_to(outside / "secret")
    for call in (
        lambda: store.get("folder/secret"),
        lambda: store.get("file"),
        lambda: store.head("folder/secret"),
        lambda: store.put_if_absent("folder/planted", b"x"),
        lambda: store.compare_and_swap("folder/secret", b"x", "tag"),
        lambda: store.delete("folder/secret"),
    ):
        with pytest.raises(SettingsError):
            call()
    assert list(store.list("")) == []
    assert names_in(outside) == ["secret"]
    store.close()


def test_a_tag_never_comes_again_even_when_the_clock_stands_still(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, clock=ManualClock())
    store.put_if_absent("k", b"0")
    tags = []
    for number in range(1, 60):
        found = store.get("k")
        assert found is not None
        tags.append(found.etag)
        assert store.compare_and_swap("k", b"%d" % (number % 10), found.etag) is PutOutcome.CREATED
    assert len(set(tags)) == len(tags)
    store.close()


def test_an_object_cannot_lie_below_another(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put_if_absent("a", b"x")
    store.put_if_absent("d/e", b"x")
    for key in ("a/b", "d"):
        with pytest.raises(SettingsError):
            store.put_if_absent(key, b"y")
    assert store.get("a/b") is None
    assert store.get("d") is None
    store.close()


def test_a_deleted_object_takes_its_empty_folders_along_and_no_others(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put_if_absent("a/b/c", b"x")
    store.put_if_absent("a/d", b"x")
    store.delete("a/b/c")
    assert names_in(tmp_path / "a") == ["d"]
    store.close()


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, UnavailableError), (errno.EIO, UnavailableError), (errno.EROFS, SettingsError), (errno.EACCES, SettingsError)],
)
def test_a_failing_disk_is_explained_and_the_space_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    store = FolderStore(tmp_path)

    def fail(descriptor: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(expected) as failed:
        store.put_if_absent("k", b"data")
    monkeypatch.undo()
    assert failed.value.hint  # type: ignore[attr-defined]
    assert names_in(tmp_path / TEMPORARY_FOLDER) == []
    assert store.head("k") is None
    store.close()


def test_a_name_that_could_not_be_synced_is_an_unknown_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    sync = os.fsync

    def fail_for_folders(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    assert store.put_if_absent("k", b"data") is PutOutcome.UNKNOWN
    monkeypatch.undo()
    assert store.head("k") is not None
    store.close()


def test_a_folder_that_cannot_be_made_is_refused_at_opening(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError):
        FolderStore(tmp_path / "file" / "store")


def test_closing_twice_does_no_harm(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.close()
    with (tmp_path / "other").open("wb") as other:  # may get the number that the store had
        store.close()
        other.write(b"still open")


def test_threads_that_list_the_same_folder_at_once_each_see_every_object(tmp_path: Path) -> None:
    """A folder's descriptor carries a reading position; sharing one made listings come out short."""
    store = FolderStore(tmp_path)
    keys = [f"n/name-{n}/x.json" for n in range(20)]
    for key in keys:
        store.put_if_absent(key, b"{}")
    short: list[int] = []

    def look() -> None:
        for _ in range(150):
            found = [info.key for info in store.list("n/")]
            if found != keys and sorted(found) != sorted(keys):
                short.append(len(found))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert short == []
