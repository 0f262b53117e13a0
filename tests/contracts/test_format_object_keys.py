"""Object keys: what is formatted is read back, and nothing hostile is ever formatted or accepted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import SettingsError
from contracts.object_keys import MAX_KEY_BYTES, PATTERNS, CollectionKeys, name_key, parse_key, validate_key, validate_name
from tests.contracts.format_samples import ULID_A, epochs, names, partitions, sha256s, ulids, versions

HOSTILE_KEYS = [
    "",
    "/",
    "a//b",
    "../x",
    "a/../b",
    "a/./b",
    "/a",
    "a/",
    "a\\b",
    "a b",
    "a\0b",
    "a\n",
    "ä",
    "\ud800",
    "a?b",
    "a%2e",
    "x" * (MAX_KEY_BYTES + 1),
]
HOSTILE_NAMES = ["", "-a", "_a", ".", "..", "a.b", "a/b", "a b", "a\n", "ä", "x" * 64, "\0", "a\0"]


@given(names, ulids, names, partitions, versions, epochs, ulids, sha256s, names, st.from_regex(r"[A-Za-z0-9_.-]{1,40}", fullmatch=True))
def test_every_kind_of_key_is_read_back_as_what_was_formatted(name, incarnation, index, partition, version, epoch, ulid, sha256, field, part):  # type: ignore[no-untyped-def]
    keys = CollectionKeys(name, incarnation)
    indexed = keys.index(index)
    here, archive = indexed.partition(partition), keys.archive(partition)
    place = {"name": name, "incarnation": incarnation}
    deep = {**place, "index": index, "partition": f"{partition:05d}"}
    stamp = {"version": f"{version:020d}"}
    cases = {
        "name": (name_key(name, version), {"name": name, **stamp}),
        "collection": (keys.version(version), {**place, **stamp}),
        "archive_manifest": (archive.manifest(version), {**place, "partition": f"{partition:05d}", **stamp}),
        "archive_tar": (
            archive.tar("m", epoch, ulid),
            {**place, "partition": f"{partition:05d}", "role": "m", "epoch": f"{epoch:010d}", "ulid": ulid},
        ),
        "archive_boundary": (archive.boundary, {**place, "partition": f"{partition:05d}"}),
        "claim": (keys.claim(sha256), {**place, "sha256": sha256}),
        "generation": (indexed.generation(epoch, field), {**place, "index": index, "generation": f"{epoch:010d}", "field": field}),
        "manifest": (here.manifest(version), {**deep, **stamp}),
        "part": (here.part("b", epoch, ulid, part), {**deep, "role": "b", "epoch": f"{epoch:010d}", "ulid": ulid, "part": part}),
        "boundary": (here.boundary, deep),
        "pin": (here.pin(ulid), {**deep, "ulid": ulid}),
        "purge": (here.purge(ulid), {**deep, "ulid": ulid}),
    }
    assert set(cases) == set(PATTERNS)
    for kind, (key, fields) in cases.items():
        parsed = parse_key(key)
        assert parsed is not None and (parsed.kind, parsed.fields) == (kind, fields)
        assert validate_key(key) == key


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_a_key_that_could_name_something_else_is_refused(key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        validate_key(key)
    assert caught.value.error_code == "invalid_key"
    assert parse_key(key) is None


@given(st.text(max_size=60))
def test_any_text_is_either_refused_or_a_key_without_dot_segments(key: str) -> None:
    try:
        accepted = validate_key(key)
    except SettingsError:
        return
    assert accepted == key and key.isascii() and "//" not in key and not {"", ".", ".."} & set(key.split("/"))


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_reaches_no_key(name: str) -> None:
    for make in (lambda: name_key(name, 1), lambda: CollectionKeys(name, ULID_A), lambda: CollectionKeys("a", ULID_A).index(name)):
        with pytest.raises(SettingsError):
            make()
    with pytest.raises(SettingsError) as caught:
        validate_name(name)
    assert caught.value.error_code == "invalid_name"


@pytest.mark.parametrize("make", [
    lambda p: p.manifest(-1),
    lambda p: p.manifest(10**20),
    lambda p: p.part("x", 1, ULID_A, "rows"),
    lambda p: p.part("b", -1, ULID_A, "rows"),
    lambda p: p.part("b", 10**10, ULID_A, "rows"),
    lambda p: p.part("b", 1, "../../../n/photos", "rows"),
    lambda p: p.part("b", 1, ULID_A, "a/b"),
    lambda p: p.part("b", 1, ULID_A, ""),
    lambda p: p.pin("not-a-ulid"),
    lambda p: p.purge("not-a-ulid"),
    lambda p: p.index.partition(100_000).boundary,
    lambda p: p.index.partition(-1).manifest(1),
    lambda p: p.index.generation(-1, "image"),
    lambda p: p.index.generation(1, "a/b"),
    lambda p: p.index.collection.claim("../" * 21 + "x"),
    lambda p: p.index.collection.claim("A" * 64),
    lambda p: p.index.collection.archive(0).tar("b", 0, "x"),
    lambda p: p.index.collection.archive(0).tar("x", 0, ULID_A),
    lambda p: p.index.collection.archive(100_000).boundary,
])  # fmt: skip
def test_a_number_ulid_or_hash_out_of_range_makes_no_key(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingsError):
        make(CollectionKeys("photos", ULID_A).index("main").partition(3))


def test_an_incarnation_that_is_no_ulid_is_refused() -> None:
    for incarnation in ("", "x", ULID_A.lower(), ULID_A + "0", "8" + ULID_A[1:], ULID_A[:-1] + "U"):
        with pytest.raises(SettingsError):
            CollectionKeys("photos", incarnation)


def test_names_that_share_a_beginning_never_share_a_prefix() -> None:
    one, other = CollectionKeys("a", ULID_A), CollectionKeys(f"a-{ULID_A}", ULID_A)
    assert not other.prefix.startswith(one.prefix)
    assert not one.index("main").partition(1).prefix.startswith(one.index("main2").partition(1).prefix)
