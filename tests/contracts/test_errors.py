"""The error tree: one class per thing a caller does next, each with a code, an exit code and a sentence."""

from __future__ import annotations

import re

import pytest

from contracts import errors
from contracts.errors import (
    REJECT_REASONS,
    CorruptError,
    DataLossError,
    FencedError,
    HeadwaterError,
    NotFoundError,
    RecordError,
    SettingsError,
    UnavailableError,
)


def tree(root: type[HeadwaterError] = HeadwaterError) -> list[type[HeadwaterError]]:
    return [root, *(found for child in root.__subclasses__() for found in tree(child) if found.__module__ == errors.__name__)]


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
def test_every_class_has_a_code_an_exit_code_and_a_docstring(kind: type[HeadwaterError]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", kind.code) and 1 <= kind.exit_code <= 125
    assert kind.__doc__ and kind.__name__ in (errors.__doc__ or "")


def test_no_two_classes_share_a_code() -> None:
    codes = [kind.code for kind in tree()]
    assert len(set(codes)) == len(codes)


def test_what_the_caller_does_next_shows_in_the_exit_code() -> None:
    assert {kind.exit_code for kind in (SettingsError, NotFoundError)} == {2}
    assert (UnavailableError.exit_code, FencedError.exit_code, CorruptError.exit_code, DataLossError.exit_code) == (4, 5, 6, 6)


def test_an_error_is_one_line_with_its_hint() -> None:
    error = SettingsError("port 99999 is out of range", hint="choose 1 to 65535", code="invalid_port")
    assert str(error) == "port 99999 is out of range (choose 1 to 65535)" and error.error_code == "invalid_port"
    assert str(SettingsError("no hint")) == "no hint" and SettingsError("x").error_code == "invalid_request"


@pytest.mark.parametrize("reason", REJECT_REASONS)
def test_a_reject_reason_is_a_stable_word_with_a_sentence(reason: str) -> None:
    assert re.fullmatch(r"[a-z][a-z_]*", reason) and REJECT_REASONS[reason]
    assert RecordError(reason, "why").reason == reason and RecordError(reason, "why").error_code == "rejected"


def test_a_reason_that_is_in_no_list_is_a_mistake_of_the_code() -> None:
    with pytest.raises(ValueError):
        RecordError("because", "why")
