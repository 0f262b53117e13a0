"""The archive is a WebDataset as it is: the `webdataset` library reads it, and a small model trains on it."""

from __future__ import annotations

import gc
import io
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backends.catalog.archive import read_tar
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.log import LogRecord
from tests.indexer.archived import head, logged
from tests.indexer.conftest import delete, produce
from tests.indexer.test_purge import archive_all

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "examples" / "media"
OPERATIONS = ROOT / "docs" / "operations.md"
CLASSES = ("plants", "vehicles")


def send_pictures(engines: Engines, collection: CollectionRecord, per_class: int) -> int:
    producer, sent = engines.log.producer(), 0
    for number in range(per_class):
        for label in CLASSES:
            path = sorted((MEDIA / label).glob("*.jpg"))[number]
            headers = [("content-type", b"image/jpeg"), ("hw_caption", path.stem.encode()), ("hw_attributes", f'{{"label":"{label}"}}'.encode())]
            producer.send(collection.source_topic, partition=sent % 2, key=path.name.encode(), value=path.read_bytes(), headers=headers).result(10)
            sent += 1
    producer.close()
    return sent


def send_what_else_there_is(engines: Engines, collection: CollectionRecord) -> int:
    """A delete, a text, a PNG, a truncated JPEG and a rejected picture, as every archive comes to hold them; how many records."""
    path = sorted((MEDIA / "plants").glob("*.jpg"))[0]
    png = io.BytesIO()
    Image.open(path).save(png, "PNG")
    label = ("hw_attributes", b'{"label":"plants"}')
    records: list[tuple[bytes, bytes | None, list[tuple[str, bytes]]]] = [
        (b"e-delete", None, []),
        (b"e-text", b"only words", [("content-type", b"text/plain"), label]),
        (b"e-png", png.getvalue(), [("content-type", b"image/png"), label]),
        (b"e-truncated", path.read_bytes()[:2000], [("content-type", b"image/jpeg"), label]),
        (b"e-rejected", path.read_bytes(), [("content-type", b"image/jpeg"), ("hw_attributes", b"{")]),
    ]
    producer = engines.log.producer()
    for key, value, headers in records:
        producer.send(collection.source_topic, partition=0, key=key, value=value, headers=headers).result(10)
    producer.close()
    return len(records)


def documented(paths: list[str]) -> Any:
    """The dataset of the recipe in docs/operations.md, word for word."""
    archive = OPERATIONS.read_text(encoding="utf-8").partition("\n## Archive\n")[2].partition("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", archive, re.DOTALL)
    names: dict[str, Any] = {"paths": paths}
    exec(code, names)  # noqa: S102 - our own documentation
    return names["dataset"]


def tars_on_disk(engines: Engines, collection: CollectionRecord, folder: Path) -> list[str]:
    paths = []
    for partition in range(collection.partitions):
        for tar in head(engines, collection, partition).tars:
            path = folder / f"{partition}-{len(paths):04d}.tar"
            path.write_bytes(read_tar(engines.store, tar))
            paths.append(str(path))
    return paths


def is_whole_picture(record: LogRecord) -> bool:
    return record.key not in (None, b"v-1", b"e-delete", b"e-text", b"e-truncated", b"e-rejected")


@pytest.mark.filterwarnings("ignore:DecodingError")  # the recipe's handler warns of the truncated picture
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves its shards to the garbage collector
@pytest.mark.slow  # imports torch, and trains
def test_the_webdataset_library_reads_the_archive_and_a_linear_probe_trains_on_it(
    engines: Engines, collection: CollectionRecord, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    wds = pytest.importorskip("webdataset")

    sent = send_pictures(engines, collection, per_class=20)
    produce(engines, collection, 0, ["v-1"])
    delete(engines, collection, 1, "v-1")
    others = send_what_else_there_is(engines, collection)
    archive_all(engines, collection, archive_bytes=300_000)
    paths = tars_on_disk(engines, collection, tmp_path)
    assert len(paths) >= 3

    every = list(wds.WebDataset(paths, shardshuffle=False, empty_check=False).decode())
    records = {(p, o): r for p in (0, 1) for o, r in logged(engines, collection, p).items()}
    assert len(every) == len(records) == sent + 2 + others, "one sample a record, and none for the index"
    for sample in every:
        record = records[(sample["json"]["partition"], int(sample["__key__"]))]
        assert sample["json"]["id"] == (record.key or b"v-1").decode()
        assert ("jpg" in sample) == (record.value or b"").startswith(b"\xff\xd8")
        if "rejected" not in sample["json"] and record.key != b"e-text":
            assert sample.get("txt") == (None if (caption := record.header("hw_caption")) is None else caption.decode())
    told = [described for _, described in documented(paths)]
    assert {one["id"] for one in told} == {record.key.decode() for record in records.values() if is_whole_picture(record)}
    assert len(told) == sent + 1, "the pictures and the PNG, without the delete, the text, the truncated and the rejected one"

    def features(picture: np.ndarray) -> np.ndarray:
        small = Image.fromarray((picture * 255).astype(np.uint8)).resize((12, 12))
        return (np.asarray(small, np.float32) / 255 - 0.5).ravel()

    dataset = documented(paths).map_tuple(features, lambda told: CLASSES.index(told["attributes"]["label"])).shuffle(100, rng=random.Random(1))
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=8))
    assert sum(len(labels) for _, labels in batches) == sent + 1
    torch.manual_seed(0)
    probe = torch.nn.Linear(12 * 12 * 3, len(CLASSES))
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.003, weight_decay=0.01)
    losses = []
    for _ in range(60):
        total = 0.0
        for batch, labels in batches:
            loss = torch.nn.functional.cross_entropy(probe(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        losses.append(total / (sent + 1))
    assert losses[-1] < 0.5 * losses[0], losses
    del dataset
    gc.collect()
