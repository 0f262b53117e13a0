"""Promises of `embedding.texts`: one form per text, and work that grows no faster than the text."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import RecordError
from embedding.texts import MAX_MARKS, normalise_text

LIMIT_BYTES = 1024 * 1024
ANY_TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\u0301\u0323\u0344\u0f73\u00e9 \t\x00\x85")))


@given(ANY_TEXT)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise_text(text, LIMIT_BYTES)
    assert normalise_text(once, LIMIT_BYTES) == once


@given(ANY_TEXT)
def test_a_normalised_text_is_nfc_without_control_characters_or_double_spaces(text: str) -> None:
    plain = normalise_text(text, LIMIT_BYTES)
    assert unicodedata.is_normalized("NFC", plain)
    assert not any(unicodedata.category(character) == "Cc" for character in plain)
    assert plain == plain.strip()
    assert "  " not in plain


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_bytes_and_text_and_either_unicode_form_normalise_alike(text: str) -> None:
    plain = normalise_text(text, LIMIT_BYTES)
    assert normalise_text(text.encode(), LIMIT_BYTES) == plain
    if not any(unicodedata.category(character) == "Cc" for character in text):  # a control between letter and mark keeps them apart
        assert normalise_text(unicodedata.normalize("NFD", text), LIMIT_BYTES) == plain


def test_spaces_of_every_kind_become_one_and_nul_goes() -> None:
    assert normalise_text("\ufeff a\x00b\t\r\n c\u00a0\u2003d\x1b ".lstrip("\ufeff"), LIMIT_BYTES) == "ab c d"


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"caf\xe9", "\ud800 lone surrogate"])
def test_what_is_not_utf8_is_refused_as_bad_text(bad: str | bytes) -> None:
    with pytest.raises(RecordError) as caught:
        normalise_text(bad, LIMIT_BYTES)
    assert caught.value.reason == "bad_text"


def test_the_limit_counts_bytes_and_is_inclusive() -> None:
    assert normalise_text("\u00e9" * 5, 10) == "\u00e9" * 5
    with pytest.raises(RecordError) as caught:
        normalise_text("\u00e9" * 5 + "a", 10)
    assert caught.value.reason == "bad_text"


def test_a_text_far_over_the_limit_is_refused_at_once() -> None:
    began = time.thread_time()  # of this thread: a machine that is busy with others proves nothing
    with pytest.raises(RecordError):
        normalise_text(b"a" * 50_000_000, LIMIT_BYTES)
    assert time.thread_time() - began < 0.5


def test_half_a_million_combining_marks_take_no_more_than_linear_time() -> None:
    # Alternating classes (below, above) force canonical reordering, which is quadratic over a whole run.
    began = time.thread_time()
    plain = normalise_text("a" + "\u0301\u0323" * 260_000, LIMIT_BYTES)
    assert time.thread_time() - began < 3.0
    assert len(plain) <= 1 + MAX_MARKS
