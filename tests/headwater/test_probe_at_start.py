"""A role that writes proves at its start that the store honours conditions; one that only reads need not be allowed to write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.engines import Engines
from contracts.errors import NotFoundError, SettingsError
from contracts.settings import Settings, load_settings
from contracts.store import PutOutcome
from headwater import cli_roles


class CarelessStore(MemoryStore):
    """Takes ``If-None-Match`` and does not look at it."""

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        with self._lock:
            return self._store(key, data)


@pytest.mark.parametrize("role", ["embed", "index", "archive", "maintain"])
def test_a_role_that_writes_does_not_begin_on_a_store_that_ignores_conditions(role: cli_roles.RoleName, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CarelessStore()

    @contextmanager
    def opened(settings: Settings) -> Iterator[Engines]:
        yield Engines(settings, MemoryLog(), store)

    monkeypatch.setattr(cli_roles, "open_engines", opened)
    settings = load_settings(log_url="memory://", store_url="memory://")
    with pytest.raises(SettingsError) as refused:
        cli_roles._run(settings, (role,), ["nothing"])
    assert refused.value.error_code == "store_unfit"
    assert list(store.list("")) == []
    with pytest.raises(NotFoundError):  # it came as far as the collection that it was asked for
        cli_roles._run(settings, ("query",), ["nothing"])
