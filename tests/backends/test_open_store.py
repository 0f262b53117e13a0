"""Which store a URL opens, which URLs are refused, and that a store which ignores conditions is refused too."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from store_fixtures import stack_settings

from backends.folder_store import FolderStore
from backends.memory_store import MemoryStore
from backends.open_store import open_store
from contracts.addresses import is_loopback
from contracts.errors import SettingsError, UnavailableError
from contracts.settings import Settings
from contracts.store import PutOutcome


def test_three_slashes_are_relative_and_four_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, folder in (("file:///below/store", tmp_path / "below/store"), (f"file:///{tmp_path}/absolute", tmp_path / "absolute")):
        store = open_store(Settings(store_url=url))
        store.put_if_absent("k", b"v")
        assert (folder / "k").read_bytes() == b"v"
        store.close()


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("file:///var/lib/headwater", "file:////var/lib/headwater"),
        ("file://var/lib/headwater", "three slashes"),
        ("file:///", "HEADWATER_STORE_URL"),
        ("gs://bucket", "HEADWATER_STORE_URL"),
        ("s3://127.0.0.1:9000", "s3://HOST:PORT/BUCKET"),
        ("s3://127.0.0.1:9000/a/b", "s3://HOST:PORT/BUCKET"),
        ("s3://127.0.0.1:port/bucket", "HEADWATER_STORE_URL"),
        ("s3://storage.example.com/bucket", "s3s://"),
        ("s3://127.0.0.1.example.com/bucket", "s3s://"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_what_to_write_instead(url: str, hint: str) -> None:
    with pytest.raises(SettingsError) as refused:
        open_store(Settings(store_url=url))
    assert hint in refused.value.hint


def test_credentials_in_the_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError) as refused:
        open_store(Settings(store_url="s3://user:canary@127.0.0.1:9000/bucket"))
    assert "canary" not in str(refused.value)


def test_loopback_is_known_by_name_or_address_only() -> None:
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1")] == [True] * 4
    assert [is_loopback(host) for host in ("localhost.example.com", "10.0.0.1", "0.0.0.0", "2130706433")] == [False] * 4


def test_a_memory_store_is_shared_by_its_name() -> None:
    open_store(Settings(store_url="memory://shared-name")).put_if_absent("k", b"v")
    assert open_store(Settings(store_url="memory://shared-name")).head("k") is not None
    assert open_store(Settings(store_url="memory://another-name")).head("k") is None


@pytest.mark.minio
def test_wrong_credentials_are_named_as_such_without_the_secret() -> None:
    good = stack_settings()
    for change in ({"store_access_key": "nobody-of-that-name"}, {"store_secret_key": "canary-secret"}):
        with pytest.raises(SettingsError) as refused:
            open_store(Settings(**(good.model_dump() | change)))
        assert "HEADWATER_STORE_SECRET_KEY" in refused.value.hint
        assert "canary" not in str(refused.value)


@pytest.mark.minio
def test_a_missing_bucket_is_created_at_opening() -> None:
    good = stack_settings()
    url = good.store_url.rsplit("/", 1)[0] + "/headwater-test-bucket"
    store = open_store(good.model_copy(update={"store_url": url}))
    try:
        assert list(store.list("")) == []
    finally:
        store._client.remove_bucket("headwater-test-bucket")  # type: ignore[attr-defined]
        store.close()


class CarelessMemoryStore(MemoryStore):
    """Ignores the condition of the call that is named."""

    def __init__(self, ignores: str) -> None:
        super().__init__()
        self._ignores = ignores

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        if self._ignores == "create" or (self._ignores == "race" and data.startswith(b"racer")):
            with self._lock:
                return self._store(key, data)
        return super().put_if_absent(key, data)

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> PutOutcome:
        with self._lock:
            if (self._ignores == "match" and key in self._objects) or (self._ignores == "missing" and key not in self._objects):
                return self._store(key, data)
        return super().compare_and_swap(key, data, etag)


@pytest.mark.parametrize("ignores", ["create", "match", "missing", "race"])
def test_a_store_that_ignores_a_condition_fails_the_probe_and_is_left_empty(ignores: str) -> None:
    store = CarelessMemoryStore(ignores)
    with pytest.raises(SettingsError) as refused:
        store.probe("probe")
    assert refused.value.error_code == "store_unfit"
    assert list(store.list("")) == []


class MuteMemoryStore(MemoryStore):
    """Never says how a put ended."""

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        return PutOutcome.UNKNOWN


class ForgetfulMemoryStore(MemoryStore):
    """Says of every second put that nobody knows how it ended; half of those have landed."""

    def __init__(self) -> None:
        super().__init__()
        self._puts = itertools.count()

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        return self._told(lambda: super(ForgetfulMemoryStore, self).put_if_absent(key, data))

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> PutOutcome:
        return self._told(lambda: super(ForgetfulMemoryStore, self).compare_and_swap(key, data, etag))

    def _told(self, put: Callable[[], PutOutcome]) -> PutOutcome:
        turn = next(self._puts) % 4
        if turn in (0, 1):
            outcome = put()
            return PutOutcome.UNKNOWN if turn == 0 else outcome
        return PutOutcome.UNKNOWN if turn == 2 else put()


def test_a_fit_store_whose_answers_are_lost_passes_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.store_rules._pause_seconds", lambda attempt: 0.001)
    store = ForgetfulMemoryStore()
    for _ in range(5):
        store.probe("probe")
    assert list(store.list("")) == []


def test_a_store_that_does_not_answer_the_probe_is_unavailable_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.store_rules.CLEAR_ATTEMPTS", 3)
    with pytest.raises(UnavailableError):
        MuteMemoryStore().probe("probe")


def test_two_probes_at_once_do_not_meet(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    threads = [threading.Thread(target=store.probe, args=("probe",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert list(store.list("")) == []
    store.close()
