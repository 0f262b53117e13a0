"""The README's example of producing does what its words say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contracts.settings import load_settings
from headwater.wiring import open_engines
from tests.headwater.conftest import Headwater

README = Path(__file__).parents[2] / "README.md"
MEDIA_BYTES = 300_000


def test_the_example_that_produces_puts_large_media_into_the_store(headwater: Headwater, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_CLAIM_CHECK_BYTES", str(MEDIA_BYTES - 1))
    assert headwater("collection", "create", "photos", "--vector", "v:4", "--partitions", "1").code == 0
    media = b"\xff\xd8\xff" + bytes(MEDIA_BYTES - 3)
    (workplace / "cat.jpg").write_bytes(media)
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "MediaProducer(" in code]
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own example
    with open_engines(load_settings()) as engines:
        record = engines.log.read_at("headwater.photos.media", 0, 0)
        assert record is not None and (record.key, record.value, record.header("hw_caption")) == (b"cat-1", b"", b"a cat")
        assert record.header("hw_payload_ref") is not None
        (stored,) = [engines.store.get(found.key) for found in engines.store.list("c/") if "/claim/" in found.key]
        assert stored is not None and stored.data == media
