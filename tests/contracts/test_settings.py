"""Settings: environment over file over defaults; typing mistakes are told, secrets never."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import SettingsError
from contracts.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import os

    for name in [name for name in os.environ if name.upper().startswith("HEADWATER_")]:  # noqa: TID251 - the test clears what the machine sets
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "headwater.yaml"


def test_without_anything_the_defaults_hold() -> None:
    settings = load_settings()
    assert settings.log_url.startswith("sqlite:///") and settings.store_url.startswith("file:///") and settings.query_host == "127.0.0.1"


def test_the_environment_wins_over_the_file_and_arguments_over_both(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare.write_text("query_port: 1000\nseal_rows: 5\nmax_limit: 7\n")
    monkeypatch.setenv("HEADWATER_QUERY_PORT", "2000")
    monkeypatch.setenv("HEADWATER_MAX_LIMIT", "8")
    settings = load_settings(max_limit=9)
    assert (settings.seal_rows, settings.query_port, settings.max_limit) == (5, 2000, 9)


def test_an_unknown_name_in_the_file_is_refused_without_its_value(bare: Path) -> None:
    bare.write_text("store_secret_kee: hunter2\n")
    with pytest.raises(SettingsError, match="store_secret_kee does not exist") as caught:
        load_settings()
    assert "hunter2" not in repr(caught.value) + str(caught.value) + str(caught.value.__cause__)


def test_an_unknown_name_in_the_environment_is_refused_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_STORE_SECRET_KEE", "hunter2")
    with pytest.raises(SettingsError, match="store_secret_kee does not exist") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("QUERY_PORT", "hunter2"), ("QUERY_PORT", "65536"), ("SEAL_ROWS", "0"), ("KAFKA_REPLICATION", "-2"), ("ALLOW_PLAINTEXT", "hunter2")],
)
def test_a_value_out_of_range_names_the_setting_and_not_the_value(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"HEADWATER_{name}", value)
    with pytest.raises(SettingsError, match=f"setting {name.lower()}: ") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value) and f"HEADWATER_{name}" in caught.value.hint


@pytest.mark.parametrize("content", [b"- hunter2", b"hunter2", b"{a: [hunter2", b"\xff\xfehunter2", b"1: hunter2", b"a: &x [*x, hunter2"])
def test_a_file_that_cannot_be_read_is_refused_without_its_content(content: bytes, bare: Path) -> None:
    bare.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value) and caught.value.__suppress_context__


def test_a_secret_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STORE_SECRET_KEY", "KAFKA_PASSWORD"):
        monkeypatch.setenv(f"HEADWATER_{name}", "hunter2")
    settings = load_settings()
    assert settings.store_secret_key.get_secret_value() == settings.kafka_password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings) + str(settings) + str(settings.model_dump()) + settings.model_dump_json()


def test_every_secret_is_a_secret_type_and_every_setting_has_a_description() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if name.endswith(("password", "secret_key", "token")):
            assert "SecretStr" in str(field.annotation), name


def test_settings_cannot_be_changed_after_they_were_read() -> None:
    with pytest.raises(ValueError):
        load_settings().query_port = 1  # type: ignore[misc]
